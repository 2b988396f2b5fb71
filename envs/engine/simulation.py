"""The simulations of all environments and the buffers that kernels fill."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from . import native
from .compiler import c_function
from .kernels import step_chunks, step_rows
from .rig import (
    FRAME_SIZE,
    LIVE_DTYPE,
    OBSERVATION_SIZE,
    RIG_DTYPE,
    fill_physics,
    fill_task,
    set_model,
)
from .scene import MEASURES_DTYPE, Task, scene_dtype
from .snapshot import Snapshot
from .template import STATE_SPEC, Template
from .workers import Job

_CHUNKS_PER_THREAD = 8  # of which the threads help themselves, so that none waits long


class Simulation:
    """N environments of each of K tasks, E = K*N rows in all; row `k * N + n`.

    Attributes:
        observations: (E, 39) of the last step or reset.
        measures: (E,) records of `MEASURES_DTYPE` of the last step.
        diverged: (E,) whether MuJoCo gave up on the last step.
        actions: (E, 4) float32; to be filled before a step.
        frames: (E, 18) what the next observations will show as the previous frame.
        data: E.
    """

    def __init__(
        self,
        templates: Sequence[Template],
        tasks: Sequence[Task | None],
        envs_per_task: int,
        num_threads: int,
    ) -> None:
        """Create the simulations; no row is usable before its first `restore`.

        Args:
            templates: K.
            tasks: K; None where only the physics is stepped here.
            envs_per_task: N.
            num_threads: How many threads will run the jobs of a step.
        """
        self._templates = templates
        self._tasks = list(tasks)
        self._envs_per_task = envs_per_task
        self._num_threads = num_threads
        rows = len(templates) * envs_per_task
        self.actions = np.zeros((rows, 4), np.float32)
        self.observations = np.zeros((rows, OBSERVATION_SIZE))
        self.measures = np.zeros(rows, MEASURES_DTYPE)
        self.diverged = np.zeros(rows, np.bool_)
        self.frames = np.zeros((rows, FRAME_SIZE))
        self._forwarded = np.zeros(rows, np.bool_)

        models = [templates[row // envs_per_task].env.model for row in range(rows)]
        self._body_pos = _rows_of([model.body_pos for model in models])
        self._site_pos = _rows_of([model.site_pos for model in models])
        self.data = [mujoco.MjData(model) for model in models]
        self._scenes: list[NDArray[Any]] = []
        self._rigs = np.zeros(rows, RIG_DTYPE)
        self._live = self._fill_rigs()
        self._rig_records = native.records(self._rigs)
        self._chunks = np.array(split_rows(len(templates), envs_per_task, num_threads))
        self._buffers = (
            self._rig_records,
            self._live,
            self._body_pos,
            self._site_pos,
            self._forwarded,
            self.actions,
            self.frames,
            self.observations,
            self.diverged,
        )
        self._finished = np.zeros(len(self._chunks), np.bool_)
        self._models = self._share_models()

    def remade(self, templates: Sequence[Template]) -> Simulation:
        """Make the same anew, with nothing in common but what `templates` still share."""
        return Simulation(templates, self._tasks, self._envs_per_task, self._num_threads)

    def restore(self, row: int, snapshot: Snapshot) -> None:
        """Put one row in the state after an official reset."""
        self.set_physics(row, snapshot.physics)
        self._body_pos[row, : snapshot.body_pos.size] = snapshot.body_pos
        self._site_pos[row, : snapshot.site_pos.size] = snapshot.site_pos
        self.frames[row] = snapshot.frame
        self.observations[row] = snapshot.observation
        task = self._tasks[row // self._envs_per_task]
        if task is not None:
            scene = self._scenes[row]
            for name, value in snapshot.constants(task).items():
                scene[name] = value

    def begin(self, resting: NDArray[np.bool_] | None = None) -> Job:
        """Begin a step with `actions`.

        Args:
            resting: Rows (K*N,) that are not stepped.

        Returns:
            What steps the rows; several threads may run it at once and share the work. It knows its
            own step only: a thread that comes back late takes nothing of another.
        """
        next_chunk = np.zeros(1, np.int64)
        chunks = self._chunks
        left_out = np.zeros(len(self.diverged), np.bool_)
        if resting is not None:
            left_out[:] = resting
        self._finished = finished = np.zeros(len(chunks), np.bool_)

        def step_all() -> None:
            failure = None
            for _ in range(len(chunks) + 1):  # a chunk that raises does not stop the others
                try:
                    step_chunks(chunks, next_chunk.ctypes.data, finished, left_out, *self._buffers)
                    break
                except Exception as error:
                    failure = error
            if failure is not None:
                raise failure

        return step_all

    def unfinished_rows(self) -> list[int]:
        """Return the rows that have not been stepped since `begin`."""
        missing = np.flatnonzero(~self._finished)
        return [row for chunk in missing for row in range(*self._chunks[chunk])]

    def step_rows(self, first: int, end: int) -> None:
        """Step the rows `first` to `end - 1` with `actions`."""
        step_rows(first, end, np.zeros(len(self.diverged), np.bool_), *self._buffers)

    def model_of(self, row: int) -> mujoco.MjModel:
        """Return the model that a row is stepped with, its positions set to the row's goal."""
        model = self._models[row]
        model.body_pos.ravel()[:] = self._body_pos[row, : model.body_pos.size]
        model.site_pos.ravel()[:] = self._site_pos[row, : model.site_pos.size]
        return model

    def drawable(self, row: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return a row's model and simulation with all that a picture shows computed."""
        model, data = self.model_of(row), self.data[row]
        if not self._forwarded[row]:  # restored; the next step computes these again anyway
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_camlight(model, data)
        return model, data

    def use_python_reward(self, task_index: int) -> None:
        """Step only the physics of a task from now on."""
        self._tasks[task_index] = None
        rows = slice(task_index * self._envs_per_task, (task_index + 1) * self._envs_per_task)
        self._rigs["reward"][rows] = 0

    def physics(self, row: int) -> NDArray[np.float64]:
        """Copy MuJoCo's integration state of a row (S,)."""
        model, data = self._models[row], self.data[row]
        state = np.empty(mujoco.mj_stateSize(model, STATE_SPEC))
        mujoco.mj_getState(model, data, state, STATE_SPEC)
        return state

    def set_physics(self, row: int, state: NDArray[np.float64]) -> None:
        """Restore what `physics` returned."""
        mujoco.mj_setState(self._models[row], self.data[row], state, STATE_SPEC)
        self._forwarded[row] = False

    def get_scenes(self) -> NDArray[np.uint8]:
        """Copy the scene records, which a reward may write to, as bytes (E, *)."""
        return _rows_of([scene.view(np.uint8) for scene in self._scenes])

    def set_scenes(self, scenes: NDArray[np.uint8]) -> None:
        """Restore what `get_scenes` returned."""
        for scene, saved in zip(self._scenes, scenes, strict=True):
            scene.view(np.uint8)[:] = saved[: scene.nbytes]

    def _fill_rigs(self) -> NDArray[Any]:
        live: list[tuple[int, int, int]] = []
        rewards: dict[int, int] = {}
        for row, rig in enumerate(self._rigs):
            index = row // self._envs_per_task
            template, task = self._templates[index], self._tasks[index]
            fill_physics(rig, template.env, self.data[row])
            rig["measures"] = self.measures[row : row + 1].ctypes.data
            if task is None:
                self._scenes.append(np.zeros(0, np.uint8))
                continue
            constants = template.snapshot(0).constants(task)
            scene = np.zeros(1, scene_dtype(task, self.data[row], constants))
            self._scenes.append(scene)
            rig["first_live"] = len(live)
            live += fill_task(rig, task, self.data[row], scene)
            rig["end_live"] = len(live)
            if index not in rewards:
                rewards[index] = compile_reward(task.evaluate, scene.dtype)
            rig["reward"] = rewards[index]
        return native.records(np.array(live, LIVE_DTYPE))

    def _share_models(self) -> list[mujoco.MjModel]:
        """Give every row a model that only its own chunk uses.

        A step writes its goal's positions into the model, so two threads must never share one. A
        copy (20 MB) is needed only where a task's rows fall into several chunks.
        """
        models: list[mujoco.MjModel] = []
        in_use: set[int] = set()
        for first, end in self._chunks.tolist():
            own: dict[int, mujoco.MjModel] = {}
            for row in range(first, end):
                index = row // self._envs_per_task
                if index not in own:
                    model = self._templates[index].env.model
                    own[index] = copy.copy(model) if index in in_use else model
                    in_use.add(index)
                models.append(own[index])
                set_model(self._rigs[row], own[index])
        return models


def split_rows(num_tasks: int, envs_per_task: int, num_threads: int) -> list[tuple[int, int]]:
    """Split K*N rows into (first, end) chunks, along task boundaries where that is enough.

    Args:
        num_tasks: K.
        envs_per_task: N.
        num_threads: How many threads take chunks; every one should find at least two.
    """
    if num_tasks >= 2 * num_threads:
        edges = np.linspace(0, num_tasks, min(num_tasks, _CHUNKS_PER_THREAD * num_threads) + 1)
        starts = [int(edge) * envs_per_task for edge in edges.round()]
        return list(itertools.pairwise(starts))
    parts = min(envs_per_task, math.ceil(2 * num_threads / num_tasks))
    chunks = []
    for task_index in range(num_tasks):
        edges = np.linspace(0, envs_per_task, parts + 1).round()
        starts = [task_index * envs_per_task + int(edge) for edge in edges]
        chunks += list(itertools.pairwise(starts))
    return chunks


def _rows_of(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Stack flattened arrays of different sizes, padded with zeros."""
    widest = max(array.size for array in arrays)
    return np.array([np.pad(array.ravel(), (0, widest - array.size)) for array in arrays])


_compiled: dict[tuple[Callable[..., None], str], object] = {}


def compile_reward(evaluate: Callable[..., None], scene: np.dtype[Any]) -> int:
    """Compile a task's reward for its scene record: the address of the C function."""
    key = (evaluate, str(scene))
    if not native.COMPILED:
        return native.register_uncompiled(evaluate, scene, MEASURES_DTYPE)
    if key not in _compiled:
        signature = types.void(numba.from_dtype(scene), numba.from_dtype(MEASURES_DTYPE))
        _compiled[key] = c_function(evaluate, signature)
    return int(_compiled[key].address)  # type: ignore[attr-defined]
