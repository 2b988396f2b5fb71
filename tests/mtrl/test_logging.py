import contextlib
import json
import math
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mtrl.errors import UserError
from mtrl.logging import JsonlLogger, Mark, read_metrics


def line(env_steps, **metrics):
    return {"progress/env_steps": env_steps, **metrics}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "metrics.jsonl"


@pytest.fixture
def write(path):
    """Write lines with a logger that is closed again; return what the file then holds."""

    def write(*lines, **options):
        logger = JsonlLogger(path, **options)
        for metrics in lines:
            logger.log(metrics)
        logger.close()
        return read_metrics(path)

    return write


def test_lines_are_read_back_in_order(write):
    lines = [line(10, **{"eval/success_rate": 0.5}), line(20, b=2.0, a=1.0)]
    assert write(*lines) == lines
    assert list(write(line(30))[1]) == ["progress/env_steps", "b", "a"]


def test_numbers_keep_their_kind(write):
    (row,) = write(line(10**15, loss=np.float64(0.1), flag=True))
    assert row == {"progress/env_steps": 10**15, "loss": 0.1, "flag": 1.0}
    assert type(row["progress/env_steps"]) is int


def test_what_json_has_no_form_for_becomes_null(write, path):
    (row,) = write(line(1, nan=math.nan, up=math.inf, down=-math.inf))
    assert row == {"progress/env_steps": 1, "nan": None, "up": None, "down": None}
    json.loads(path.read_text(), parse_constant=pytest.fail)


def test_each_line_is_on_file_as_soon_as_it_is_logged(path):
    logger = JsonlLogger(path)
    for step in range(3):
        logger.log(line(step))
        assert read_metrics(path)[-1] == line(step)
    logger.close()


@pytest.mark.parametrize("tail", [b'{"progress/env_', b"{", b"\x00\x00\x00", b'{"a": "\xc3'])
def test_a_partial_last_line_is_left_out_and_then_removed(write, path, tail):
    write(line(1), line(2))
    complete = path.read_bytes()
    path.write_bytes(complete + tail)
    assert read_metrics(path) == [line(1), line(2)]
    assert write(line(3)) == [line(1), line(2), line(3)]
    assert path.read_bytes().startswith(complete)


def test_a_last_line_that_lacks_only_its_newline_is_kept(write, path):
    write(line(1), line(2))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert read_metrics(path) == [line(1), line(2)]
    assert write(line(3)) == [line(1), line(2), line(3)]


@pytest.mark.parametrize("damage", [b"garbage\n", b"[1]\n", b"\n"])
def test_a_damaged_line_in_the_middle_is_an_error_and_the_file_is_left_alone(write, path, damage):
    write(line(1))
    path.write_bytes(path.read_bytes() + damage + b'{"progress/env_steps": 2}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)
    with pytest.raises(UserError, match="line 2"):
        write(line(3))
    with pytest.raises(UserError, match="line 2"):
        write(line(3), mark=Mark(5, "of another file"))
    assert path.read_bytes() == before


@pytest.fixture
def mark(path):
    """Write lines with a logger that is left open, as by a crash; return where they end."""

    def mark(*lines):
        logger = JsonlLogger(path)
        for metrics in lines:
            logger.log(metrics)
        return logger.flush()

    return mark


def test_resuming_drops_what_will_be_written_again(write, mark, path):
    marked = mark(line(100), line(200, a=1))
    write(line(200, b=1), line(300), {"progress/env_steps": 400})
    path.write_bytes(path.read_bytes() + b"garbage\n{")
    assert write(line(300), mark=marked) == [line(100), line(200, a=1), line(300)]


def test_a_mark_counts_what_was_there_before(mark, write):
    mark(line(100))
    marked = mark(line(200))
    write(line(300))
    assert write(mark=marked) == [line(100), line(200)]


def test_resuming_at_the_last_line_changes_nothing(write, mark, path):
    marked = mark(line(100), line(200))
    before = path.stat()
    assert write(mark=marked) == [line(100), line(200)]
    assert path.stat().st_ino == before.st_ino


def until_200(row):
    return row.get("progress/env_steps", 0) <= 200


@pytest.mark.parametrize(
    ("edit", "kept"),
    [
        (lambda lines: lines[1:], [line(200), line(200, b=1)]),
        (lambda lines: lines[::-1], [line(200, b=1), line(200), line(100)]),
        (
            lambda lines: [b'{"note": 1}\n', *lines],
            [{"note": 1}, line(100), line(200), line(200, b=1)],
        ),
        (
            lambda lines: [lines[0].replace(b"100", b"101"), *lines[1:]],
            [line(101), line(200), line(200, b=1)],
        ),
        (lambda lines: [], []),
    ],
    ids=["a line is lost", "sorted otherwise", "a line of one's own", "a number", "emptied"],
)
def test_in_a_file_that_was_changed_all_lines_before_the_mark_stay(
    write, mark, path, caplog, edit, kept
):
    marked = mark(line(100), line(200), line(200, b=1))
    write(line(300), line(400))
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    assert write(line(300), mark=marked, precedes=until_200) == [*kept, line(300)]
    assert f"all {len(kept)} up to there stay" in caplog.text


def test_lines_that_never_came_on_file_are_not_made_up_for_by_later_ones(
    path, write, caplog, monkeypatch
):
    monkeypatch.setattr("mtrl.logging._BACKLOG_BYTES", 80)
    logger = JsonlLogger(path)
    path.parent.rename(path.parent.with_name("away"))
    for step in range(5):
        logger.log(line(step))  # there is room for three
    with pytest.raises(OSError, match="cannot be written: 3 lines are waiting"):
        logger.flush()
    path.parent.with_name("away").rename(path.parent)
    marked = logger.flush()
    logger.log(line(5))
    logger.close()
    assert "lacks 2 lines" in caplog.text
    assert write(line(5), mark=marked) == [line(0), line(1), line(2), line(5)]
    assert "not what it was" not in caplog.text


@pytest.mark.parametrize(
    "state",
    [{}, {"size": 1}, {"size": -1, "sha256": ""}, {"size": 1.0, "sha256": ""}],
    ids=str,
)
def test_what_is_no_mark_is_refused(state):
    with pytest.raises(ValueError, match="`metrics`"):
        Mark.from_state(state)
    assert Mark.from_state(vars(Mark())) == Mark()


def test_resuming_without_a_file_starts_one(write):
    assert write(line(1), mark=Mark()) == [line(1)]


def test_kill_leaves_every_logged_line(path):
    """A process that dies by SIGKILL while logging loses no line it had logged."""
    script = (
        "import sys; from pathlib import Path; from mtrl.logging import JsonlLogger\n"
        "logger = JsonlLogger(Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    logger.log({'progress/env_steps': step} | {f'x/{i}': i / 7 for i in range(200)})\n"
        "    print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as process:
        while int(process.stdout.readline()) < 50:
            pass
        process.send_signal(signal.SIGKILL)
        last_logged = [50, *map(int, process.stdout.read().split())][-1]
    logger = JsonlLogger(path)
    logger.close()
    steps = [row["progress/env_steps"] for row in read_metrics(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > last_logged


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_once_and_does_not_stop(caplog):
    logger = JsonlLogger(Path("/dev/full"))
    for step in range(3):
        logger.log(line(step))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    logger.close()
    assert "lacks 3 lines" in caplog.text


@pytest.fixture
def limit_file_size():
    """Cut a line in two, as a disk does when it runs full."""

    @contextlib.contextmanager
    def limit_file_size(size):
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)

    return limit_file_size


def test_lines_wait_for_space_and_none_is_broken_or_doubled(path, limit_file_size, caplog):
    logger = JsonlLogger(path)
    with limit_file_size(100):
        for step in range(10):
            logger.log(line(step))
        assert path.stat().st_size == 100
        assert read_metrics(path) == [line(0), line(1), line(2)]
    logger.log(line(10))
    assert read_metrics(path) == [line(step) for step in range(11)]
    logger.close()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("remove", [Path.unlink, lambda path: path.rename(f"{path}.old")])
@pytest.mark.parametrize("lines", [[], [line(3), line(4)]], ids=["nothing waits", "lines follow"])
def test_where_the_file_was_removed_a_new_one_is_begun(path, write, caplog, remove, lines):
    logger = JsonlLogger(path)
    for step in range(3):
        logger.log(line(step))
    remove(path)
    for metrics in lines:
        logger.log(metrics)
    marked = logger.flush()
    assert read_metrics(path) == lines
    logger.log(line(5))
    logger.close()
    (record,) = caplog.records
    assert "was removed or replaced: the 3 lines so far went with the old file" in record.message
    assert "what is there now has 0;" in record.message
    assert write(line(5), mark=marked) == [*lines, line(5)]
    assert len(caplog.records) == 1, "its mark fits"


def test_without_its_directory_nothing_is_durable_and_nothing_is_made(path, caplog):
    logger = JsonlLogger(path)
    logger.log(line(0))
    moved = path.parent.rename(path.parent.with_name("away"))
    with pytest.raises(OSError, match="cannot be written: 0 lines"):
        logger.flush()
    logger.close()
    assert not path.parent.exists()
    assert read_metrics(moved / path.name) == [line(0)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_link_is_not_followed(path, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text('{"mine": 1}\nhalf a li')
    path.symlink_to(outside)
    with pytest.raises(OSError, match="symbolic"):
        JsonlLogger(path, mark=Mark())
    path.unlink()
    logger = JsonlLogger(path)
    path.unlink()
    path.symlink_to(outside)
    logger.log(line(0))
    with pytest.raises(OSError, match="1 lines are waiting"):
        logger.flush()
    path.unlink()
    logger.close()
    assert read_metrics(path) == [line(0)]
    assert outside.read_text() == '{"mine": 1}\nhalf a li'


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b"", []),
        (b'{"progress/env_steps": 9}', [line(9)]),
        (b'{"progress/env_steps": 9', []),
        (b"\x00\x00", []),
    ],
)
def test_in_a_copy_put_in_its_place_each_line_is_whole(path, limit_file_size, caplog, tail, kept):
    logger = JsonlLogger(path)
    logger.log(line(0))
    copy = path.read_bytes() + tail
    with limit_file_size(40):
        logger.log(line(1))  # half of it fits
    assert path.stat().st_size == 40
    path.with_name("copy").write_bytes(copy)
    path.with_name("copy").replace(path)
    logger.log(line(2))
    marked = logger.flush()
    logger.close()
    assert read_metrics(path) == [line(0), *kept, line(1), line(2)]
    assert marked.matches(path.read_bytes())
    assert marked.size == path.stat().st_size
    assert (
        f"the 1 lines so far went with the old file, and what is there now has {1 + len(kept)}"
        in (caplog.text)
    )


def test_the_lines_that_wait_are_bounded(path, caplog, monkeypatch):
    monkeypatch.setattr("mtrl.logging._BACKLOG_BYTES", 100)
    logger = JsonlLogger(Path("/dev/full"))
    for step in range(10):
        logger.log(line(step))
    assert len(logger._pending) <= 100
    logger.close()
    assert "lacks 10 lines" in caplog.text


def test_logging_is_cheap_and_starts_no_thread(path):
    before = threading.active_count()
    logger = JsonlLogger(path)
    logger.log(line(1))
    assert threading.active_count() == before
    logger.close()
