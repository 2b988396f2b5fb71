"""What the parts of mtrl hand each other, and the protocols the training loop is written against.

Axis letters, the same in every signature: K tasks, B transitions per task in a batch, N
environments per task, O observation size, A action size, P shared parameters, E critics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

State = dict[str, Any]
"""A nested dictionary of tensors, arrays, numbers and strings: what a checkpoint can hold."""


@dataclass(frozen=True)
class Batch:
    """Transitions with a leading task axis, from one time step of K x N environments or sampled.

    Attributes:
        observations: What the agent saw, ``(K, B, O)``, without the task one-hot.
        actions: What it did, in [-1, 1], ``(K, B, A)``.
        rewards: What it got, ``(K, B)``, in the environment's own units; of several steps the
            discounted sum.
        next_observations: What it saw next, ``(K, B, O)``, or after several steps. At an episode's
            end this is that episode's true last observation, never the next episode's first.
        terminated: 1 where the task itself ended there and no value follows, else 0, ``(K, B)``. A
            time limit does not terminate: values bootstrap through it.
        steps: How many steps lie between the two observations, ``(K, B)``.
    """

    observations: Float[Tensor, "K B O"]
    actions: Float[Tensor, "K B A"]
    rewards: Float[Tensor, "K B"]
    next_observations: Float[Tensor, "K B O"]
    terminated: Float[Tensor, "K B"]
    steps: Float[Tensor, "K B"]


@runtime_checkable
class Stateful(Protocol):
    """Anything a checkpoint has to keep."""

    def state_dict(self) -> State:
        """Return everything needed to go on, as a nested dictionary."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go on from what `state_dict` returned."""
        ...


@runtime_checkable
class Agent(Stateful, Protocol):
    """Acts in K tasks at once and learns from batches with a leading task axis.

    Attributes:
        generators: All that updates draw from.
    """

    @property
    def generators(self) -> Sequence[torch.Generator]: ...  # noqa: D102

    def act(
        self, observations: Float[Tensor, "K N O"], *, deterministic: bool = False
    ) -> Float[Tensor, "K N A"]:
        """Choose actions ``(K, N, A)`` in [-1, 1], given observations ``(K, N, O)``.

        Unless deterministic, an agent may remember what it did before in the n-th environment.
        """
        ...

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step; return detached metrics, ``(K,)`` per task or ``()`` in all."""
        ...


@runtime_checkable
class Weighting(Stateful, Protocol):
    """Turns K per-task gradients into one, by looking at K x K numbers about them.

    Attributes:
        needs_gramian: False if the Gramian is never looked at; it may be None then, which saves
            finding it.
    """

    @property
    def needs_gramian(self) -> bool: ...  # noqa: D102

    def __call__(self, gramian: Any, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return the weight of each task's gradient in the update.

        Args:
            gramian: Inner products ``(K, K)`` of the tasks' gradients over all shared parameters;
                its diagonal holds their squared norms.
            losses: The tasks' losses, by which their training rates are judged.

        Returns:
            Weights ``w``; the update follows ``sum_i w[i] * gradient_i``.
        """
        ...

    def reset(self) -> None:
        """Forget everything learned since construction."""
        ...


@runtime_checkable
class Logger(Protocol):
    """Somewhere metrics go."""

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Take one record of flat ``name: value`` pairs."""
        ...

    def close(self) -> None:
        """Flush and let go of everything."""
        ...


@runtime_checkable
class Environments(Protocol):
    """K x N environments behind `gymnasium.vector.VectorEnv`, environment ``k * N + n`` of task k.

    They reset in the step that ends an episode; the episode's true last observation is then in
    ``infos["final_obs"]``, its goal in ``infos["goal_index"]``.
    """

    task_names: tuple[str, ...]
    num_tasks: int
    envs_per_task: int
    num_goals: int
    ends_with_success: bool
    single_observation_space: Any
    single_action_space: Any

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes; return observations ``(K * N, O)`` and infos."""
        ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take one step everywhere.

        Args:
            actions: ``(K * N, A)``, in [-1, 1].

        Returns:
            Observations ``(K * N, O)``, rewards, terminated and truncated ``(K * N,)``, and infos
            of the step taken, among them ``success``, ``goal_index`` and ``diverged`` ``(K * N,)``
            and ``final_obs (K * N, O)``, what was seen before any reset. Where ``diverged``, the
            simulation gave up: nothing of that step happened, and the episode is over.
        """
        ...

    def send(self, actions: Any) -> None:
        """Start a step; the caller may do something else until `recv`, and reuse the array."""
        ...

    def recv(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Wait for the step that `send` started; return what `step` returns."""
        ...

    def get_state(self) -> State:
        """Return what is needed to go on exactly here, inside episodes too."""
        ...

    def set_state(self, state: State) -> None:
        """Go on from what `get_state` returned; no reset must follow."""
        ...

    def close(self, **kwargs: Any) -> None:
        """Let go of everything."""
        ...
