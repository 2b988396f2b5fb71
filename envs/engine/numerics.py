"""The scalar functions that NumPy and Python themselves call on this machine.

Which instructions NumPy uses for a dot product or an exponential depends on the processor, and so
does the last bit of the result. Instead of imitating them, kernels call the very same functions.
"""

import ctypes
import ctypes.util
import math
from typing import Any

import numpy as np

from ..errors import EngineUnfitError
from .compiler import kernel
from .native import address_of, external

_ARRAY_FUNCTIONS_INDEX = 365  # of PyDataType_GetArrFuncs in NumPy 2's C API table
_DOT_INDEX = 27  # of `dotfunc` in PyArray_ArrFuncs: part of NumPy's binary interface


class _UFunc(ctypes.Structure):
    """The head of NumPy's `PyUFuncObject`, unchanged since NumPy 1.0."""

    _fields_ = [
        ("ob_refcnt", ctypes.c_ssize_t),
        ("ob_type", ctypes.c_void_p),
        ("nin", ctypes.c_int),
        ("nout", ctypes.c_int),
        ("nargs", ctypes.c_int),
        ("identity", ctypes.c_int),
        ("functions", ctypes.POINTER(ctypes.c_void_p)),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
        ("ntypes", ctypes.c_int),
    ]


def _scalar_loop(ufunc: np.ufunc) -> int:
    """Find the address of the loop that NumPy itself runs for float64 on this machine."""
    head = _UFunc.from_address(id(ufunc))
    index = ufunc.types.index("d->d")
    address: int | None = head.functions[index]
    if (head.nin, head.nout, head.ntypes) != (1, 1, len(ufunc.types)) or address is None:
        raise EngineUnfitError(
            f"NumPy {np.__version__} keeps the loops of np.{ufunc.__name__} elsewhere"
        )
    return address


def _float64_dot() -> int:
    """Find the address of the function behind `np.dot` of two float64 vectors."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule: Any = np._core.multiarray._ARRAY_API  # type: ignore[attr-defined]
    table = ctypes.cast(pointer(capsule, None), ctypes.POINTER(ctypes.c_void_p))
    array_functions = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(
        table[_ARRAY_FUNCTIONS_INDEX] or 0
    )(np.dtype(np.float64))
    address: int | None = ctypes.cast(array_functions, ctypes.POINTER(ctypes.c_void_p))[_DOT_INDEX]
    if address is None:
        raise EngineUnfitError(f"NumPy {np.__version__} keeps its dot product elsewhere")
    return address


_LIBM = ctypes.CDLL(ctypes.util.find_library("m") or ctypes.util.find_library("ucrtbase"))
_pow = external("pow", address_of(_LIBM, "pow"), ["double", "double"], "double")
_dot = external("numpy_dot", _float64_dot(), ["address"] * 7)
_exp = external("numpy_exp", _scalar_loop(np.exp), ["address"] * 4)
_log = external("numpy_log", _scalar_loop(np.log), ["address"] * 4)
_sin = external("numpy_sin", _scalar_loop(np.sin), ["address"] * 4)
_cos = external("numpy_cos", _scalar_loop(np.cos), ["address"] * 4)


@kernel
def norm(x: float, y: float, z: float) -> float:
    """`np.linalg.norm` of a 3-vector."""
    box = np.empty(4)
    box[0], box[1], box[2] = x, y, z
    vector = box.ctypes.data
    _dot(vector, 8, vector, 8, vector + 24, 3, 0)
    return math.sqrt(box[3])


@kernel
def norm2(x: float, y: float) -> float:
    """`np.linalg.norm` of a 2-vector."""
    box = np.empty(3)
    box[0], box[1] = x, y
    vector = box.ctypes.data
    _dot(vector, 8, vector, 8, vector + 16, 2, 0)
    return math.sqrt(box[2])


@kernel
def norm4(x: float, y: float, z: float, w: float) -> float:
    """`np.linalg.norm` of a 4-vector."""
    box = np.empty(5)
    box[0], box[1], box[2], box[3] = x, y, z, w
    vector = box.ctypes.data
    _dot(vector, 8, vector, 8, vector + 32, 4, 0)
    return math.sqrt(box[4])


@kernel
def square(x: float) -> float:
    """`x ** 2` of a float64 scalar, which is not always `x * x`."""
    power: float = _pow(x, 2.0)
    return power


@kernel
def exp(x: float) -> float:
    """`np.exp` of a scalar."""
    box = _loop_arguments(x)
    arguments = box.ctypes.data + 16
    _exp(arguments, arguments + 16, arguments + 24, 0)
    result: float = box.view(np.float64)[1]
    return result


@kernel
def log(x: float) -> float:
    """`np.log` of a scalar."""
    box = _loop_arguments(x)
    arguments = box.ctypes.data + 16
    _log(arguments, arguments + 16, arguments + 24, 0)
    result: float = box.view(np.float64)[1]
    return result


@kernel
def sin(x: float) -> float:
    """`np.sin` of a scalar."""
    box = _loop_arguments(x)
    arguments = box.ctypes.data + 16
    _sin(arguments, arguments + 16, arguments + 24, 0)
    result: float = box.view(np.float64)[1]
    return result


@kernel
def cos(x: float) -> float:
    """`np.cos` of a scalar."""
    box = _loop_arguments(x)
    arguments = box.ctypes.data + 16
    _cos(arguments, arguments + 16, arguments + 24, 0)
    result: float = box.view(np.float64)[1]
    return result


@kernel
def _loop_arguments(x: float) -> Any:
    """Lay out a ufunc loop's arguments: input, output, their addresses, count, two strides."""
    box = np.empty(7, np.int64)
    box.view(np.float64)[0] = x
    box[2] = box.ctypes.data
    box[3] = box.ctypes.data + 8
    box[4] = 1
    box[5] = 8
    box[6] = 8
    return box
