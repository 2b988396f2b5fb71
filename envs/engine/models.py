"""Compiled MuJoCo models, kept on disk: 20 ms a task instead of 170."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import metaworld
import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from mtrl.cache import cache_folder, tell_of_compiling

from ..metaworld import make_official_env
from ..registry import environment_class
from .cache import environment, write_file


def make_environments(
    task_names: Sequence[str], reward_version: str, num_threads: int
) -> list[SawyerXYZEnv]:
    """Make an official environment of each task around a model from the cache.

    Args:
        task_names: K names of V3 tasks.
        reward_version: `v1` or `v2`.
        num_threads: How many files are checked at a time.
    """
    classes = [environment_class(name) for name in task_names]
    models = load_models([_xml(kind) for kind in classes], num_threads)
    return [
        make_official_env(name, reward_version, _around(kind, model))
        for name, kind, model in zip(task_names, classes, models, strict=True)
    ]


def load_models(xmls: Sequence[Path], num_threads: int) -> list[mujoco.MjModel]:
    """Load models of the official package from the cache, or compile and keep them (21 MB each).

    All models are loaded before anything else is allocated: what a simulation allocates would
    settle in the buffers that loading has just freed, and 50 tasks would take 2.1 GB, not 1.2.

    Args:
        xmls: Files of the official package; each gets a model of its own, also when repeated.
        num_threads: How many files are checked at a time.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        binaries = pool.map(_find_intact, xmls)
        return [_load_or_compile(*pair) for pair in zip(xmls, binaries, strict=True)]


def model_origin(xml: Path) -> tuple[object, ...]:
    """All that a compiled model depends on: MuJoCo, the file, and what lies beside it."""
    return environment(), str(xml), _assets(_root(xml))


def _root(xml: Path) -> Path:
    """The folder of all that a file may include: the package's, or that of a file elsewhere."""
    official = Path(metaworld.__file__).parent / "assets"
    return official if xml.is_relative_to(official) else xml.parent


def _folder(xml: Path) -> Path | None:
    return cache_folder("models", *model_origin(xml))


def _find_intact(xml: Path) -> Path | None:
    """Find a model whose name ends, as it should, with its content's SHA-256."""
    folder = _folder(xml)
    for path in folder.glob("*.mjb") if folder else ():
        with contextlib.suppress(OSError):  # another process may tidy up at the same time
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if path.name == f"{xml.stem}.{digest}.mjb":
                return path
            path.unlink()
    return None


def _load_or_compile(xml: Path, binary: Path | None) -> mujoco.MjModel:
    if binary is not None:
        with contextlib.suppress(OSError, ValueError):
            return mujoco.MjModel.from_binary_path(str(binary))
    tell_of_compiling()
    model = mujoco.MjModel.from_xml_path(str(xml))
    if folder := _folder(xml):
        content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, content)
        digest = hashlib.sha256(content.data).hexdigest()
        write_file(folder / f"{xml.stem}.{digest}.mjb", content.data)
    return model


def _xml(official: type[SawyerXYZEnv]) -> Path:
    return Path(object.__new__(official).model_name)  # a property that needs no instance


def _around(official: type[SawyerXYZEnv], model: mujoco.MjModel) -> type[SawyerXYZEnv]:
    """Derive from an official class one that simulates `model` instead of compiling its own."""

    def _initialize_simulation(self: SawyerXYZEnv) -> tuple[mujoco.MjModel, mujoco.MjData]:
        size = model.vis.global_
        size.offwidth = max(size.offwidth, self.width)
        size.offheight = max(size.offheight, self.height)
        return model, mujoco.MjData(model)

    return type(official.__name__, (official,), {"_initialize_simulation": _initialize_simulation})


@functools.cache
def _assets(root: Path) -> tuple[tuple[str, int, int], ...]:
    """List what models are compiled from, so that an edited file is noticed."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
