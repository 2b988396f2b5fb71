"""What a run stores of itself; storage that fails is in tests/scripts/faults/test_storage.py."""

import pytest
import torch

from mtrl.checkpoint import load_latest
from mtrl.guard import NonFiniteError
from mtrl.logging import JsonlLogger
from mtrl.run_directory import RunDirectory
from scripts.config import Config
from scripts.saving import Saver


@pytest.fixture
def run(tmp_path):
    config = Config.for_benchmark(("toy",)).to_json()
    with RunDirectory.create(tmp_path / "run", config, default_name="x") as run:
        yield run


def test_a_fault_is_stored_also_where_metrics_cannot_be_written(run):
    metrics = JsonlLogger(run.metrics_path)
    metrics.log({"progress/env_steps": 1})
    durable = metrics.flush()
    run.metrics_path.unlink()
    run.metrics_path.mkdir()
    metrics.log({"progress/env_steps": 2})
    state = {"agent": {"weight": torch.tensor([float("nan")])}, "progress": {"env_steps": 7}}
    saver = Saver(run, metrics, torch.device("cpu"), compiles=lambda: False)
    error = saver.store_fault(NonFiniteError("too many"), state)
    stored = load_latest(run.path / "faults")
    assert f"the state it happens in is in {stored.path}" in str(error)
    assert stored.state["fault"] == "too many (agent/weight is not finite)"
    assert stored.state["metrics"] == vars(durable)
    run.metrics_path.rmdir()
    metrics.close()
