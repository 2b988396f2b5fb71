import pytest
import torch

from mtrl.errors import UserError
from mtrl.memory import available_memory, require_memory
from mtrl.replay import Replay
from mtrl.types import Batch

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def system(tmp_path):
    """A made-up machine with 8 GiB to spare."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n"
    )
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    return tmp_path


def limit(system, maximum, current, inactive):
    group = system / "sys" / "fs" / "cgroup"
    (group / "memory.max").write_text(f"{maximum}\n")
    (group / "memory.current").write_text(f"{current}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")


def test_this_machine_tells_how_much_it_has():
    assert 2**20 < available_memory(CPU) < 2**50


def test_a_containers_limit_counts_where_it_is_the_smaller(system):
    assert available_memory(CPU, system=system) == 8 * GIB
    limit(system, "max", 0, 0)
    assert available_memory(CPU, system=system) == 8 * GIB
    limit(system, 6 * GIB, 3 * GIB, GIB)
    assert available_memory(CPU, system=system) == 4 * GIB
    limit(system, 60 * GIB, 3 * GIB, GIB)
    assert available_memory(CPU, system=system) == 8 * GIB


def test_a_system_that_tells_nothing_refuses_nothing(tmp_path):
    assert available_memory(CPU, system=tmp_path) is None
    require_memory({"--batch-size 1": 2**60}, CPU, system=tmp_path)


def test_the_largest_of_several_needs_is_named(system):
    require_memory({"--a 1": 5 * GIB, "--b 2": 3 * GIB}, CPU, system=system)
    with pytest.raises(UserError, match=r"`--a` is 1: .* 5\.0 GiB .* 8\.1 with .* 8\.0 to spare"):
        require_memory({"--a 1": 5 * GIB, "--b 2": 3 * GIB + GIB // 10}, CPU, system=system)


def test_a_replay_knows_what_it_takes():
    sizes = (3, 1000, 39, 4)
    replay = Replay(*sizes, generator=torch.Generator())
    step = Batch(*(torch.zeros(3, 10, *size) for size in ((39,), (4,), (), (39,), (), ())))
    for _ in range(100):
        replay.add(step)
    stored = _tensors(replay.state_dict())
    assert 0.9 * sum(stored) < Replay.bytes_needed(*sizes) < 2.1 * sum(stored)


def _tensors(node):
    if isinstance(node, dict):
        return [size for value in node.values() for size in _tensors(value)]
    return [node.nbytes] if hasattr(node, "nbytes") else []
