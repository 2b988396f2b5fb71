"""What kernels of rows are generated from: 32 numbers at a time, in two registers of float32.

What a row has less than that is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .. import tiles
from .instructions import BLOCK, SIDE

_BIT, _SHORT, WORD, _INTEGER = (ir.IntType(bits) for bits in (1, 16, 32, 64))
FLOAT, _NOTHING, ADDRESS = ir.FloatType(), ir.VoidType(), ir.IntType(8).as_pointer()
FLOATS, WORDS = ir.VectorType(FLOAT, SIDE), ir.VectorType(WORD, SIDE)
SHORTS, PLACES = ir.VectorType(_SHORT, BLOCK), ir.VectorType(WORD, BLOCK)
ZEROS = ir.Constant(FLOATS, None)
_LANES = ir.Constant(SHORTS, list(range(BLOCK)))
_ALL = ir.Constant(ir.VectorType(_BIT, BLOCK), [1] * BLOCK)
FAST = ("reassoc", "contract", "nsz")

_REGISTER = 64
"""Bytes of 16 numbers of float32, or 32 of bf16."""

Vectors = tuple[Any, Any]
"""32 numbers of float32, in two registers."""


def constant(number: int) -> Any:
    """Return an integer."""
    return ir.Constant(_INTEGER, number)


def everywhere(builder: Any, value: Any, count: int = SIDE) -> Any:
    """Return a register full of one value."""
    kind = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(WORD, 0))
    zeros = ir.Constant(ir.VectorType(WORD, count), None)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def twice(builder: Any, value: Any) -> Vectors:
    """Return two registers full of one value."""
    vector = everywhere(builder, value)
    return vector, vector


def halves(builder: Any, vector: Any) -> Vectors:
    """Return the two halves of a register."""
    undefined = ir.Constant(vector.type, ir.Undefined)
    low, high = (
        builder.shuffle_vector(
            vector, undefined, ir.Constant(WORDS, list(range(first, first + SIDE)))
        )
        for first in (0, SIDE)
    )
    return low, high


def first_of(builder: Any, count: Any) -> Any:
    """Return the mask of the first so many of 32."""
    is_more = builder.icmp_signed(">", count, constant(BLOCK))
    count = builder.trunc(builder.select(is_more, constant(BLOCK), count), _SHORT)
    return builder.icmp_unsigned("<", _LANES, everywhere(builder, count, BLOCK))


def by_steps(
    builder: Any, length: Any, step: Callable[[Any, Any, list[Any]], None], *sums: Any
) -> list[Any]:
    """Generate a loop by 32 in which ``step(place, mask, sums)`` replaces sums; return their ends.

    The mask is of the numbers that belong to the row.
    """
    places = [cgutils.alloca_once_value(builder, each) for each in sums]
    steps = cgutils.for_range_slice(builder, constant(0), length, constant(BLOCK))
    with steps as (place, _):
        mask = first_of(builder, builder.sub(length, place))
        current = [builder.load(each) for each in places]
        step(place, mask, current)
        for each, value in zip(places, current, strict=True):
            builder.store(value, each)
    return [builder.load(each) for each in places]


def place_of(builder: Any, first: Any, place: Any, size: int) -> Any:
    """Return the address of a number of a row."""
    return builder.add(first, builder.mul(place, constant(size)))


def integer_at(builder: Any, first: Any, place: Any) -> Any:
    """Load one of the integers of 64 bits that lie from an address on."""
    address = builder.add(first, builder.mul(place, constant(8)))
    return builder.load(builder.inttoptr(address, _INTEGER.as_pointer()))


def packed_place(builder: Any, out: Any, place: Any, distance: Any) -> Any:
    """Return where 32 numbers of a row go in tiles."""
    number = builder.lshr(place, constant(BLOCK.bit_length() - 1))
    return builder.add(out, builder.mul(number, distance))


def _masked(builder: Any, name: str, kind: Any, result: Any, *arguments: Any) -> Any:
    function = ir.FunctionType(result, [each.type for each in arguments])
    number = "f32" if kind == FLOATS else "i16"
    name = f"llvm.masked.{name}.v{kind.count}{number}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def masked_load(builder: Any, kind: Any, address: Any, mask: Any) -> Any:
    """Load a register, zeros where it is masked."""
    pointer = builder.inttoptr(address, kind.as_pointer())
    alignment = ir.Constant(WORD, 4 if kind == FLOATS else 2)
    given = pointer, alignment, mask, ir.Constant(kind, None)
    return _masked(builder, "load", kind, kind, *given)


def masked_store(builder: Any, value: Any, address: Any, mask: Any) -> None:
    """Store what is not masked."""
    pointer = builder.inttoptr(address, value.type.as_pointer())
    alignment = ir.Constant(WORD, 4 if value.type == FLOATS else 2)
    _masked(builder, "store", value.type, _NOTHING, value, pointer, alignment, mask)


def load(builder: Any, numbers: Any, first: Any, place: Any, mask: Any = _ALL) -> Vectors:
    """Load 32 of bf16 or float32 as float32."""
    if numbers == types.uint16:
        whole = masked_load(builder, SHORTS, place_of(builder, first, place, 2), mask)
        sixteen = ir.Constant(WORDS, [16] * SIDE)
        low, high = (
            builder.bitcast(builder.shl(builder.zext(half, WORDS), sixteen), FLOATS)
            for half in halves(builder, whole)
        )
        return low, high
    address = place_of(builder, first, place, 4)
    low, high = (
        masked_load(builder, FLOATS, builder.add(address, constant(_REGISTER * n)), half)
        for n, half in enumerate(halves(builder, mask))
    )
    return low, high


def to_bf16(builder: Any, values: Vectors) -> Any:
    """Round 32 numbers to bf16."""
    return builder.bitcast(tiles.rounded_to_bf16(builder, *values), SHORTS)


def store(builder: Any, numbers: Any, values: Vectors, first: Any, place: Any, mask: Any) -> None:
    """Store those that are not masked, as bf16 or float32."""
    if numbers == types.uint16:
        masked_store(builder, to_bf16(builder, values), place_of(builder, first, place, 2), mask)
        return
    address = place_of(builder, first, place, 4)
    for n, half in enumerate(halves(builder, mask)):
        masked_store(builder, values[n], builder.add(address, constant(_REGISTER * n)), half)


def store_whole(builder: Any, values: Any, address: Any) -> None:
    """Store a register at an address that is a multiple of its size."""
    pointer = builder.inttoptr(address, values.type.as_pointer())
    builder.store(values, pointer).align = _REGISTER


def store_total(builder: Any, sums: Any, out: Any, number: int) -> None:
    """Store the sum of a register's numbers as one of those at `out`."""
    place = builder.add(out, constant(4 * number))
    builder.store(sum_of(builder, sums), builder.inttoptr(place, FLOAT.as_pointer()))


def each_of(builder: Any, name: str, left: Vectors, right: Vectors) -> Vectors:
    """Return a sum, a difference or a product of two and two."""
    operation = getattr(builder, name)
    low, high = (operation(a, b, FAST) for a, b in zip(left, right, strict=True))
    return low, high


def where(builder: Any, mask: Any, values: Vectors) -> Vectors:
    """Return zeros where the mask is not set."""
    pairs = zip(halves(builder, mask), values, strict=True)
    low, high = (builder.select(half, each, ZEROS) for half, each in pairs)
    return low, high


def select(builder: Any, mask: Any, values: Vectors, others: Vectors) -> Vectors:
    """Choose between two by a mask of 16."""
    pairs = zip(values, others, strict=True)
    low, high = (builder.select(mask, value, other) for value, other in pairs)
    return low, high


def past_relu(builder: Any, values: Vectors, reference: Vectors, relu: Any, is_not: str) -> Vectors:
    """Return zeros where there is a ReLU and the reference is below zero, or not above."""
    low, high = (
        builder.select(builder.and_(relu, builder.fcmp_ordered(is_not, each, ZEROS)), ZEROS, value)
        for each, value in zip(reference, values, strict=True)
    )
    return low, high


def sum_of(builder: Any, sums: Any) -> Any:
    """Add up a register."""
    kind = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
    name = f"llvm.vector.reduce.fadd.v{SIDE}f32"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [ir.Constant(FLOAT, 0.0), sums], fastmath=FAST)
