"""Tiles of matrix products that stay in a processor's registers, for kernels to call.

A product is fast where as many sums as there are registers grow at once, each number that was read
serving several of them. No compiler makes that of loops; here it is told in LLVM's own terms, for
float32, float64 and, where the processor multiplies it, bf16, two numbers of which are multiplied
and added in the place of one float32.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen
from numba.extending import intrinsic

AVAILABLE = not numba.config.DISABLE_JIT
"""Whether kernels are compiled. As Python they cannot call what is here."""


@functools.cache
def has(feature: str) -> bool:
    """Tell whether kernels are compiled for a processor that has it."""
    features = numba.config.CPU_FEATURES
    if features is None:
        features = codegen.get_host_cpu_features()
    return f"+{feature}" in features.split(",")


VECTOR = 64 if has("avx512f") else 32 if has("avx") else 16
"""Bytes in a register."""


def takes_bf16() -> bool:
    """Tell whether a kernel's tiles may be of bf16."""
    return AVAILABLE and VECTOR == 64 and has("avx512bf16")


_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_MANY = has("avx512f") or platform.machine() in ("aarch64", "arm64")  # 32 registers, not 16

ROWS, VECTORS = (8, 2) if _MANY else (6, 2)
"""Of a product's tile: sums for so many rows and so many registers full of columns, two because two
of float32 become one of bf16."""

LEFT, RIGHT = (5, 5) if _MANY else (3, 4)
"""Of a tile of inner products: those of so many rows with so many others."""

_INTEGER, _FLOAT, _DOUBLE = ir.IntType(64), ir.FloatType(), ir.DoubleType()


class _BF16(ir.Type):  # type: ignore[misc]
    """LLVM's type, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BF16)

    def __hash__(self) -> int:
        return hash(_BF16)


def _vectors(numbers: Any) -> tuple[ir.VectorType, ir.VectorType]:
    """Return a register full of factors, and one of the sums of their products."""
    if numbers == types.uint16:
        return ir.VectorType(_BF16(), VECTOR // 2), ir.VectorType(_FLOAT, VECTOR // 4)
    number, size = (_FLOAT, 4) if numbers == types.float32 else (_DOUBLE, 8)
    return (ir.VectorType(number, VECTOR // size),) * 2


def _multiply_add(builder: Any, left: Any, right: Any, total: Any) -> Any:
    if left.type.element == _BF16():
        kind = ir.FunctionType(total.type, [total.type, left.type, right.type])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [total, left, right])
    together = ("contract",)
    return builder.fadd(total, builder.fmul(left, right, together), together)


def _load(builder: Any, address: Any, kind: Any, alignment: int) -> Any:
    number = builder.load(builder.inttoptr(address, kind.as_pointer()))
    number.align = alignment
    return number


def _after(builder: Any, address: Any, value: Any) -> Any:
    """Return an address that LLVM does not know before a value.

    It reads as much as it can in advance, more than there are registers for, and then spends more
    on moving numbers between those and memory than on multiplying them.
    """
    if not _IS_X86:
        return address
    kind = ir.FunctionType(_INTEGER, [_INTEGER, value.type])
    # No instruction: "=r,0" is the address in the register where it was, "v" the value in one.
    return builder.asm(kind, "", "=r,0,v", [address, value], side_effect=False)


def _store(builder: Any, value: Any, address: Any, alignment: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = alignment


def _loop(
    builder: Any, stop: Any, step: int, sums: Iterable[Any], add: Callable[[Any, list[Any]], None]
) -> list[Any]:
    """Generate a loop from 0 to `stop` in which `add` replaces sums; return what they end as."""
    places = []
    for zero in sums:
        places.append(cgutils.alloca_once(builder, zero.type))
        builder.store(zero, places[-1])
    start, step = ir.Constant(stop.type, 0), ir.Constant(stop.type, step)
    with cgutils.for_range_slice(builder, start, stop, step) as (place, _):
        current = [builder.load(each) for each in places]
        add(place, current)
        for each, value in zip(places, current, strict=True):
            builder.store(value, each)
    return [builder.load(each) for each in places]


def _generate_product(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    _, inputs, input_distance, errors, error_distance, count, out, out_distance = arguments
    numbers = signature.args[0].dtype
    factors, sums = _vectors(numbers)
    size = 8 if numbers == types.float64 else 4  # of a factor, or of two of bf16 that lie together
    factor = ir.IntType(32) if numbers == types.uint16 else factors.element
    shared = ir.VectorType(factor, VECTOR // size)

    def after(address: Any, offset: int) -> Any:
        return builder.add(address, ir.Constant(_INTEGER, offset))

    def add(place: Any, totals: list[Any]) -> None:
        row = builder.add(inputs, builder.mul(place, input_distance))
        column = builder.add(errors, builder.mul(place, error_distance))
        rights = [_load(builder, after(column, VECTOR * n), factors, size) for n in range(VECTORS)]
        for r in range(ROWS):
            number = _load(builder, after(row, size * r), factor, size)
            zero = ir.Constant(ir.IntType(32), 0)
            one = builder.insert_element(ir.Constant(shared, ir.Undefined), number, zero)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), shared.count), None)
            left = builder.shuffle_vector(one, ir.Constant(shared, ir.Undefined), everywhere)
            left = builder.bitcast(left, factors)
            for n, right in enumerate(rights):
                totals[VECTORS * r + n] = _multiply_add(
                    builder, left, right, totals[VECTORS * r + n]
                )

    totals = _loop(builder, count, 1, [ir.Constant(sums, None)] * ROWS * VECTORS, add)
    for r in range(ROWS):
        address = builder.add(out, builder.mul(out_distance, ir.Constant(_INTEGER, r)))
        row = totals[VECTORS * r : VECTORS * (r + 1)]
        if numbers == types.uint16:
            row = [rounded_to_bf16(builder, *row)]
        for n, values in enumerate(row):
            _store(builder, values, after(address, VECTOR * n), 2)
    return context.get_dummy_value()


def rounded_to_bf16(builder: Any, low: Any, high: Any) -> Any:
    """Generate the rounding of two registers of float32 to one of bf16."""
    both = ir.VectorType(_BF16(), 2 * low.type.count)
    kind = ir.FunctionType(both, [high.type, low.type])
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [high, low])


def _product(
    typing_context: Any,
    rows: Any,
    inputs: Any,
    input_distance: Any,
    errors: Any,
    error_distance: Any,
    count: Any,
    out: Any,
    out_distance: Any,
) -> Any:
    del typing_context, inputs, input_distance, errors, error_distance, count, out, out_distance
    return types.void(rows, *[types.intp] * 7), _generate_product


multiply_tile: Callable[..., None] = intrinsic(_product)
"""Write ``ROWS`` rows of a product ``inputs.T @ errors``, as many columns as `VECTORS` hold sums.

Args:
    rows: An array of what is multiplied and written; only its type matters. Of bf16, two that
        follow each other in a column of the factors lie together, as one number (`joined`).
    inputs: The address of the first factor's first number, of as many as there are rows.
    input_distance: Bytes from there to what is multiplied next.
    errors, error_distance: The same of the second factor, of as many as there are columns.
    count: Products that are added up, or pairs of products.
    out, out_distance: Where the first row begins, and bytes from there to the next.
"""


def _generate_inner(
    context: Any, builder: Any, signature: Any, arguments: Any, *, triangle: bool
) -> Any:
    _, left, right, length, result = arguments
    numbers = signature.args[0].dtype
    factors, sums = _vectors(numbers)
    size = {types.uint16: 2, types.float32: 4, types.float64: 8}[numbers]

    def addresses(first: Any, count: int) -> list[Any]:
        offsets = (ir.Constant(_INTEGER, 8 * n) for n in range(count))
        return [_load(builder, builder.add(first, each), _INTEGER, 8) for each in offsets]

    lefts, rights = addresses(left, LEFT), addresses(right, RIGHT)
    pairs = [(i, j) for i in range(LEFT) for j in range(RIGHT) if j >= i or not triangle]

    def add(place: Any, totals: list[Any]) -> None:
        offset = builder.mul(place, ir.Constant(_INTEGER, size))

        def load(address: Any) -> Any:
            return _load(builder, builder.add(address, offset), factors, size)

        # Those of the left stay in registers, those of the right come one by one.
        of_left = [] if triangle else [load(address) for address in lefts]
        latest = None
        for j, address in enumerate(rights):
            of_right = load(address if latest is None else _after(builder, address, latest))
            if triangle:
                of_left.append(of_right)
            for number, pair in enumerate(pairs):
                if pair[1] == j:
                    left = of_left[pair[0]]
                    totals[number] = _multiply_add(builder, left, of_right, totals[number])
                    latest = totals[number]

    zeros = [ir.Constant(sums, None)] * len(pairs)
    totals = _loop(builder, length, factors.count, zeros, add)
    kind = ir.FunctionType(sums.element, [sums.element, sums])
    name = f"llvm.vector.reduce.fadd.v{sums.count}f{32 if sums.element == _FLOAT else 64}"
    reduce = cgutils.get_or_insert_function(builder.module, kind, name)
    for (i, j), values in zip(pairs, totals, strict=True):
        zero = ir.Constant(sums.element, 0.0)
        total = builder.call(reduce, [zero, values], fastmath=("reassoc",))
        offset = (RIGHT * i + j) * (4 if sums.element == _FLOAT else 8)
        _store(builder, total, builder.add(result, ir.Constant(_INTEGER, offset)), 4)
    return context.get_dummy_value()


def _inner(
    triangle: bool,
    typing_context: Any,
    rows: Any,
    left: Any,
    right: Any,
    length: Any,
    result: Any,
) -> Any:
    del typing_context, left, right, length, result
    generate = functools.partial(_generate_inner, triangle=triangle)
    return types.void(rows, *[types.intp] * 4), generate


def _rectangle(tc: Any, rows: Any, left: Any, right: Any, length: Any, result: Any) -> Any:
    return _inner(False, tc, rows, left, right, length, result)


def _triangle(tc: Any, rows: Any, left: Any, right: Any, length: Any, result: Any) -> Any:
    return _inner(True, tc, rows, left, right, length, result)


inner_products: Callable[..., None] = intrinsic(_rectangle)
"""Write the inner products of ``LEFT`` rows with ``RIGHT`` others.

Args:
    rows: An array that the rows are of; only its type matters.
    left, right: Addresses of the addresses of the rows' first numbers.
    length: How many of each row are multiplied: as many as registers are full of.
    result: The address of ``LEFT`` times ``RIGHT`` sums, float32 if the rows are of bf16.
"""

inner_products_with_themselves: Callable[..., None] = intrinsic(_triangle)
"""The same where `left` is `right`, and only those that are on or above the diagonal."""


def _joined(typing_context: Any, first: Any, second: Any) -> Any:
    del typing_context
    if first != types.uint16:
        return first(first, second), lambda _context, _builder, _signature, both: both[0]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        low, high = (builder.zext(each, ir.IntType(32)) for each in arguments)
        return builder.or_(low, builder.shl(high, ir.Constant(ir.IntType(32), 16)))

    return types.uint32(first, first), generate


joined: Callable[[Any, Any], Any] = intrinsic(_joined)
"""Return two numbers of bf16 as `multiply_tile` takes them, and of others the first."""
