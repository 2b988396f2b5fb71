"""What happens to a row of numbers on its way to tiles and from them, for kernels to call.

A loop that a compiler makes of Python goes by several registers at once and then number by number
through what is left, up to a hundred of a row's few hundred. Here the last step is like all others,
with what is beyond the row masked, and a row is rounded by the instruction that does.

Rows are given by their addresses. Arrays that come before only tell of which type numbers are, bf16
or float32; what says no more is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .. import tiles
from ..compiler import generated
from .instructions import BLOCK, SIDE, TILE

_BIT, _SHORT, _WORD, _INTEGER = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_FLOAT, _NOTHING, _ADDRESS = ir.FloatType(), ir.VoidType(), ir.IntType(8).as_pointer()
_FLOATS, _WORDS = ir.VectorType(_FLOAT, SIDE), ir.VectorType(_WORD, SIDE)
_SHORTS, _PLACES = ir.VectorType(_SHORT, BLOCK), ir.VectorType(_WORD, BLOCK)
_ZEROS = ir.Constant(_FLOATS, None)
_LANES = ir.Constant(_SHORTS, list(range(BLOCK)))
_ALL = ir.Constant(ir.VectorType(_BIT, BLOCK), [1] * BLOCK)
_FAST = ("reassoc", "contract", "nsz")

_REGISTER = 64
"""Bytes of 16 numbers of float32, or 32 of bf16."""

Vectors = tuple[Any, Any]
"""32 numbers of float32, in two registers."""


def _constant(number: int) -> Any:
    return ir.Constant(_INTEGER, number)


def _everywhere(builder: Any, value: Any, count: int = SIDE) -> Any:
    kind = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_WORD, 0))
    zeros = ir.Constant(ir.VectorType(_WORD, count), None)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _twice(builder: Any, value: Any) -> Vectors:
    vector = _everywhere(builder, value)
    return vector, vector


def _halves(builder: Any, vector: Any) -> Vectors:
    undefined = ir.Constant(vector.type, ir.Undefined)
    low, high = (
        builder.shuffle_vector(
            vector, undefined, ir.Constant(_WORDS, list(range(first, first + SIDE)))
        )
        for first in (0, SIDE)
    )
    return low, high


def _first(builder: Any, count: Any) -> Any:
    """Return the mask of the first so many of 32."""
    is_more = builder.icmp_signed(">", count, _constant(BLOCK))
    count = builder.trunc(builder.select(is_more, _constant(BLOCK), count), _SHORT)
    return builder.icmp_unsigned("<", _LANES, _everywhere(builder, count, BLOCK))


def _steps(
    builder: Any, length: Any, step: Callable[[Any, Any, list[Any]], None], *sums: Any
) -> list[Any]:
    """Generate a loop by 32 in which ``step(place, mask, sums)`` replaces sums; return their ends.

    The mask is of the numbers that belong to the row.
    """
    places = [cgutils.alloca_once_value(builder, each) for each in sums]
    steps = cgutils.for_range_slice(builder, _constant(0), length, _constant(BLOCK))
    with steps as (place, _):
        mask = _first(builder, builder.sub(length, place))
        current = [builder.load(each) for each in places]
        step(place, mask, current)
        for each, value in zip(places, current, strict=True):
            builder.store(value, each)
    return [builder.load(each) for each in places]


def _at(builder: Any, first: Any, place: Any, size: int) -> Any:
    return builder.add(first, builder.mul(place, _constant(size)))


def _packed(builder: Any, out: Any, place: Any, distance: Any) -> Any:
    """Return where 32 numbers of a row go in tiles."""
    number = builder.lshr(place, _constant(BLOCK.bit_length() - 1))
    return builder.add(out, builder.mul(number, distance))


def _masked(builder: Any, name: str, kind: Any, result: Any, *arguments: Any) -> Any:
    function = ir.FunctionType(result, [each.type for each in arguments])
    number = "f32" if kind == _FLOATS else "i16"
    name = f"llvm.masked.{name}.v{kind.count}{number}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _masked_load(builder: Any, kind: Any, address: Any, mask: Any) -> Any:
    """Load a register, zeros where it is masked."""
    pointer = builder.inttoptr(address, kind.as_pointer())
    alignment = ir.Constant(_WORD, 4 if kind == _FLOATS else 2)
    given = pointer, alignment, mask, ir.Constant(kind, None)
    return _masked(builder, "load", kind, kind, *given)


def _masked_store(builder: Any, value: Any, address: Any, mask: Any) -> None:
    pointer = builder.inttoptr(address, value.type.as_pointer())
    alignment = ir.Constant(_WORD, 4 if value.type == _FLOATS else 2)
    _masked(builder, "store", value.type, _NOTHING, value, pointer, alignment, mask)


def _load(builder: Any, numbers: Any, first: Any, place: Any, mask: Any = _ALL) -> Vectors:
    """Load 32 of bf16 or float32 as float32."""
    if numbers == types.uint16:
        whole = _masked_load(builder, _SHORTS, _at(builder, first, place, 2), mask)
        sixteen = ir.Constant(_WORDS, [16] * SIDE)
        low, high = (
            builder.bitcast(builder.shl(builder.zext(half, _WORDS), sixteen), _FLOATS)
            for half in _halves(builder, whole)
        )
        return low, high
    address = _at(builder, first, place, 4)
    low, high = (
        _masked_load(builder, _FLOATS, builder.add(address, _constant(_REGISTER * n)), half)
        for n, half in enumerate(_halves(builder, mask))
    )
    return low, high


def _rounded(builder: Any, values: Vectors) -> Any:
    """Round 32 numbers to bf16."""
    return builder.bitcast(tiles.rounded_to_bf16(builder, *values), _SHORTS)


def _store(builder: Any, numbers: Any, values: Vectors, first: Any, place: Any, mask: Any) -> None:
    """Store those that are not masked, as bf16 or float32."""
    if numbers == types.uint16:
        _masked_store(builder, _rounded(builder, values), _at(builder, first, place, 2), mask)
        return
    address = _at(builder, first, place, 4)
    for n, half in enumerate(_halves(builder, mask)):
        _masked_store(builder, values[n], builder.add(address, _constant(_REGISTER * n)), half)


def _store_whole(builder: Any, values: Any, address: Any) -> None:
    pointer = builder.inttoptr(address, values.type.as_pointer())
    builder.store(values, pointer).align = _REGISTER


def _store_total(builder: Any, sums: Any, out: Any, number: int) -> None:
    place = builder.add(out, _constant(4 * number))
    builder.store(_total(builder, sums), builder.inttoptr(place, _FLOAT.as_pointer()))


def _each(builder: Any, name: str, left: Vectors, right: Vectors) -> Vectors:
    operation = getattr(builder, name)
    low, high = (operation(a, b, _FAST) for a, b in zip(left, right, strict=True))
    return low, high


def _where(builder: Any, mask: Any, values: Vectors) -> Vectors:
    """Return zeros where the mask is not set."""
    halves = zip(_halves(builder, mask), values, strict=True)
    low, high = (builder.select(half, each, _ZEROS) for half, each in halves)
    return low, high


def _passing(builder: Any, values: Vectors, reference: Vectors, relu: Any, is_not: str) -> Vectors:
    """Return zeros where there is a ReLU and the reference is below zero, or not above."""
    low, high = (
        builder.select(
            builder.and_(relu, builder.fcmp_ordered(is_not, each, _ZEROS)), _ZEROS, value
        )
        for each, value in zip(reference, values, strict=True)
    )
    return low, high


def _total(builder: Any, sums: Any) -> Any:
    """Add up a register."""
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _FLOATS])
    name = f"llvm.vector.reduce.fadd.v{SIDE}f32"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [ir.Constant(_FLOAT, 0.0), sums], fastmath=_FAST)


@generated(types.voidptr)
def at(builder: Any, kinds: Any, address: Any) -> Any:
    """Return an address as `numba.carray` takes it."""
    del kinds
    return builder.inttoptr(address, _ADDRESS)


@generated(arrays=1)
def pack_row(builder: Any, kinds: Any, row: Any, length: Any, out: Any, distance: Any) -> None:
    """``pack_row(rows, row, length, out, distance)``: write a row as bf16, zeros behind it.

    The first 32 numbers go to `out`, `distance` bytes further the next.
    """
    (numbers,) = kinds

    def step(place: Any, mask: Any, _: list[Any]) -> None:
        if numbers == types.uint16:
            packed = _masked_load(builder, _SHORTS, _at(builder, row, place, 2), mask)
        else:
            packed = _rounded(builder, _load(builder, numbers, row, place, mask))
        _store_whole(builder, packed, _packed(builder, out, place, distance))

    _steps(builder, length, step)


@generated(arrays=1)
def join_rows(
    builder: Any, kinds: Any, first: Any, second: Any, length: Any, out: Any, distance: Any
) -> None:
    """``join_rows(rows, first, second, length, out, distance)``: write two rows' pairs of bf16.

    Zeros stand for a row whose address is 0, and go behind both. The first 16 pairs go to `out`,
    the next a tile further, `distance` bytes from `out` the two after these.
    """
    _join(builder, kinds, (first, None), (second, None), length, out, distance)


@generated(arrays=1)
def join_weighted_rows(
    builder: Any,
    kinds: Any,
    first: Any,
    second: Any,
    of_first: Any,
    of_second: Any,
    length: Any,
    out: Any,
    distance: Any,
) -> None:
    """As `join_rows`, each row times a factor."""
    _join(builder, kinds, (first, of_first), (second, of_second), length, out, distance)


def _join(
    builder: Any, kinds: Any, one: Vectors, other: Vectors, length: Any, out: Any, distance: Any
) -> None:
    (numbers,) = kinds
    given = []
    for row, factor in (one, other):
        exists = builder.icmp_signed("!=", row, _constant(0))
        # What is masked is not read, but an address that cannot be takes time.
        somewhere = builder.select(exists, row, out)
        given.append((somewhere, factor, _everywhere(builder, exists, BLOCK)))

    def step(place: Any, mask: Any, _: list[Any]) -> None:
        both = []
        for row, factor, exists in given:
            some = builder.and_(mask, exists)
            if numbers == types.uint16 and factor is None:
                both.append(_masked_load(builder, _SHORTS, _at(builder, row, place, 2), some))
                continue
            values = _load(builder, numbers, row, place, some)
            if factor is not None:
                values = _each(builder, "fmul", values, _twice(builder, factor))
            both.append(_rounded(builder, values))
        order = [BLOCK * (n % 2) + n // 2 for n in range(2 * BLOCK)]
        for half in range(2):
            places = ir.Constant(_PLACES, order[BLOCK * half : BLOCK * (half + 1)])
            to = builder.add(_packed(builder, out, place, distance), _constant(TILE * half))
            _store_whole(builder, builder.shuffle_vector(*both, places), to)

    _steps(builder, length, step)


@generated(types.float32)
def add_to_row(builder: Any, kinds: Any, values: Any, added: Any, length: Any) -> Any:
    """``add_to_row(values, added, length)``: add a row to another; return the sum of all."""
    del kinds

    def step(place: Any, mask: Any, sums: list[Any]) -> None:
        given = (_load(builder, types.float32, each, place, mask) for each in (values, added))
        total = _each(builder, "fadd", *given)
        _store(builder, types.float32, total, values, place, mask)
        sums[:] = _each(builder, "fadd", (sums[0], sums[1]), total)

    return _total(builder, builder.fadd(*_steps(builder, length, step, _ZEROS, _ZEROS)))


@generated(types.float32)
def squares_of_row(builder: Any, kinds: Any, values: Any, mean: Any, length: Any) -> Any:
    """``squares_of_row(values, mean, length)``: sum up the squares of a row less its mean."""
    del kinds
    means = _twice(builder, mean)

    def step(place: Any, mask: Any, sums: list[Any]) -> None:
        given = _load(builder, types.float32, values, place, mask)
        given = _where(builder, mask, _each(builder, "fsub", given, means))
        squares = _each(builder, "fmul", given, given)
        sums[:] = _each(builder, "fadd", (sums[0], sums[1]), squares)

    return _total(builder, builder.fadd(*_steps(builder, length, step, _ZEROS, _ZEROS)))


@generated(arrays=1)
def write_row(
    builder: Any,
    kinds: Any,
    values: Any,
    mean: Any,
    scale: Any,
    length: Any,
    out: Any,
    relu: Any,
) -> None:
    """``write_row(outs, values, mean, scale, length, out, relu)``: ``(values - mean) * scale``.

    With `relu`, zeros stand for negative numbers; NaN stays.
    """
    (numbers,) = kinds
    means, scales = _twice(builder, mean), _twice(builder, scale)
    has_relu = _everywhere(builder, relu)

    def step(place: Any, mask: Any, _: list[Any]) -> None:
        given = _load(builder, types.float32, values, place, mask)
        given = _each(builder, "fmul", _each(builder, "fsub", given, means), scales)
        given = _passing(builder, given, given, has_relu, "<")
        _store(builder, numbers, given, out, place, mask)

    _steps(builder, length, step)


@generated(arrays=1)
def activate(
    builder: Any, kinds: Any, values: Any, added: Any, length: Any, out: Any, relu: Any
) -> None:
    """``activate(outs, values, added, length, out, relu)``: write ``values + added``, up to 32.

    That many are read of both, whatever the length. `relu` is as of `write_row`.
    """
    (numbers,) = kinds
    place = _constant(0)
    given = (_load(builder, types.float32, each, place) for each in (values, added))
    total = _each(builder, "fadd", *given)
    total = _passing(builder, total, total, _everywhere(builder, relu), "<")
    _store(builder, numbers, total, out, place, _first(builder, length))


@generated(arrays=2)
def sums_of_row(
    builder: Any, kinds: Any, gradient: Any, reference: Any, length: Any, relu: Any, out: Any
) -> None:
    """``sums_of_row(gradients, references, gradient, reference, length, relu, out)``.

    Write the sum of a row of gradients, with `relu` of those where `reference` is positive, and
    that of their products with `reference`.
    """
    has_relu = _everywhere(builder, relu)

    def step(place: Any, mask: Any, sums: list[Any]) -> None:
        given = _load(builder, kinds[0], gradient, place, mask)
        along = _load(builder, kinds[1], reference, place, mask)
        passing = _passing(builder, given, along, has_relu, "<=")
        for value, factor in zip(passing, along, strict=True):
            sums[0] = builder.fadd(sums[0], value, _FAST)
            sums[1] = builder.fadd(sums[1], builder.fmul(value, factor, _FAST), _FAST)

    for number, sums in enumerate(_steps(builder, length, step, _ZEROS, _ZEROS)):
        _store_total(builder, sums, out, number)


@generated(types.boolean, arrays=2)
def pass_back(
    builder: Any,
    kinds: Any,
    gradient: Any,
    reference: Any,
    length: Any,
    relu: Any,
    mean: Any,
    slope: Any,
    scale: Any,
    packed: Any,
    distance: Any,
    errors: Any,
    sums: Any,
) -> Any:
    """Take a row of gradients back through ReLU and norm; tell whether it is more than zeros.

    Called with two arrays before, that tell types of gradients and references. What comes of it is
    ``scale * (passed - mean - slope * reference)``.

    Args:
        builder: Generates it.
        kinds: Types of gradients and references.
        gradient: The row.
        reference: What came out of the norm or, without one, of the ReLU.
        length: Of both.
        relu: Whether what `reference` shows to be zero stays behind.
        mean: Of what passed.
        slope: Of what passed along `reference`.
        scale: 1 / the deviation before the norm.
        packed: Where the result goes, as `out` of `pack_row`.
        distance: As of `pack_row`.
        errors: Where it goes as well, as bf16, or 0.
        sums: What it is added to then.
    """
    has_relu = _everywhere(builder, relu)
    means, slopes, scales = (_twice(builder, each) for each in (mean, slope, scale))
    is_kept = builder.icmp_signed("!=", errors, _constant(0))
    zero = ir.Constant(_SHORTS, None)

    def step(place: Any, mask: Any, found: list[Any]) -> None:
        given = _load(builder, kinds[0], gradient, place, mask)
        along = _load(builder, kinds[1], reference, place, mask)
        passing = _passing(builder, given, along, has_relu, "<=")
        taken = _each(builder, "fadd", means, _each(builder, "fmul", along, slopes))
        values = _each(builder, "fmul", scales, _each(builder, "fsub", passing, taken))
        values = _where(builder, mask, values)
        rounded = _rounded(builder, values)
        _store_whole(builder, rounded, _packed(builder, packed, place, distance))
        found[0] = builder.or_(found[0], rounded)
        with builder.if_then(is_kept):
            _masked_store(builder, rounded, _at(builder, errors, place, 2), mask)
            before = _load(builder, types.float32, sums, place, mask)
            total = _each(builder, "fadd", before, values)
            _store(builder, types.float32, total, sums, place, mask)

    (found,) = _steps(builder, length, step, zero)
    # But for their signs, which zeros have as well.
    found = builder.shl(found, ir.Constant(_SHORTS, [1] * BLOCK))
    some = builder.bitcast(builder.icmp_unsigned("!=", found, zero), _WORD)
    return builder.icmp_unsigned("!=", some, ir.Constant(_WORD, 0))


@generated()
def sum_products(builder: Any, kinds: Any, one: Any, other: Any, out: Any) -> None:
    """``sum_products(one, other, out)``: multiply two blocks' numbers; write four tiles' sums."""
    del kinds

    def step(place: Any, _: Any, sums: list[Any]) -> None:  # a row of both
        for half in range(2):
            first = builder.add(place, _constant(SIDE * BLOCK * half))
            given = (_load(builder, types.float32, each, first) for each in (one, other))
            for n, product in enumerate(_each(builder, "fmul", *given)):
                sums[2 * half + n] = builder.fadd(sums[2 * half + n], product, _FAST)

    sums = _steps(builder, _constant(SIDE * BLOCK), step, *[_ZEROS] * 4)
    for number, each in enumerate(sums):
        _store_total(builder, each, out, number)
