"""What happens to rows of gradients on their way back, for kernels to call; see `rows`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..compiler import generated
from .instructions import BLOCK, LINE
from .vectors import (
    FAST,
    SHORTS,
    WORD,
    ZEROS,
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
    to_bf16,
    twice,
    where,
)


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
