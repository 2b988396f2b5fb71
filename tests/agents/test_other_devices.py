"""On a device other than a CPU all of an update's numbers stay there, and none is asked for.

Torch's "meta" device computes shapes alone. What mixes devices, or wants to know a number, fails on
it as it would in a CUDA graph; so this needs no GPU. Its fused Adam takes no learning rate that is
a tensor, so `learning_rate_half_life` is left out.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils import _foreach_utils

from agents import SAC, SACConfig
from mtrl.stored import Stored

K, B, O, A = 3, 8, 5, 2  # noqa: E741


class MetaGenerator(torch.Generator):
    """Claims to live on the device that has no generators."""

    device = property(lambda _: torch.device("meta"))  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _meta_device(monkeypatch):
    def make_generator(seed: int, purpose: str, device: object) -> torch.Generator:
        del purpose
        assert device == "meta"
        generator = MetaGenerator()
        generator.manual_seed(seed)
        return generator

    monkeypatch.setattr("agents.sac.make_generator", make_generator)
    supported = [*_foreach_utils._get_fused_kernels_supported_devices(), "meta"]
    for name in ("torch.optim.optimizer", "torch.optim.adam"):
        ask = "_get_fused_kernels_supported_devices"
        if hasattr(sys.modules[name], ask):
            monkeypatch.setattr(sys.modules[name], ask, lambda: supported)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"critic_weighting": "uniform", "actor_weighting": "pcgrad", "layer_norm": False},
        {"critic_values": "categorical", "twins": "mean", "watch_conflicts": False},
        {"residual": True, "critic_depth": 3, "actor_depth": 3, "task_embedding": 4},
        {"reset_every": 10, "normalize_rewards": True},
    ],
    ids=str,
)
def test_an_update_stays_on_its_device(dtype, options):
    config = SACConfig(critic_width=16, actor_width=16, **options)
    sizes = {"num_tasks": K, "observation_size": O, "action_size": A}
    agent = SAC(config, **sizes, seed=0, device="meta", dtype=dtype)
    stored = Stored.allocate(100, K, O, A, "meta")
    for _ in range(2):  # the second finds what the first has allocated
        drawn, window = (
            torch.zeros(shape, dtype=torch.int64, device="meta") for shape in ((K, B), (2, K, 1))
        )
        metrics = agent.update(stored.read(drawn, window))
        assert {metric.device.type for metric in metrics.values()} == {"meta"}
    assert agent.act(torch.zeros(K, 4, O, device="meta")).shape == (K, 4, A)


def test_a_question_to_the_device_would_be_noticed():
    with pytest.raises(RuntimeError):
        bool(torch.zeros((), device="meta") > 0)
    with pytest.raises(RuntimeError):
        torch.zeros(2) + torch.zeros(2, device="meta")
