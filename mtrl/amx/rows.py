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
from numba.core import cgutils

from ..compiler import generated
from .instructions import BLOCK, LINE, SIDE, TILE
from .vectors import (
    ADDRESS,
    FAST,
    PLACES,
    SHORTS,
    WORD,
    ZEROS,
    Vectors,
    by_steps,
    constant,
    each_of,
    everywhere,
    first_of,
    integer_at,
    load,
    masked_load,
    masked_store,
    packed_place,
    past_relu,
    place_of,
    select,
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
def scale_row(builder: Any, kinds: Any, row: Any, scale: Any, length: Any, out: Any) -> None:
    """``scale_row(row, scale, length, out)``: write a row times a number."""
    del kinds
    scales = twice(builder, scale)

    def step(place: Any, mask: Any, _: list[Any]) -> None:
        given = load(builder, types.float32, row, place, mask)
        given = each_of(builder, "fmul", given, scales)
        store(builder, types.float32, given, out, place, mask)

    by_steps(builder, length, step)


@generated(arrays=2)
def sums_of_row(
    builder: Any, kinds: Any, gradient: Any, reference: Any, length: Any, relu: Any, out: Any
) -> None:
    """``sums_of_row(gradients, references, gradient, reference, length, relu, out)``.

    Write the sum of a row of gradients, with `relu` of those where `reference` is positive, and
    that of their products with `reference`.
    """
    has_relu = everywhere(builder, relu)

    def step(place: Any, mask: Any, sums: list[Any]) -> None:
        given = load(builder, kinds[0], gradient, place, mask)
        along = load(builder, kinds[1], reference, place, mask)
        passing = past_relu(builder, given, along, has_relu, "<=")
        for value, factor in zip(passing, along, strict=True):
            sums[0] = builder.fadd(sums[0], value, FAST)
            sums[1] = builder.fadd(sums[1], builder.fmul(value, factor, FAST), FAST)

    for number, sums in enumerate(by_steps(builder, length, step, ZEROS, ZEROS)):
        store_total(builder, sums, out, number)


@generated(types.boolean, arrays=2)
def pass_back(
    builder: Any,
    kinds: Any,
    gradient: Any,
    reference: Any,
    length: Any,
    relu: Any,
    norm: Any,
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
    what passes the ReLU or, with a norm, ``scale * (passed - mean - slope * reference)``.

    Args:
        builder: Generates it.
        kinds: Types of gradients and references.
        gradient: The row.
        reference: What came out of the norm or, without one, of the ReLU.
        length: Of both.
        relu: Whether what `reference` shows to be zero stays behind.
        norm: Whether there is one; else `reference` may be infinite, and is only looked at.
        mean: Of what passed.
        slope: Of what passed along `reference`.
        scale: 1 / the deviation before the norm.
        packed: Where the result goes, as `out` of `pack_row`.
        distance: As of `pack_row`.
        errors: Where it goes as well, as bf16, or 0.
        sums: What it is added to then.
    """
    has_relu, has_norm = everywhere(builder, relu), everywhere(builder, norm)
    means, slopes, scales = (twice(builder, each) for each in (mean, slope, scale))
    is_kept = builder.icmp_signed("!=", errors, constant(0))
    zero = ir.Constant(SHORTS, None)

    def step(place: Any, mask: Any, found: list[Any]) -> None:
        given = load(builder, kinds[0], gradient, place, mask)
        along = load(builder, kinds[1], reference, place, mask)
        passing = past_relu(builder, given, along, has_relu, "<=")
        taken = each_of(builder, "fadd", means, each_of(builder, "fmul", along, slopes))
        values = each_of(builder, "fmul", scales, each_of(builder, "fsub", passing, taken))
        values = select(builder, has_norm, values, passing)
        values = where(builder, mask, values)
        rounded = to_bf16(builder, values)
        store_whole(builder, rounded, packed_place(builder, packed, place, distance))
        found[0] = builder.or_(found[0], rounded)
        with builder.if_then(is_kept):
            masked_store(builder, rounded, place_of(builder, errors, place, 2), mask)
            before = load(builder, types.float32, sums, place, mask)
            total = each_of(builder, "fadd", before, values)
            store(builder, types.float32, total, sums, place, mask)

    (found,) = by_steps(builder, length, step, zero)
    # But for their signs, which zeros have as well.
    found = builder.shl(found, ir.Constant(SHORTS, [1] * BLOCK))
    some = builder.bitcast(builder.icmp_unsigned("!=", found, zero), WORD)
    return builder.icmp_unsigned("!=", some, ir.Constant(WORD, 0))


@generated()
def pass_columns_back(
    builder: Any,
    kinds: Any,
    values: Any,
    distance: Any,
    count: Any,
    places: Any,
    tasks: Any,
    reference: Any,
    length: Any,
    size: Any,
    relu: Any,
    packed: Any,
    errors: Any,
    sums: Any,
) -> None:
    """Take up to 32 columns of up to 32 rows of gradients back through a ReLU.

    Args:
        builder: Generates it.
        kinds: None.
        values: The gradients' first row; 32 are read of each.
        distance: Bytes from one to the next.
        count: Of rows.
        places: Where their numbers in other matrices lie, as integers,
        tasks: and those of their tasks.
        reference: The columns' first row of the ReLU's results, in bf16.
        length: Of a row of all other matrices, in numbers.
        size: Of the columns.
        relu: Whether what `reference` shows to be zero stays behind.
        packed: A left factor's two tiles for them.
        errors: The columns' first row of where the result goes as well, as bf16, or 0.
        sums: The same of what a task's rows are added up in then.
    """
    del kinds
    mask, zero = first_of(builder, size), constant(0)
    passes = builder.not_(everywhere(builder, relu, BLOCK))
    is_kept = builder.icmp_signed("!=", errors, zero)
    magnitude = ir.Constant(SHORTS, [0x7FFF] * BLOCK)
    totals = [cgutils.alloca_once_value(builder, ZEROS) for _ in range(2)]
    current = cgutils.alloca_once_value(builder, integer_at(builder, tasks, zero))

    def add_totals() -> None:
        row = builder.mul(builder.load(current), length)
        before = load(builder, types.float32, sums, row, mask)
        low, high = (builder.load(each) for each in totals)
        summed = each_of(builder, "fadd", before, (low, high))
        store(builder, types.float32, summed, sums, row, mask)

    with cgutils.for_range(builder, count) as loop:
        row = builder.mul(integer_at(builder, places, loop.index), length)
        along = masked_load(builder, SHORTS, place_of(builder, reference, row, 2), mask)
        # Of a ReLU, what is not zero is positive, or not a number.
        some = builder.icmp_unsigned(
            "!=", builder.and_(along, magnitude), ir.Constant(SHORTS, None)
        )
        passing = builder.and_(mask, builder.or_(some, passes))
        first = builder.add(values, builder.mul(loop.index, distance))
        given = where(builder, passing, load(builder, types.float32, first, zero))
        rounded = to_bf16(builder, given)
        store_whole(builder, rounded, builder.add(packed, builder.mul(loop.index, constant(LINE))))
        with builder.if_then(is_kept):
            masked_store(builder, rounded, place_of(builder, errors, row, 2), mask)
            task = integer_at(builder, tasks, loop.index)
            with builder.if_then(builder.icmp_signed("!=", task, builder.load(current))):
                add_totals()
                builder.store(task, current)
                for each in totals:
                    builder.store(ZEROS, each)
            for each, value in zip(totals, given, strict=True):
                builder.store(builder.fadd(builder.load(each), value, FAST), each)
    with builder.if_then(is_kept):
        add_totals()


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
