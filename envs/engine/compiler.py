"""How kernels are compiled and where the result is kept.

Under pytest every function is wrapped to check its annotations; kernels are compiled without.
"""

import contextlib
import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.errors import NumbaWarning

from .cache import cache_folder

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
    other files, so the folder follows from the content of all of them.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return cache_folder("kernels", numba.__version__, digest.hexdigest())


def nothing_compiled() -> bool:
    """Tell whether this version of the sources has not run on this machine yet."""
    path = cache_path()
    return path is None or not any(path.rglob("*.nbc"))


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
