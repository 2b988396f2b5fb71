"""How kernels are compiled and where the result is kept.

Under pytest every function is wrapped to check its annotations; kernels are compiled without.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils, event
from numba.core.errors import NumbaWarning
from numba.extending import intrinsic

from .cache import cache_folder, tell_of_compiling

F = TypeVar("F", bound=Callable[..., Any])

LINE = 64
"""Bytes that come from memory at once."""


_files: set[str] = set()
"""Where the functions are that are compiled here."""


class _Teller(event.Listener):  # type: ignore[misc]
    """Is told by Numba of each function that it did not find in the cache."""

    def on_start(self, event: Any) -> None:
        """Tell the user, once; what is somebody else's is up to them."""
        if event.data["dispatcher"].py_func.__code__.co_filename in _files:
            tell_of_compiling()

    def on_end(self, event: Any) -> None:
        """Say no more."""


event.register("numba:compile", _Teller())


class Compiler:
    """Compiles Python functions to machine code that runs without the GIL, kept between processes.

    Args:
        kind: Starts the name of the folder where the result is kept.
        sources: Files and folders that hold all that is compiled. Numba notices a change in a
            kernel's own file but not in the functions it has inlined from other files, so the
            folder follows from the content of all of them.
    """

    def __init__(self, kind: str, *sources: Path) -> None:
        self._kind = kind
        self._sources = sources

    def vectorised_kernel(self, function: F) -> F:
        """Compile a function whose sums may be taken in any order; NaN and infinity are kept to."""
        flags = {"reassoc", "contract", "nsz"}
        return self.kernel(function, fastmath=flags, error_model="numpy")

    def kernel(self, function: F, **options: Any) -> F:
        """Compile a function; `options` are Numba's."""
        _files.add(inspect.unwrap(function).__code__.co_filename)
        with self._cached() as cached:
            compiled = numba.njit(nogil=True, cache=cached, **options)(inspect.unwrap(function))
            _forgive_full_disks(compiled)
            return cast(F, compiled)

    def c_function(self, function: Callable[..., None], signature: Any) -> Any:
        """Compile a function so that C, or another kernel, can call it by address."""
        with self._cached() as cached:
            return numba.cfunc(signature, cache=cached)(inspect.unwrap(function))

    @functools.cached_property
    def path(self) -> Path | None:
        """A folder of this version of the sources, or None where none can be written."""
        digest = hashlib.sha256()
        for source in (Path(__file__), *self._sources):
            for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
                digest.update(file.read_bytes())
        return cache_folder(self._kind, numba.__version__, digest.hexdigest())

    @contextlib.contextmanager
    def _cached(self) -> Iterator[bool]:
        """Make Numba cache what is decorated inside in `path`."""
        before = numba.config.CACHE_DIR
        if self.path is not None:
            numba.config.CACHE_DIR = str(self.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NumbaWarning)
                yield self.path is not None and not numba.config.DISABLE_JIT
        finally:
            numba.config.CACHE_DIR = before


def generated(
    result: Any = types.void, *, arrays: int = 0
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make of a function that generates instructions one that kernels can call.

    It is given what generates them, types of numbers, and the kernel's arguments: addresses and
    other integers, float32, and truth values.

    Args:
        result: What the kernel is returned.
        arrays: So many arrays a kernel passes before, for the types of their numbers alone.
    """

    def decorate(generate: Callable[..., Any]) -> Callable[..., Any]:
        def typed(typing_context: Any, *given: Any) -> Any:
            del typing_context
            kinds = [each.dtype for each in given[:arrays]]

            def called(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                del signature
                made = generate(builder, kinds, *arguments[arrays:])
                return context.get_dummy_value() if made is None else made

            return result(*map(_passed_as, given)), called

        _, _, *parameters = inspect.signature(generate).parameters.values()
        names = ["typing_context", *(f"array_{n}" for n in range(arrays))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        before = [inspect.Parameter(name, kind) for name in names]
        typed.__name__, typed.__doc__ = generate.__name__, generate.__doc__
        cast(Any, typed).__signature__ = inspect.Signature([*before, *parameters])
        return generate if numba.config.DISABLE_JIT else cast(Any, intrinsic(typed))

    return decorate


def _passed_as(kind: Any) -> Any:
    if isinstance(kind, types.Integer):
        return types.intp
    return types.float32 if isinstance(kind, types.Float) else kind


def _use_widest_vectors(typing_context: Any) -> Any:
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature, arguments
        # Past the check for names that llvmlite knows, which are few of LLVM's.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.types.void(), generate


use_widest_vectors: Callable[[], None] = (
    (lambda: None) if numba.config.DISABLE_JIT else intrinsic(_use_widest_vectors)
)
"""As a kernel's first statement: let its loops use all of the processor's vector registers. LLVM
leaves half of Intel's alone, as their first generations slowed down when all were in use."""


def _prefetch(typing_context: Any, array: Any, first: Any, second: Any) -> Any:
    del typing_context, first, second

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, *places = arguments
        array_type = signature.args[0]
        struct = context.make_array(array_type)(context, builder, array)
        address = builder.ptrtoint(struct.data, ir.IntType(64))
        strides = cgutils.unpack_tuple(builder, struct.strides)
        for place, stride in zip(places, strides[:2], strict=True):
            address = builder.add(address, builder.mul(place, stride))
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        options = [ir.Constant(ir.IntType(32), number) for number in (0, 3, 1)]
        length = ir.Constant(address.type, array_type.dtype.bitwidth // 8)
        if array_type.ndim == 3:
            length = builder.mul(cgutils.unpack_tuple(builder, struct.shape)[2], strides[2])
        line = ir.Constant(address.type, LINE)
        start = builder.and_(address, ir.Constant(address.type, -LINE))
        with cgutils.for_range_slice(builder, start, builder.add(address, length), line) as (at, _):
            pointer = builder.inttoptr(at, ir.IntType(8).as_pointer())
            builder.call(function, [pointer, *options])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


prefetch: Callable[[Any, Any, Any], None] = (
    (lambda *_: None) if numba.config.DISABLE_JIT else intrinsic(_prefetch)
)
"""``prefetch(array, i, j)``: ask for ``array[i, j]``, a number or a row, to be brought nearer."""


def _forgive_full_disks(compiled: Any) -> None:
    """Let a kernel that cannot be kept run all the same; Numba passes the error on."""
    cache = getattr(compiled, "_cache", None)  # none where nothing is compiled
    if cache is None:
        return
    save = cache.save_overload

    def save_if_possible(*arguments: Any) -> None:
        with contextlib.suppress(OSError):
            save(*arguments)

    cache.save_overload = save_if_possible
