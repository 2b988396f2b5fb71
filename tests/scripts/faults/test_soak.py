"""A short soak; benchmarks/soak.py takes an hour at MT10."""

from pathlib import Path

import pytest

SOAK = Path(__file__).parents[3] / "benchmarks" / "soak.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_a_training_does_not_leak(run):
    small = ["--critic-width=8", "--actor-width=8", "--batch-size=4", "--threads=1"]
    small += ["--replay-capacity=1000"]
    brief = ["--minutes", 0.4, "--steps-between", 4000]
    result = run(SOAK, "--benchmark", "toy", *brief, "--", *small, "--update-ratio=0.02")
    assert result.code == 0, result.out + result.err
    for quantity in ("resident_mib", "threads", "files", "step_ms"):
        assert quantity in result.out
    assert "GROWS" not in result.out
