"""The C functions that compiled kernels call, and the memory that they read.

C functions are registered with LLVM under names of their own, so a kernel calls them like any
other function, holds no address, and can be cached on disk. With `NUMBA_DISABLE_JIT=1` the same
names are plain `ctypes` functions and every kernel runs as Python.
"""

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import mujoco
import numpy as np
from numba import carray, config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from ..errors import EngineUnfitError
from .compiler import kernel

COMPILED = not config.DISABLE_JIT

_C_TYPES: dict[str, Any] = {
    "address": ctypes.c_ssize_t,
    "int": ctypes.c_int,
    "double": ctypes.c_double,
}
_NUMBA_TYPES: dict[str, Any] = {"address": types.intp, "int": types.int32, "double": types.float64}


def external(name: str, address: int, arguments: list[str], returns: str | None = None) -> Any:
    """Make the C function at `address` callable from kernels.

    Args:
        name: Unique among the functions made callable.
        address: of the function.
        arguments: Their types: `address`, `int` or `double`.
        returns: Type of the result, None for none.
    """
    if not COMPILED:
        result = None if returns is None else _C_TYPES[returns]
        function = ctypes.CFUNCTYPE(result, *(_C_TYPES[kind] for kind in arguments))(address)
        # NumPy's integers, which records hold, are not accepted where C expects an integer.
        return lambda *values: function(*(np.asarray(value).item() for value in values))
    # A name of our own also keeps LLVM from recognising `pow` and rewriting pow(x, 2) as x * x.
    symbol = f"mtrl_{name}"
    llvmlite.binding.add_symbol(symbol, address)
    result = types.void if returns is None else _NUMBA_TYPES[returns]
    return types.ExternalFunction(symbol, result(*(_NUMBA_TYPES[kind] for kind in arguments)))


def address_of(library: ctypes.CDLL, name: str) -> int:
    """Look up a function of a shared library.

    Raises:
        EngineUnfitError: if it has none of that name.
    """
    try:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError as error:
        raise EngineUnfitError(f"{library._name} has no function {name}") from error
    assert address is not None
    return address


def _mujoco_library() -> ctypes.CDLL:
    """Open the library that the `mujoco` package has loaded already."""
    folder = Path(mujoco.__file__).parent
    for pattern in ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll"):
        for path in sorted(folder.glob(pattern)):
            return ctypes.CDLL(str(path))
    raise EngineUnfitError(f"no MuJoCo library in {folder}")


_MUJOCO = _mujoco_library()
_MODEL_AND_DATA = ["address", "address"]


def _mujoco_function(name: str, arguments: list[str]) -> Any:
    return external(name, address_of(_MUJOCO, name), arguments)


mj_step = _mujoco_function("mj_step", _MODEL_AND_DATA)
mj_forward = _mujoco_function("mj_forward", _MODEL_AND_DATA)
mj_forward_skip = _mujoco_function("mj_forwardSkip", ["address", "address", "int", "int"])
mj_kinematics = _mujoco_function("mj_kinematics", _MODEL_AND_DATA)
mj_com_pos = _mujoco_function("mj_comPos", _MODEL_AND_DATA)
mj_make_constraint = _mujoco_function("mj_makeConstraint", _MODEL_AND_DATA)
mj_project_constraint = _mujoco_function("mj_projectConstraint", _MODEL_AND_DATA)
mj_check_pos = _mujoco_function("mj_checkPos", _MODEL_AND_DATA)
mj_check_vel = _mujoco_function("mj_checkVel", _MODEL_AND_DATA)
mj_check_acc = _mujoco_function("mj_checkAcc", _MODEL_AND_DATA)
mj_euler = _mujoco_function("mj_Euler", _MODEL_AND_DATA)


if COMPILED:

    def _pointer_to(kind: Any) -> Any:
        @intrinsic  # type: ignore[untyped-decorator]
        def as_pointer(_typing: Any, _address: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

            return types.CPointer(kind)(types.intp), generate

        return as_pointer

    _to_doubles = _pointer_to(types.float64)
    _to_floats = _pointer_to(types.float32)
    _to_ints = _pointer_to(types.int32)
    _to_longs = _pointer_to(types.int64)

    @intrinsic  # type: ignore[untyped-decorator]
    def _call(_typing: Any, _function: Any, _scene: Any, _measures: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            function, scene, measures = arguments
            kind = cgutils.ir.FunctionType(cgutils.ir.VoidType(), [scene.type, measures.type])
            builder.call(builder.inttoptr(function, kind.as_pointer()), [scene, measures])
            return _context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def _fetch_add(_typing: Any, _address: Any, _amount: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            address, amount = arguments
            pointer = builder.inttoptr(address, amount.type.as_pointer())
            return builder.atomic_rmw("add", pointer, amount, "monotonic")

        return types.int64(types.intp, types.int64), generate

    @kernel
    def fetch_add(address: int, amount: int) -> int:
        """Add to the int64 at `address`, which other threads may do too; return what it was."""
        return int(_fetch_add(address, amount))

    @kernel
    def doubles(address: int, size: int) -> Any:
        """View `size` float64 values at `address`."""
        return carray(_to_doubles(address), size)

    @kernel
    def floats(address: int, size: int) -> Any:
        """View `size` float32 values at `address`."""
        return carray(_to_floats(address), size)

    @kernel
    def ints(address: int, size: int) -> Any:
        """View `size` int32 values at `address`."""
        return carray(_to_ints(address), size)

    @kernel
    def longs(address: int, size: int) -> Any:
        """View `size` int64 values at `address`."""
        return carray(_to_longs(address), size)

    def records(array: NDArray[Any]) -> NDArray[Any]:
        """Make the fields of an array's records attributes, which in kernels they are anyway."""
        return array

    @kernel
    def call_reward(function: int, scene: int, measures: int) -> None:
        """Call the compiled reward at `function` with two records."""
        _call(function, scene, measures)

else:
    _uncompiled: list[Callable[[int, int], None]] = []
    _adding = threading.Lock()

    def fetch_add(address: int, amount: int) -> int:
        """Add to the int64 at `address`, which other threads may do too; return what it was."""
        with _adding:
            number = longs(address, 1)
            before = int(number[0])
            number[0] += amount
        return before

    def register_uncompiled(
        evaluate: Callable[[Any, Any], None], scene: np.dtype[Any], measures: np.dtype[Any]
    ) -> int:
        """Return a number that `call_reward` takes for the address of `evaluate`."""

        def call(scene_address: int, measures_address: int) -> None:
            evaluate(_record(scene_address, scene), _record(measures_address, measures))

        _uncompiled.append(call)
        return len(_uncompiled)

    def _record(address: int, dtype: np.dtype[Any]) -> Any:
        buffer: Any = (ctypes.c_char * dtype.itemsize).from_address(int(address))
        return records(np.frombuffer(buffer, dtype))[0]

    def doubles(address: int, size: int) -> Any:
        """View `size` float64 values at `address`."""
        return np.ctypeslib.as_array((ctypes.c_double * size).from_address(int(address)))

    def floats(address: int, size: int) -> Any:
        """View `size` float32 values at `address`."""
        return np.ctypeslib.as_array((ctypes.c_float * size).from_address(int(address)))

    def ints(address: int, size: int) -> Any:
        """View `size` int32 values at `address`."""
        return np.ctypeslib.as_array((ctypes.c_int32 * size).from_address(int(address)))

    def longs(address: int, size: int) -> Any:
        """View `size` int64 values at `address`."""
        return np.ctypeslib.as_array((ctypes.c_int64 * size).from_address(int(address)))

    def records(array: NDArray[Any]) -> NDArray[Any]:
        """Make the fields of an array's records attributes."""
        return array.view(np.recarray)

    def call_reward(function: int, scene: int, measures: int) -> None:
        """Call the reward that `function` stands for with two records."""
        _uncompiled[function - 1](scene, measures)
