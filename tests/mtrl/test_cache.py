"""What is compiled is told of, once, and where nothing can be kept."""

import os
import subprocess
import sys

import pytest

COMPILING = """
import logging
logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
import numba, torch
from mtrl.metrics import conflict_metrics
numba.njit(lambda x: x + 1)(1)
print("somebody else's", flush=True)
for _ in range(2):
    conflict_metrics(torch.eye(2))
"""


@pytest.fixture
def said(tmp_path):
    """Compile in a process of its own, and return what it said of it."""

    def said(folder):
        result = subprocess.run(
            [sys.executable, "-c", COMPILING],
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # in the order in which it was said
        )
        before, _, after = result.stdout.partition("somebody else's\n")
        assert before == ""
        return after.splitlines()

    return said


def test_it_is_told_of_the_first_time(said, tmp_path):
    (line,) = said(tmp_path / "new" / "cache")
    assert line.startswith(f"INFO: compiling what is not in {tmp_path / 'new' / 'cache' / 'mtrl'}")
    assert said(tmp_path / "new" / "cache") == []


def test_where_nothing_can_be_kept_there_is_a_remedy(said):
    (line,) = said("/dev/null")
    assert line.startswith("WARNING: compiling anew at each start")
    assert "/dev/null/mtrl" in line
    assert "`XDG_CACHE_HOME`" in line
