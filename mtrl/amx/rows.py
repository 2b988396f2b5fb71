"""What happens to a row of numbers on its way to tiles and from them, for kernels to call.

A loop that a compiler makes of Python goes by several registers at once and then number by number
through what is left, up to a hundred of a row's few hundred. Here the last step is like all others,
with what is beyond the row masked, and a row is rounded by the instruction that does.

Rows are given by their addresses. Arrays that come before only tell of which type numbers are, bf16
or float32; what says no more is float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from ..compiler import generated
from .instructions import BLOCK, SIDE, TILE
from .vectors import (
    ADDRESS,
    FAST,
    PLACES,
    SHORTS,
    ZEROS,
    Vectors,
    by_steps,
    constant,
    each_of,
    everywhere,
    first_of,
    load,
    masked_load,
    packed_place,
    past_relu,
    place_of,
    store,
    store_total,
    store_whole,
    sum_of,
    to_bf16,
    twice,
    where,
)


@generated(types.voidptr)
def at(builder: Any, kinds: Any, address: Any) -> Any:
    """Return an address as `numba.carray` takes it."""
    del kinds
    return builder.inttoptr(address, ADDRESS)


@generated(arrays=1)
def pack_row(builder: Any, kinds: Any, row: Any, length: Any, out: Any, distance: Any) -> None:
    """``pack_row(rows, row, length, out, distance)``: write a row as bf16, zeros behind it.

    The first 32 numbers go to `out`, `distance` bytes further the next.
    """
    (numbers,) = kinds

    def step(place: Any, mask: Any, _: list[Any]) -> None:
        if numbers == types.uint16:
            packed = masked_load(builder, SHORTS, place_of(builder, row, place, 2), mask)
        else:
            packed = to_bf16(builder, load(builder, numbers, row, place, mask))
        store_whole(builder, packed, packed_place(builder, out, place, distance))

    by_steps(builder, length, step)


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
        exists = builder.icmp_signed("!=", row, constant(0))
        # What is masked is not read, but an address that cannot be takes time.
        somewhere = builder.select(exists, row, out)
        given.append((somewhere, factor, everywhere(builder, exists, BLOCK)))

    def step(place: Any, mask: Any, _: list[Any]) -> None:
        both = []
        for row, factor, exists in given:
            some = builder.and_(mask, exists)
            if numbers == types.uint16 and factor is None:
                both.append(masked_load(builder, SHORTS, place_of(builder, row, place, 2), some))
                continue
            values = load(builder, numbers, row, place, some)
            if factor is not None:
                values = each_of(builder, "fmul", values, twice(builder, factor))
            both.append(to_bf16(builder, values))
        order = [BLOCK * (n % 2) + n // 2 for n in range(2 * BLOCK)]
        for half in range(2):
            places = ir.Constant(PLACES, order[BLOCK * half : BLOCK * (half + 1)])
            to = builder.add(packed_place(builder, out, place, distance), constant(TILE * half))
            store_whole(builder, builder.shuffle_vector(*both, places), to)

    by_steps(builder, length, step)


@generated(types.float32)
def add_to_row(builder: Any, kinds: Any, values: Any, added: Any, length: Any) -> Any:
    """``add_to_row(values, added, length)``: add a row to another; return the sum of all."""
    del kinds

    def step(place: Any, mask: Any, sums: list[Any]) -> None:
        given = (load(builder, types.float32, each, place, mask) for each in (values, added))
        total = each_of(builder, "fadd", *given)
        store(builder, types.float32, total, values, place, mask)
        sums[:] = each_of(builder, "fadd", (sums[0], sums[1]), total)

    return sum_of(builder, builder.fadd(*by_steps(builder, length, step, ZEROS, ZEROS)))


@generated(types.float32)
def squares_of_row(builder: Any, kinds: Any, values: Any, mean: Any, length: Any) -> Any:
    """``squares_of_row(values, mean, length)``: sum up the squares of a row less its mean."""
    del kinds
    means = twice(builder, mean)

    def step(place: Any, mask: Any, sums: list[Any]) -> None:
        given = load(builder, types.float32, values, place, mask)
        given = where(builder, mask, each_of(builder, "fsub", given, means))
        squares = each_of(builder, "fmul", given, given)
        sums[:] = each_of(builder, "fadd", (sums[0], sums[1]), squares)

    return sum_of(builder, builder.fadd(*by_steps(builder, length, step, ZEROS, ZEROS)))


@generated(arrays=1)
def write_row(
    builder: Any,
    kinds: Any,
    values: Any,
    mean: Any,
    scale: Any,
    length: Any,
    out: Any,
    packed: Any,
    distance: Any,
    relu: Any,
) -> None:
    """Write ``(values - mean) * scale`` of a row, after an array that tells of which type.

    Args:
        builder: Generates it.
        kinds: The type.
        values: The row.
        mean: Of it, or 0.
        scale: 1 / its deviation, or 1.
        length: Of it.
        out: Where the result goes, or 0.
        packed: Where it goes rounded as well, as `out` of `pack_row`, or 0.
        distance: As of `pack_row`.
        relu: Whether zeros stand for negative numbers; NaN stays.
    """
    (numbers,) = kinds
    means, scales = twice(builder, mean), twice(builder, scale)
    has_relu = everywhere(builder, relu)

    def step(place: Any, mask: Any, _: list[Any]) -> None:
        given = load(builder, types.float32, values, place, mask)
        given = each_of(builder, "fmul", each_of(builder, "fsub", given, means), scales)
        given = past_relu(builder, given, given, has_relu, "<")
        _write(builder, numbers, given, place, mask, out, packed, distance)

    by_steps(builder, length, step)


def _write(
    builder: Any,
    numbers: Any,
    values: Vectors,
    place: Any,
    mask: Any,
    out: Any,
    packed: Any,
    distance: Any,
) -> None:
    """Store 32 numbers in their row, and rounded in a tile, with zeros behind them."""
    with builder.if_then(builder.icmp_signed("!=", out, constant(0))):
        store(builder, numbers, values, out, place, mask)
    with builder.if_then(builder.icmp_signed("!=", packed, constant(0))):
        rounded = to_bf16(builder, where(builder, mask, values))
        store_whole(builder, rounded, packed_place(builder, packed, place, distance))


@generated(arrays=1)
def activate(
    builder: Any,
    kinds: Any,
    values: Any,
    added: Any,
    length: Any,
    out: Any,
    packed: Any,
    relu: Any,
) -> None:
    """``activate(outs, values, added, length, out, packed, relu)``: ``values + added``, up to 32.

    That many are read of both, whatever the length. What else there is, is as of `write_row`.
    """
    (numbers,) = kinds
    place = constant(0)
    given = (load(builder, types.float32, each, place) for each in (values, added))
    total = each_of(builder, "fadd", *given)
    total = past_relu(builder, total, total, everywhere(builder, relu), "<")
    _write(builder, numbers, total, place, first_of(builder, length), out, packed, place)


@generated(types.float32)
def times_column(
    builder: Any, kinds: Any, packed: Any, distance: Any, column: Any, length: Any
) -> Any:
    """``times_column(packed, distance, column, length)``: a row of tiles times a column."""
    del kinds

    def step(place: Any, mask: Any, sums: list[Any]) -> None:
        row = packed_place(builder, packed, place, distance)
        given = load(builder, types.uint16, row, constant(0))
        factors = load(builder, types.float32, column, place, mask)
        products = each_of(builder, "fmul", where(builder, mask, given), factors)
        sums[:] = each_of(builder, "fadd", (sums[0], sums[1]), products)

    return sum_of(builder, builder.fadd(*by_steps(builder, length, step, ZEROS, ZEROS)))


@generated()
def sum_products(builder: Any, kinds: Any, one: Any, other: Any, out: Any) -> None:
    """``sum_products(one, other, out)``: multiply two blocks' numbers; write four tiles' sums."""
    del kinds

    def step(place: Any, _: Any, sums: list[Any]) -> None:  # a row of both
        for half in range(2):
            first = builder.add(place, constant(SIDE * BLOCK * half))
            given = (load(builder, types.float32, each, first) for each in (one, other))
            for n, product in enumerate(each_of(builder, "fmul", *given)):
                sums[2 * half + n] = builder.fadd(sums[2 * half + n], product, FAST)

    sums = by_steps(builder, constant(SIDE * BLOCK), step, *[ZEROS] * 4)
    for number, each in enumerate(sums):
        store_total(builder, each, out, number)
