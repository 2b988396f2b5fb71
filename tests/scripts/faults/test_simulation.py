"""What a process does whose simulation hangs; the rest is in tests/envs/engine/test_failures.py."""

import signal
import time
from pathlib import Path


def test_a_simulation_that_hangs_is_replaced_and_the_run_goes_on(
    start, endless, tmp_path, read_metrics, reached, checkpoints, assert_gapless
):
    often = ["--reward-version", "v1", "--benchmark", "reach-v3", "--eval-every", 10**9]
    script = start(Path(__file__).with_name("hanging.py"), *endless, *often)
    script.wait_until(lambda: reached() >= 400)
    script.signal(signal.SIGTERM)
    began = time.monotonic()
    result = script.wait()
    assert result.code == 143
    assert time.monotonic() - began < 20
    assert "Traceback" not in result.err
    assert "the simulation of reach-v3 failed (TimeoutError" in result.err
    metrics = read_metrics(tmp_path / "run")
    assert_gapless(metrics)
    assert 1 <= metrics[-1]["train/dropped_episodes/reach-v3"] <= 2
    assert checkpoints(tmp_path / "run")[-1] >= reached()
