"""Large pages are asked for where there are any."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtrl import pages
from mtrl.stored import Stored

needs_large_pages = pytest.mark.skipif(not pages._exist(), reason="the system has no large pages")

FLOAT = torch.float32
SMAPS = Path("/proc/self/smaps")


def _is_asked_for(address: int) -> bool:
    """Tell whether large pages were asked for where an address lies: a flag of its mapping."""
    is_there = False
    for line in SMAPS.read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            first, end = (int(each, 16) for each in name.split("-"))
            is_there = first <= address < end
        elif is_there and name == "VmFlags:":
            return "hg" in rest
    return False


@needs_large_pages
def test_a_tensor():
    # Each mapped on its own: other tests may have had the heap, with large pages, take what is new.
    plain, large = (torch.frombuffer(mmap.mmap(-1, 200_000_000), dtype=FLOAT) for _ in range(2))
    assert pages.prefer_large_pages(large) is large
    assert _is_asked_for(large.data_ptr() + large.nbytes // 2)
    assert not _is_asked_for(plain.data_ptr() + plain.nbytes // 2)
    large.fill_(1)
    assert large.sum() == 50_000_000


@needs_large_pages
def test_a_replay():
    stored = Stored.allocate(100_000, 10, 39, 4, "cpu")
    for tensor in (stored.observations, stored.records):
        assert _is_asked_for(tensor.data_ptr() + tensor.nbytes // 2)
        assert not tensor.any()


@needs_large_pages
def test_the_heap():
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from test_pages import _is_asked_for
import torch
from mtrl.device import keep_freed_memory
from mtrl.pages import prefer_large_pages_in_heap
assert keep_freed_memory()
blocks = [torch.ones(1_000_000) for _ in range(10)]
middle = blocks[5].data_ptr() + 2_000_000
before = _is_asked_for(middle)
prefer_large_pages_in_heap()
assert all(block.sum() == 1_000_000 for block in blocks)
print(before, _is_asked_for(middle))
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.fixture
def system(tmp_path, monkeypatch):
    """What the system tells of large pages, to be changed."""
    (tmp_path / "hpage_pmd_size").write_text(str(2 << 20))
    (tmp_path / "enabled").write_text("always [madvise] never")
    monkeypatch.setattr(pages, "_PAGES", tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """What is asked for."""
    found = []
    monkeypatch.setattr(pages, "_ask", lambda *given: found.append(given))
    return found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hpage_pmd_size", None),
        ("hpage_pmd_size", ""),
        ("hpage_pmd_size", str(512 << 20)),
        ("enabled", "always madvise [never]"),
    ],
)
def test_none_are_asked_for_where_there_are_none_or_only_huge_ones(system, asked, name, told):
    tensor = torch.empty(10_000_000)
    pages.prefer_large_pages(tensor)
    assert len(asked) == 1
    asked.clear()
    if told is None:
        (system / name).unlink()
    else:
        (system / name).write_text(told)
    assert pages.prefer_large_pages(tensor) is tensor
    pages.prefer_large_pages_in_heap()
    assert not asked


@pytest.mark.usefixtures("system")
def test_nothing_is_asked_for_what_lies_elsewhere_or_is_small(asked, monkeypatch):
    pages.prefer_large_pages(torch.empty(10_000_000, device="meta"))
    assert not asked
    monkeypatch.undo()
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("was asked"))
    pages.prefer_large_pages(torch.empty(1000))


@pytest.mark.usefixtures("system")
def test_mappings_that_cannot_be_read_are_no_error(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_MAPPINGS", tmp_path / "none")
    pages.prefer_large_pages_in_heap()
    assert not asked
    lines = [
        b"7f00-8f00 r-xp 00000000 08:01 3 /lib/jos\xe9.so",
        b"1000-5000 rw-p 00000000 00:00 0 [heap]",
        b"9000-a000 rw-p 00000000 00:00 0",
    ]
    (tmp_path / "maps").write_bytes(b"\n".join(lines))
    monkeypatch.setattr(pages, "_MAPPINGS", tmp_path / "maps")
    pages.prefer_large_pages_in_heap()
    assert {given[:2] for given in asked} == {(0x1000, 0x4000)}
