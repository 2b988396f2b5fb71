"""Tiny tasks that conflict with one another, without a simulator."""

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from .goals import NUM_GOALS
from .vector import MultiTaskVectorEnv, Outcome, VectorOptions, require_array

# The target is the observed goal, turned by this many quarter turns about the origin.
_QUARTER_TURNS = {"toy-reach": 0, "toy-left": 1, "toy-mirror": 2, "toy-right": 3}
TOY_TASKS = tuple(_QUARTER_TURNS)

EPISODE_STEPS = 25
STEP_SIZE = 0.1
SUCCESS_RADIUS = 0.1
ARENA = 1.5


class ToyVectorEnv(MultiTaskVectorEnv):
    """A point in the plane that must go to, or beside, or opposite of the goal it is shown.

    All tasks start at the origin and observe the same thing, so without the one-hot the best
    actions of `toy-reach` and `toy-mirror` cancel, as do those of `toy-left` and `toy-right`.

    - Observation (O = 4): position (2), goal (2), at a distance of 0.6 to 1 from the origin.
    - Action (A = 2), clipped to [-1, 1]: position += 0.1 * action, kept inside [-1.5, 1.5].
    - Reward: 10 * exp(-2 d) in (0, 10], where d is the distance to the task's target.
    - Success: d <= 0.1 after the step.
    - `infos`: `success`, `obj_to_target` (d) and `unscaled_reward`.
    """

    def __init__(
        self, task_names: tuple[str, ...], options: VectorOptions, *, goal_seed: int
    ) -> None:
        """Draw the 50 goals, which all tasks share."""
        bounds = np.array([ARENA, ARENA, 1.0, 1.0])
        super().__init__(
            task_names,
            options,
            observation_space=Box(-bounds, bounds, dtype=np.float64),
            action_space=Box(-1.0, 1.0, (2,), np.float32),
        )
        generator = np.random.default_rng(goal_seed)
        angles = generator.uniform(-np.pi, np.pi, NUM_GOALS)
        radii = generator.uniform(0.6, 1.0, NUM_GOALS)
        goals = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self._goals = goals
        self._targets = np.stack([_turned(goals, _QUARTER_TURNS[name]) for name in task_names])
        self._observations = np.zeros((self.num_envs, 4))
        self._target = np.zeros((self.num_envs, 2))  # of the episode under way

    def _reset_envs(
        self, indices: NDArray[np.int64], goal_indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        self._observations[indices, :2] = 0.0
        self._observations[indices, 2:] = self._goals[goal_indices]
        self._target[indices] = self._targets[indices // self.envs_per_task, goal_indices]
        return self._observations[indices]

    def _end_step(self) -> Outcome:
        position = self._observations[:, :2]
        position += STEP_SIZE * np.clip(self._actions, -1.0, 1.0)
        np.clip(position, -ARENA, ARENA, out=position)
        distance = np.linalg.norm(position - self._target, axis=1)
        rewards = 10.0 * np.exp(-2.0 * distance)
        infos = {
            "success": distance <= SUCCESS_RADIUS,
            "obj_to_target": distance,
            "unscaled_reward": rewards,
        }
        return Outcome(self._observations, rewards, infos)

    def get_state(self) -> dict[str, Any]:
        """Add where the points are; see `MultiTaskVectorEnv.get_state`."""
        return {**super().get_state(), "observations": self._observations.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned; see `MultiTaskVectorEnv.set_state`."""
        require_array(state, "observations", self._observations.shape)
        super().set_state(state)
        self._observations[:] = state["observations"]
        tasks = np.arange(self.num_envs) // self.envs_per_task
        self._target[:] = self._targets[tasks, self._goal_indices]


def _turned(points: NDArray[np.float64], quarter_turns: int) -> NDArray[np.float64]:
    """Turn `points` (M, 2) about the origin, counter-clockwise."""
    for _ in range(quarter_turns):
        points = np.stack([-points[:, 1], points[:, 0]], axis=1)
    return points
