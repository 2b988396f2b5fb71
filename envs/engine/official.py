"""Official Python rewards and observations on the engine's physics.

For reward functions without kernels: exact by construction, and about as slow as the official
environments, since it is their own code that runs.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from .scene import MEASURES
from .simulation import Simulation
from .snapshot import LiveView, Snapshot
from .template import Template, numeric_attributes

_KINDS = ("array", "numpy", "python")


class OfficialRewards:
    """Evaluates rows with `evaluate_state`, each by a copy of its task's official environment."""

    def __init__(self, simulation: Simulation, templates: list[Template], rows: list[int]) -> None:
        """Make the copies, which share everything but numbers and simulation.

        Args:
            simulation: Steps the rows.
            templates: K, of all tasks.
            rows: The rows to evaluate here.
        """
        self._simulation = simulation
        envs_per_task = len(simulation.data) // len(templates)
        self._envs = {
            row: _share(templates[row // envs_per_task].env, simulation, row) for row in rows
        }

    def remade(self, simulation: Simulation, templates: list[Template]) -> OfficialRewards:
        """Make the same for another simulation, its rows yet to be restored."""
        return OfficialRewards(simulation, templates, list(self._envs))

    def __contains__(self, row: int) -> bool:
        return row in self._envs

    def restore(self, row: int, snapshot: Snapshot) -> None:
        """Give a row's environment the numbers that the official reset left."""
        data = self._simulation.data[row]
        for name, value in snapshot.attributes.items():
            if isinstance(value, LiveView):
                value = value.of(data)
            elif isinstance(value, np.ndarray):
                value = value.copy()
            setattr(self._envs[row], name, value)

    def evaluate(self, row: int) -> None:
        """Enter observation, reward and measures of the step taken in the simulation's buffers."""
        self._evaluate_row(row, self._envs[row])

    def evaluate_all(self, skipped: Container[int], missing: dict[int, BaseException]) -> None:
        """Evaluate all rows but diverged ones.

        Args:
            skipped: Rows to leave out as well.
            missing: Holds a TimeoutError for each row to come, and what those raised that failed.
                Whoever waits for this in another thread reads off it what is lost.
        """
        diverged = self._simulation.diverged
        sound = [row for row in self._envs if not diverged[row] and row not in skipped]
        missing |= dict.fromkeys(sound, TimeoutError("its reward took too long"))
        for row in sound:
            try:
                self.evaluate(row)
                del missing[row]
            except Exception as error:
                missing[row] = error

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Return the environments' numbers as arrays, by `attributes/ROW/KIND/NAME`."""
        return {
            f"attributes/{row}/{_kind(value)}/{name}": np.asarray(value)
            for row, env in self._envs.items()
            for name, value in numeric_attributes(env).items()
            if value is not None and not isinstance(value, LiveView)
        }

    def set_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `get_state` returned, after every row's own `restore`.

        Args:
            state: As `refuse_foreign` accepts it.
        """
        for key, value in state.items():
            _, row, kind, name = key.split("/", 3)
            restored = {"array": value.copy, "numpy": lambda v=value: v[()], "python": value.item}
            setattr(self._envs[int(row)], name, restored[kind]())

    def refuse_foreign(self, state: dict[str, NDArray[Any]]) -> None:
        """Refuse what `set_state` cannot restore.

        Raises:
            ValueError: for a row that is not evaluated here, or a key of another form.
        """
        for key in state:
            _, row, kind, _ = (*key.split("/", 3), "", "", "")[:4]
            if not row.isdigit() or int(row) not in self._envs or kind not in _KINDS:
                raise ValueError(f"`state` holds {key!r}: no such official reward runs here")

    def _evaluate_row(self, row: int, env: SawyerXYZEnv) -> None:
        simulation = self._simulation
        simulation.model_of(row)  # several rewards look up positions in the model
        env.curr_path_length += 1
        space = env.sawyer_observation_space
        observation = np.clip(env._get_obs(), a_max=space.high, a_min=space.low, dtype=np.float64)
        reward, info = env.evaluate_state(observation, simulation.actions[row])
        simulation.observations[row] = observation
        simulation.measures["reward"][row] = reward
        for name in MEASURES:
            simulation.measures[name][row] = info[name]


def _kind(value: Any) -> str:
    """Tell NumPy's scalars from Python's: beside float32 the two round differently."""
    if isinstance(value, np.ndarray):
        return "array"
    return "numpy" if isinstance(value, np.generic) else "python"


def _share(env: SawyerXYZEnv, simulation: Simulation, row: int) -> SawyerXYZEnv:
    """Copy an environment around the row's simulation, without loading its model again."""
    shared = object.__new__(type(env))
    vars(shared).update(vars(env))
    shared.model = simulation.model_of(row)
    shared.data = simulation.data[row]
    return shared
