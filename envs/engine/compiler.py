"""How kernels are compiled and where the result is kept.

Under pytest every function is wrapped to check its annotations; kernels are compiled without.
"""

import contextlib
import functools
import hashlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.errors import NumbaWarning

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function to run without the GIL; cached on disk between processes."""
    with _cache_folder() as cached:
        return cast(F, numba.njit(nogil=True, cache=cached)(inspect.unwrap(function)))


def c_function(function: Callable[..., None], signature: Any) -> Any:
    """Compile a function so that C, or another kernel, can call it by address."""
    with _cache_folder() as cached:
        return numba.cfunc(signature, cache=cached)(inspect.unwrap(function))


@functools.cache
def cache_path() -> Path | None:
    """Find a folder of this version of the sources, or None where none can be written.

    Numba notices a change in a kernel's own file but not in the functions it has inlined from
    other files, so the folder is named after the content of all of them.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sources:
        digest.update(source.read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "mtrl" / f"kernels-{digest.hexdigest()[:16]}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None


@contextlib.contextmanager
def _cache_folder() -> Iterator[bool]:
    """Make Numba cache what is decorated inside in `cache_path`."""
    path = cache_path()
    before = numba.config.CACHE_DIR
    if path is not None:
        numba.config.CACHE_DIR = str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaWarning)
            yield path is not None and not numba.config.DISABLE_JIT
    finally:
        numba.config.CACHE_DIR = before
