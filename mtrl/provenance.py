"""Which versions ran on which machine: what a result has to state to be worth repeating."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from .cores import available_cores

DISTRIBUTIONS = {
    "mtrl": "mtrl-metaworld",  # the bare name belongs to a stranger on the package index
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "gymnasium": "gymnasium",
    "metaworld": "metaworld",
    "mujoco": "mujoco",
    "numba": "numba",  # and what it compiles with: they decide how the simulation's numbers round
    "llvmlite": "llvmlite",
}


def library_versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries that decide a result; None where not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in DISTRIBUTIONS.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def machine() -> dict[str, str | int | None]:
    """Operating system, processor, logical cores, those this process may use, and the GPU."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": available_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_model() -> str:
    # `platform.processor()` is empty or just the architecture on most Linux systems.
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
