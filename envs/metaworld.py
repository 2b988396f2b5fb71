"""Meta-World through the official package's own environment classes."""

import functools
import logging
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from .goals import NUM_GOALS
from .official_state import get_attributes, get_physics, physics_size, restore
from .registry import environment_class
from .rendering import MujocoVectorEnv
from .vector import Outcome, VectorOptions, require_array

_logger = logging.getLogger("mtrl")

OBSERVATION_SIZE = 39
MEASURES = (
    "success",
    "near_object",
    "grasp_success",
    "grasp_reward",
    "in_place_reward",
    "obj_to_target",
    "unscaled_reward",
)


class OfficialVectorEnv(MujocoVectorEnv):
    """The official classes, stepped one after the other; bit-equal to using them by hand.

    `infos` holds the package's measures: `success` as bool, the others as float64; and `diverged`:
    where it is True, MuJoCo gave up on the simulation. The episode is truncated there with the
    last sound observation, reward and measures 0.

    Goals are the official package's for `goal_seed`: those of `metaworld.MT10(seed=goal_seed)`
    for a named benchmark, those of `metaworld.MT1(name, seed=goal_seed)` for single tasks and
    lists, so that a task's goals do not depend on its neighbours in a list. The two differ from
    each other (the package draws a benchmark's goals as one stream over its tasks).
    """

    def __init__(
        self,
        task_names: tuple[str, ...],
        options: VectorOptions,
        *,
        reward_version: str,
        goal_seed: int,
        one_goal_stream: bool,
    ) -> None:
        """Load K*N models (about 0.25 s and 20 MB each) and draw K x 50 goals.

        Args:
            task_names: Names of V3 tasks.
            options: The caller's choices.
            reward_version: `v1` or `v2`.
            goal_seed: Seed of the 50 goals of every task.
            one_goal_stream: Whether the goals of all tasks come from one stream, as a named
                benchmark's do, or from one stream per task.
        """
        self._envs = [
            make_official_env(name, reward_version)
            for name in task_names
            for _ in range(options.envs_per_task)
        ]
        first_of_each_task = self._envs[:: options.envs_per_task]
        self._goals = draw_goals(first_of_each_task, goal_seed, one_stream=one_goal_stream)
        super().__init__(
            task_names,
            options,
            observation_space=common_observation_space(first_of_each_task),
            action_space=Box(-1.0, 1.0, (4,), np.float32),
        )
        self._observations = np.zeros((self.num_envs, OBSERVATION_SIZE))
        self._rewards = np.empty(self.num_envs)
        self._infos: dict[str, NDArray[Any]] = {
            name: np.empty(self.num_envs, np.bool_ if name == "success" else np.float64)
            for name in MEASURES
        }
        self._infos["diverged"] = np.zeros(self.num_envs, np.bool_)

    def _reset_envs(
        self, indices: NDArray[np.int64], goal_indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        observations = np.empty((len(indices), OBSERVATION_SIZE))
        for row, (index, goal) in enumerate(zip(indices, goal_indices, strict=True)):
            env = self._envs[index]
            # What `set_task` does, without unpickling. A copy, since tasks keep views of it.
            env._last_rand_vec = self._goals[index // self.envs_per_task][goal].copy()
            observations[row], _ = env.reset()
        self._observations[indices] = observations
        return observations

    def _end_step(self) -> Outcome:
        for index, (env, action) in enumerate(zip(self._envs, self._actions, strict=True)):
            if self._resting[index]:
                continue
            before = env.data.time
            observation, reward, _, _, info = env.step(action)
            info["diverged"] = has_diverged(env, before)
            if info["diverged"]:
                self._end_lost(index)
                continue
            self._observations[index], self._rewards[index] = observation, reward
            for name, values in self._infos.items():
                values[index] = info[name]
        return Outcome(self._observations, self._rewards, self._infos)

    def _end_lost(self, index: int) -> None:
        for name, values in self._infos.items():
            values[index] = name == "diverged"
        self._rewards[index] = 0.0
        self._elapsed[index] = self.max_episode_steps - 1  # so that this step is the last
        name = self.task_names[index // self.envs_per_task]
        _logger.warning("the simulation of %s diverged and was reset", name)

    def _physics(self, index: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        return self._envs[index].model, self._envs[index].data

    def get_state(self) -> dict[str, Any]:
        """Add physics and attributes; see `MultiTaskVectorEnv.get_state`."""
        physics = [get_physics(env) for env in self._envs]
        widest = max(state.size for state in physics)
        return {
            **super().get_state(),
            "physics": np.array([np.pad(state, (0, widest - state.size)) for state in physics]),
            "attributes": [get_attributes(env) for env in self._envs],
            "observations": self._observations.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned; see `MultiTaskVectorEnv.set_state`."""
        widest = max(physics_size(env) for env in self._envs)
        require_array(state, "physics", (self.num_envs, widest))
        require_array(state, "observations", self._observations.shape)
        super().set_state(state)
        self._reset_envs(np.arange(self.num_envs), self._goal_indices)
        for env, physics, attributes in zip(
            self._envs, state["physics"], state["attributes"], strict=True
        ):
            restore(env, physics[: physics_size(env)], attributes)
        self._observations[:] = state["observations"]

    def close_extras(self, **kwargs: Any) -> None:
        """Close the official environments."""
        super().close_extras(**kwargs)
        for env in self._envs:
            env.close()


def has_diverged(env: SawyerXYZEnv, time_before: float) -> bool:
    """Tell whether MuJoCo gave up on a simulation in the step that began at that time.

    What the last substep broke would else be found by the next step, an observation too late.
    """
    for check in (mujoco.mj_checkPos, mujoco.mj_checkVel, mujoco.mj_checkAcc):
        check(env.model, env.data)
    # On a bad position, velocity or acceleration it resets the simulation, time included.
    return bool(env.data.time <= time_before)


def draw_goals(
    envs: list[SawyerXYZEnv], seed: int, *, one_stream: bool
) -> list[NDArray[np.float64]]:
    """Draw each task's 50 goals as the official benchmarks do, 15 times faster.

    The package draws goals by resetting a task 50 times under NumPy's global generator. A goal
    depends on the numbers drawn and on the task's own rejection rule, but not on the physics, so
    here the hand settles for one step instead of 50 at each reset, and the numbers come from a
    private generator with the same stream.

    Args:
        envs: One environment per task, K in all; left with no goal set.
        seed: Seed of the goals.
        one_stream: Whether one stream of numbers runs through all tasks (`metaworld.MT10`) or
            starts over at each (`metaworld.MT1`).

    Returns:
        K arrays (50, G), where G is the task's number of random coordinates.
    """
    goals = []
    generator = np.random.RandomState(seed)
    for env in envs:
        goals.append(_draw_task_goals(env, generator))
        if not one_stream:
            generator = np.random.RandomState(seed)
    return goals


def _draw_task_goals(env: SawyerXYZEnv, generator: np.random.RandomState) -> NDArray[np.float64]:
    space = env._random_reset_space
    drawn: list[NDArray[np.float64]] = []

    def draw() -> NDArray[np.float64]:
        drawn.append(generator.uniform(space.low, space.high, size=space.low.size))
        return drawn[-1]

    env._reset_hand = functools.partial(env._reset_hand, steps=1)
    env._get_state_rand_vec = draw
    goals = []
    for _ in range(NUM_GOALS):
        env.reset()
        goals.append(drawn[-1].copy())  # a reset rejects draws, and so keeps the last
    del env._reset_hand, env._get_state_rand_vec  # uncovers the class's own
    return np.array(goals)


def make_official_env(
    name: str, reward_version: str, environment: type[SawyerXYZEnv] | None = None
) -> SawyerXYZEnv:
    """Make one of the package's environments, its goal observed and still to be given.

    Args:
        name: Name of a V3 task.
        reward_version: `v1` or `v2`.
        environment: Its class; the package's own by default.
    """
    environment = environment or environment_class(name)
    env = environment(reward_function_version=reward_version)
    # The state that `set_task` leaves: the goal is observed, and given rather than drawn.
    env._set_task_called = True
    env._freeze_rand_vec = True
    env._partially_observable = False
    del env.sawyer_observation_space  # cached while the goal was still hidden
    return env


def common_observation_space(envs: list[SawyerXYZEnv]) -> Box:
    """Return the smallest box around the tasks' official observation spaces.

    The package clips what a step returns to the task's space, but not what a reset returns. That
    stayed inside too, for all 50 tasks and the 100 goals each of two goal seeds.
    """
    spaces = [env.sawyer_observation_space for env in envs]
    return Box(
        np.min([space.low for space in spaces], axis=0),
        np.max([space.high for space in spaces], axis=0),
        dtype=np.float64,
    )
