"""The contestants of `benchmarks/learner.py`: one SAC update each, ours and as others write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from agents import SAC, SACConfig
from mtrl.graph import Updates
from mtrl.replay import Replay
from mtrl.types import Batch

OBSERVATION, ACTION = 39, 4
AT_ONCE = 8
"""Updates in a CUDA graph: as many as `--preset gpu` takes after a step of its environments."""


@dataclass(frozen=True)
class Shape:
    """Sizes of an update, those of networks and of the batch, and where it is taken."""

    K: int
    B: int
    width: int
    depth: int
    layer_norm: bool
    categorical: bool = False
    critic_width: int | None = None
    device: str = "cpu"

    def __str__(self) -> str:
        """Say it in a line."""
        critics = f", critics {self.critic_width}" if self.critic_width else ""
        norm = " with layer norm" if self.layer_norm else ""
        bins = ", categorical critics" if self.categorical else ""
        place = "" if self.device == "cpu" else f", {self.device}"
        return f"K={self.K}, B={self.B}, {self.depth} x {self.width}{norm}{bins}{critics}{place}"

    def config(self, critics: Any = "uniform", actor: Any = "uniform") -> SACConfig:
        """Return an agent's configuration; conflicts are measured only where they must be."""
        return SACConfig(
            critic_weighting=critics,
            actor_weighting=actor,
            critic_width=self.critic_width or self.width,
            critic_depth=self.depth,
            actor_width=self.width,
            actor_depth=self.depth,
            layer_norm=self.layer_norm,
            critic_values="categorical" if self.categorical else "scalar",
            watch_conflicts=False,
        )

    def agent(self, critics: str, actor: str, dtype: torch.dtype = torch.float32) -> SAC:
        """Return ours, with these weightings and products of that type."""
        return SAC(
            self.config(critics, actor),
            num_tasks=self.K,
            observation_size=OBSERVATION,
            action_size=ACTION,
            seed=0,
            device=self.device,
            dtype=dtype,
        )

    def batch(self) -> Batch:
        """Return random transitions."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(self.K, self.B, *shape, generator=generator).to(self.device)

        zeros = torch.zeros(self.K, self.B, device=self.device)
        return Batch(
            observations=normal(OBSERVATION),
            actions=normal(ACTION).tanh(),
            rewards=normal(),
            next_observations=normal(OBSERVATION),
            terminated=zeros,
            steps=zeros + 1,
        )

    @property
    def product_operations(self) -> int:
        """Of the product that the machine's rate is measured with: one hidden layer's."""
        return 2 * self.K * self.B * (self.critic_width or self.width) ** 2


Builder = Callable[[Shape], Callable[[], Any]]
"""Makes a contestant's update at a shape."""


@dataclass(frozen=True)
class Several:
    """A contestant's updates, so many a call."""

    take: Callable[[], Any]
    count: int

    def __call__(self) -> Any:
        """Take them."""
        return self.take()


def least_operations(shape: Shape) -> int:
    """Count the multiplications and additions in the matrix products that an update cannot avoid.

    Forward: the actor twice, the critics three times (targets, critics' step, actor's step), two
    each. Backward: weights and activations of actor and critics in their own steps, activations of
    the critics in the actor's, where each value is one of the two critics'. No gradients of inputs
    that nobody asks for; the one-hot is free.
    """

    def count(inputs: int, width: int, outputs: int) -> tuple[int, int]:
        inner = (shape.depth - 1) * width * width + width * outputs
        return inputs * width + inner, inner  # all layers, all but the first

    outputs = shape.config().value_bins if shape.categorical else 1
    critic, critic_inner = count(OBSERVATION + ACTION, shape.critic_width or shape.width, outputs)
    actor, actor_inner = count(OBSERVATION, shape.width, 2 * ACTION)
    to_actions = critic_inner + ACTION * (shape.critic_width or shape.width)
    forward = 2 * actor + 3 * 2 * critic
    backward = 2 * (critic + critic_inner) + to_actions + actor + actor_inner
    return 2 * shape.K * shape.B * (forward + backward)


def _ours(
    critics: str,
    actor: str,
    *,
    compiled: bool = False,
    captured: bool = False,
    dtype: torch.dtype = torch.float32,
    sampled: bool = False,
) -> Builder:
    def build(shape: Shape) -> Callable[[], Any]:
        agent = shape.agent(critics, actor, dtype)
        batch = shape.batch()
        replay = _filled_replay(shape) if sampled else None
        generators = [*agent.generators, *([replay.generator] if replay else [])]

        def update() -> dict[str, torch.Tensor]:
            return agent.update(replay.sample(shape.B) if replay else batch)

        if not (compiled or captured):
            return update
        count = AT_ONCE if shape.device == "cuda" else 1
        updates = Updates(
            update, at_once=count, generators=generators, device=shape.device, compiled=compiled
        )
        return Several(lambda: updates(count), count)

    return build


def _eager(name: str) -> Builder:
    def build(shape: Shape) -> Callable[[], Any]:
        from .eager import EagerSAC

        kind: type[EagerSAC] = EagerSAC
        backward = None
        if name != "uniform":
            from . import surgery  # needs torchjd

            kinds = {"autogram": surgery.AutogramSAC, "vmap": surgery.VmapSAC}
            kind = kinds.get(name, EagerSAC)
            backwards = {"passes": surgery.k_backward_passes, "autojac": surgery.autojac}
            backward = backwards.get(name)
        agent = kind(shape.config(), shape.K, OBSERVATION, ACTION, shape.device)
        if backward:
            agent.backward = backward
        batch = shape.batch()
        return lambda: agent.update(batch)

    return build


def _autocast(shape: Shape) -> Callable[[], Any]:
    update = _eager("uniform")(shape)

    def rounded() -> None:
        with torch.autocast(shape.device, torch.bfloat16):
            update()

    return rounded


def _jax(shape: Shape) -> Callable[[], Any]:
    import os

    # Read when JAX starts: as many threads as torch was given.
    os.environ["NPROC"] = str(torch.get_num_threads())
    from .jax_sac import JaxSAC

    if shape.categorical or shape.device != "cpu":
        raise NotImplementedError("written for scalar critics on a CPU only")
    agent, batch = JaxSAC(shape.config(), shape.K, OBSERVATION, ACTION), shape.batch()
    return lambda: agent.update(batch)


def _sampling(shape: Shape) -> Callable[[], Any]:
    replay = _filled_replay(shape)
    return lambda: replay.sample(shape.B)


def _filled_replay(shape: Shape) -> Replay:
    generator = torch.Generator().manual_seed(0)
    replay = Replay(
        shape.K,
        50_000,
        OBSERVATION,
        ACTION,
        generator=torch.Generator(shape.device).manual_seed(0),
        steps=8,
        discount=0.99,
    )
    N, steps = 100, 490
    observations = torch.randn(steps + 1, shape.K, N, OBSERVATION, generator=generator)
    ends = np.zeros((shape.K, N), np.bool_)
    for step in range(steps):
        ends[:] = step == steps - 1
        transitions = replace(shape, B=N, device="cpu").batch()
        replay.add(
            replace(
                transitions,
                observations=observations[step],
                next_observations=observations[step + 1],
            ),
            ends,
        )
    return replay


def _product(dtype: torch.dtype) -> Builder:
    def build(shape: Shape) -> Callable[[], Any]:
        width = shape.critic_width or shape.width
        left, right = torch.randn(shape.K * shape.B, width), torch.randn(width, width)
        left, right = left.to(shape.device, dtype), right.to(shape.device, dtype)
        result = torch.empty_like(left)
        return lambda: torch.mm(left, right, out=result)

    return build


BOTH = "gradnorm+pcgrad"

CONTESTANTS: dict[str, Builder] = {
    "ours": _ours("uniform", "uniform"),
    "pcgrad": _ours("pcgrad", "pcgrad"),
    "gradnorm": _ours("gradnorm", "gradnorm"),
    "surgery": _ours(BOTH, BOTH),
    "critics'": _ours(BOTH, "uniform"),
    "actor's": _ours("uniform", BOTH),
    "compiled": _ours("uniform", "uniform", compiled=True),
    "compiled surgery": _ours(BOTH, BOTH, compiled=True),
    "compiled sampled": _ours("uniform", "uniform", compiled=True, sampled=True),
    "sampling": _sampling,
    "eager": _eager("uniform"),
    "jax": _jax,
    "eager, K passes": _eager("passes"),
    "torchjd autojac": _eager("autojac"),
    "torchjd autogram": _eager("autogram"),
    "vmap of grad": _eager("vmap"),
}
"""Builders of updates by name. What they learn from is given, but for those that are `sampled`;
`sampling` alone draws it. On a GPU those that are `compiled` are captured as well."""

CAPTURED: dict[str, Builder] = {
    "captured": _ours("uniform", "uniform", captured=True),
    "captured surgery": _ours(BOTH, BOTH, captured=True),
    "captured sampled": _ours("uniform", "uniform", captured=True, sampled=True),
    "captured bf16": _ours("uniform", "uniform", captured=True, dtype=torch.bfloat16),
    "captured surgery bf16": _ours(BOTH, BOTH, captured=True, dtype=torch.bfloat16),
}
"""CUDA graphs of updates as they are. On a CPU these are the updates themselves."""

BF16: dict[str, Builder] = {
    "ours bf16": _ours("uniform", "uniform", dtype=torch.bfloat16),
    "surgery bf16": _ours(BOTH, BOTH, dtype=torch.bfloat16),
    "compiled bf16": _ours("uniform", "uniform", compiled=True, dtype=torch.bfloat16),
    "compiled surgery bf16": _ours(BOTH, BOTH, compiled=True, dtype=torch.bfloat16),
    "compiled sampled bf16": _ours(
        "uniform", "uniform", compiled=True, dtype=torch.bfloat16, sampled=True
    ),
    "eager, autocast": _autocast,
}
"""Those whose products are in bf16: for processors that multiply it."""

IN_BF16 = BF16.keys() | {name for name in CAPTURED if name.endswith("bf16")}
"""All whose products are."""

PRODUCTS: dict[str, Builder] = {
    "product": _product(torch.float32),
    "product bf16": _product(torch.bfloat16),
}
"""The matrix products that floors are computed from."""

BASES = {
    **dict.fromkeys(("pcgrad", "gradnorm", "surgery", "critics'", "actor's"), "ours"),
    "compiled surgery": "compiled",
    "surgery bf16": "ours bf16",
    "compiled surgery bf16": "compiled bf16",
    "compiled sampled": "compiled",
    **dict.fromkeys(("captured surgery", "captured sampled"), "captured"),
    "captured surgery bf16": "captured bf16",
    "compiled sampled bf16": "compiled bf16",
    **dict.fromkeys(
        ("eager, K passes", "torchjd autojac", "torchjd autogram", "vmap of grad"), "eager"
    ),
}
"""What some are compared with: the same update with uniform weights, or a batch that is given."""
