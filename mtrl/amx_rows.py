"""What happens to a row of numbers on its way to tiles and from them, for kernels to call.

A loop that a compiler makes of Python goes by several registers at once and then number by number
through what is left, up to a hundred of a row's few hundred. Here the last step is like all others,
with what is beyond the row masked, and a row is rounded by the instruction that does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import tiles
from .amx import BLOCK, SIDE

_BIT, _SHORT, _INTEGER, _FLOAT = ir.IntType(1), ir.IntType(16), ir.IntType(64), ir.FloatType()
_WIDE = ir.IntType(32)
_FLOATS, _WORDS = ir.VectorType(_FLOAT, SIDE), ir.VectorType(_WIDE, SIDE)
_SHORTS, _HALF = ir.VectorType(_SHORT, BLOCK), ir.VectorType(_SHORT, SIDE)
_MASK = ir.VectorType(_BIT, BLOCK)
_FAST = ("reassoc", "contract", "nsz")

Vectors = tuple[Any, Any]
"""32 numbers of float32, in two registers."""


def _constant(number: int) -> Any:
    return ir.Constant(_INTEGER, number)


def _everywhere(builder: Any, value: Any, count: int = SIDE) -> Any:
    kind = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_WIDE, 0))
    zeros = ir.Constant(ir.VectorType(_WIDE, count), None)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _halves(builder: Any, vector: Any) -> Vectors:
    undefined = ir.Constant(vector.type, ir.Undefined)
    low, high = (
        builder.shuffle_vector(
            vector, undefined, ir.Constant(_WORDS, list(range(first, first + SIDE)))
        )
        for first in (0, SIDE)
    )
    return low, high


class _Row:
    """Generates steps of 32 numbers through rows of one length.

    Args:
        builder: Of the function.
        length: Numbers in a row.
    """

    def __init__(self, builder: Any, length: Any) -> None:
        self.builder, self._length = builder, length

    def steps(self, step: Callable[[Any, Any, list[Any]], None], *sums: Any) -> list[Any]:
        """Generate a loop in which ``step(place, mask, sums)`` replaces sums; return their ends."""
        builder = self.builder
        places = [cgutils.alloca_once_value(builder, each) for each in sums]
        with cgutils.for_range_slice(
            builder, _constant(0), self._length, _constant(BLOCK)
        ) as (place, _):
            lanes = ir.Constant(ir.VectorType(_SHORT, BLOCK), list(range(BLOCK)))
            left = builder.sub(self._length, place)
            is_more = builder.icmp_signed(">", left, _constant(BLOCK))
            left = builder.trunc(builder.select(is_more, _constant(BLOCK), left), _SHORT)
            mask = builder.icmp_unsigned("<", lanes, _everywhere(builder, left, BLOCK))
            current = [builder.load(each) for each in places]
            step(place, mask, current)
            for each, value in zip(places, current, strict=True):
                builder.store(value, each)
        return [builder.load(each) for each in places]

    def address(self, first: Any, place: Any, size: int) -> Any:
        return self.builder.add(first, self.builder.mul(place, _constant(size)))

    def _masked(self, name: str, kind: Any, result: Any, *arguments: Any) -> Any:
        function = ir.FunctionType(result, [each.type for each in arguments])
        number = "f32" if kind.element == _FLOAT else "i16"
        name = f"llvm.masked.{name}.v{kind.count}{number}.p0"
        called = cgutils.get_or_insert_function(self.builder.module, function, name)
        return self.builder.call(called, arguments)

    def load_bf16(self, address: Any, mask: Any) -> Any:
        """Load 32 numbers, zeros where they are masked."""
        builder = self.builder
        pointer = builder.inttoptr(address, _SHORTS.as_pointer())
        given = pointer, ir.Constant(_WIDE, 2), mask, ir.Constant(_SHORTS, None)
        return self._masked("load", _SHORTS, _SHORTS, *given)

    def load(self, numbers: Any, first: Any, place: Any, mask: Any) -> Vectors:
        """Load 32 of bf16 or float32 as float32."""
        builder = self.builder
        if numbers == types.uint16:
            whole = self.load_bf16(self.address(first, place, 2), mask)
            sixteen = ir.Constant(_WORDS, [16] * SIDE)
            low, high = (
                builder.bitcast(builder.shl(builder.zext(half, _WORDS), sixteen), _FLOATS)
                for half in _halves(builder, whole)
            )
            return low, high
        address = self.address(first, place, 4)
        low, high = (
            self._masked(
                "load",
                _FLOATS,
                _FLOATS,
                builder.inttoptr(builder.add(address, _constant(64 * n)), _FLOATS.as_pointer()),
                ir.Constant(_WIDE, 4),
                half,
                ir.Constant(_FLOATS, None),
            )
            for n, half in enumerate(_halves(builder, mask))
        )
        return low, high

    def rounded(self, values: Vectors) -> Any:
        """Round 32 numbers to bf16."""
        return self.builder.bitcast(tiles.rounded_to_bf16(self.builder, *values), _SHORTS)

    def store(self, numbers: Any, values: Vectors, first: Any, place: Any, mask: Any) -> None:
        """Store those that are not masked, as bf16 or float32."""
        builder = self.builder
        if numbers == types.uint16:
            pointer = builder.inttoptr(self.address(first, place, 2), _SHORTS.as_pointer())
            self.masked_store(_SHORTS, self.rounded(values), pointer, 2, mask)
            return
        address = self.address(first, place, 4)
        for n, half in enumerate(_halves(builder, mask)):
            pointer = builder.inttoptr(
                builder.add(address, _constant(64 * n)), _FLOATS.as_pointer()
            )
            self.masked_store(_FLOATS, values[n], pointer, 4, half)

    def masked_store(self, kind: Any, value: Any, pointer: Any, alignment: int, mask: Any) -> None:
        """Store a register but for what is masked."""
        given = value, pointer, ir.Constant(_WIDE, alignment), mask
        self._masked("store", kind, ir.VoidType(), *given)

    def store_whole(self, values: Any, address: Any) -> None:
        """Store a register."""
        pointer = self.builder.inttoptr(address, values.type.as_pointer())
        self.builder.store(values, pointer).align = 64

    def add(self, *values: Vectors) -> Vectors:
        total = values[0]
        for each in values[1:]:
            total = self._each("fadd", total, each)
        return total

    def subtract(self, left: Vectors, right: Vectors) -> Vectors:
        return self._each("fsub", left, right)

    def multiply(self, left: Vectors, right: Vectors) -> Vectors:
        return self._each("fmul", left, right)

    def _each(self, name: str, left: Vectors, right: Vectors) -> Vectors:
        operation = getattr(self.builder, name)
        low, high = (operation(a, b, _FAST) for a, b in zip(left, right, strict=True))
        return low, high

    def passing(self, values: Vectors, reference: Vectors, relu: Any) -> Vectors:
        """Return zeros where there is a ReLU and the reference is not positive."""
        builder, zero = self.builder, ir.Constant(_FLOATS, None)
        low, high = (
            builder.select(
                builder.and_(relu, builder.fcmp_ordered("<=", each, zero)), zero, value
            )
            for each, value in zip(reference, values, strict=True)
        )
        return low, high

    def where(self, mask: Any, values: Vectors) -> Vectors:
        """Return zeros where the mask is not set."""
        zero = ir.Constant(_FLOATS, None)
        masks = _halves(self.builder, mask)
        low, high = (
            self.builder.select(half, each, zero)
            for half, each in zip(masks, values, strict=True)
        )
        return low, high

    def total(self, sums: Any) -> Any:
        """Add up a register."""
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _FLOATS])
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.vector.reduce.fadd.v{SIDE}f32"
        )
        return self.builder.call(function, [ir.Constant(_FLOAT, 0.0), sums], fastmath=_FAST)

    def repeated(self, value: Any) -> Vectors:
        vector = _everywhere(self.builder, value)
        return vector, vector


def _pack(tc: Any, rows: Any, row: Any, length: Any, out: Any, distance: Any) -> Any:
    del tc, row, length, out, distance

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, row, length, out, distance = arguments
        steps = _Row(builder, length)

        def step(place: Any, mask: Any, _: list[Any]) -> None:
            if rows.dtype == types.uint16:
                packed = steps.load_bf16(steps.address(row, place, 2), mask)
            else:
                packed = steps.rounded(steps.load(rows.dtype, row, place, mask))
            number = builder.udiv(place, _constant(BLOCK))
            steps.store_whole(packed, builder.add(out, builder.mul(number, distance)))

        steps.steps(step)
        return context.get_dummy_value()

    return types.void(rows, *[types.intp] * 4), generate


def _join(
    tc: Any,
    rows: Any,
    first: Any,
    second: Any,
    one: Any,
    other: Any,
    length: Any,
    out: Any,
    distance: Any,
) -> Any:
    del tc, first, second, length, out, distance
    scaled = one == types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, first, second, one, other, length, out, distance = arguments
        steps = _Row(builder, length)
        given = []
        for row, factor in ((first, one), (second, other)):
            exists = builder.icmp_signed("!=", row, _constant(0))
            # What is masked is not read, but an address that cannot be takes time.
            somewhere = builder.select(exists, row, out)
            given.append((somewhere, factor, _everywhere(builder, exists, BLOCK)))
        order = [BLOCK * (n % 2) + n // 2 for n in range(2 * BLOCK)]

        def step(place: Any, mask: Any, _: list[Any]) -> None:
            both = []
            for row, factor, exists in given:
                some = builder.and_(mask, exists)
                if rows.dtype == types.uint16 and not scaled:
                    both.append(steps.load_bf16(steps.address(row, place, 2), some))
                    continue
                values = steps.load(rows.dtype, row, place, some)
                if scaled:
                    values = steps.multiply(values, steps.repeated(factor))
                both.append(steps.rounded(values))
            number = builder.udiv(place, _constant(BLOCK))
            place = builder.add(out, builder.mul(number, distance))
            for half in range(2):
                places = ir.Constant(
                    ir.VectorType(_WIDE, BLOCK), order[BLOCK * half : BLOCK * (half + 1)]
                )
                joined = builder.shuffle_vector(*both, places)
                steps.store_whole(joined, builder.add(place, _constant(1024 * half)))

        steps.steps(step)
        return context.get_dummy_value()

    kinds = [types.intp] * 2 + [one, other] + [types.intp] * 3
    return types.void(rows, *kinds), generate


def _add(tc: Any, values: Any, added: Any, length: Any) -> Any:
    del tc, values, added, length

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        values, added, length = arguments
        steps = _Row(builder, length)

        def step(place: Any, mask: Any, sums: list[Any]) -> None:
            given = (steps.load(types.float32, each, place, mask) for each in (values, added))
            total = steps.add(*given)
            steps.store(types.float32, total, values, place, mask)
            sums[:] = steps.add((sums[0], sums[1]), total)

        sums = steps.steps(step, *[ir.Constant(_FLOATS, None)] * 2)
        return steps.total(builder.fadd(*sums))

    return types.float32(*[types.intp] * 3), generate


def _squares(tc: Any, values: Any, mean: Any, length: Any) -> Any:
    del tc, values, mean, length

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        values, mean, length = arguments
        steps = _Row(builder, length)
        mean = steps.repeated(mean)

        def step(place: Any, mask: Any, sums: list[Any]) -> None:
            given = steps.load(types.float32, values, place, mask)
            given = steps.where(mask, steps.subtract(given, mean))
            sums[:] = steps.add((sums[0], sums[1]), steps.multiply(given, given))

        sums = steps.steps(step, *[ir.Constant(_FLOATS, None)] * 2)
        return steps.total(builder.fadd(*sums))

    return types.float32(types.intp, types.float32, types.intp), generate


def _write(
    tc: Any,
    outs: Any,
    values: Any,
    mean: Any,
    scale: Any,
    length: Any,
    out: Any,
    relu: Any,
) -> Any:
    del tc, values, mean, scale, length, out, relu

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        _, values, mean, scale, length, out, relu = arguments
        steps = _Row(builder, length)
        mean, scale = steps.repeated(mean), steps.repeated(scale)
        relu = _everywhere(builder, builder.trunc(relu, _BIT))
        zero = ir.Constant(_FLOATS, None)

        def step(place: Any, mask: Any, _: list[Any]) -> None:
            given = steps.load(types.float32, values, place, mask)
            given = steps.multiply(steps.subtract(given, mean), scale)
            low, high = (  # NaN stays
                builder.select(builder.and_(relu, builder.fcmp_ordered("<", each, zero)), zero, each)
                for each in given
            )
            steps.store(outs.dtype, (low, high), out, place, mask)

        steps.steps(step)
        return context.get_dummy_value()

    kinds = [types.intp, types.float32, types.float32, types.intp, types.intp, types.boolean]
    return types.void(outs, *kinds), generate


def _activate(
    tc: Any, outs: Any, values: Any, added: Any, length: Any, out: Any, relu: Any
) -> Any:
    del tc, values, added, length, out, relu

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        _, values, added, length, out, relu = arguments
        steps = _Row(builder, length)
        relu = _everywhere(builder, builder.trunc(relu, _BIT))
        zero = ir.Constant(_FLOATS, None)
        lanes = ir.Constant(ir.VectorType(_SHORT, BLOCK), list(range(BLOCK)))
        mask = builder.icmp_unsigned("<", lanes, _everywhere(builder, builder.trunc(length, _SHORT), BLOCK))
        full = ir.Constant(_MASK, [1] * BLOCK)
        given = steps.add(*(steps.load(types.float32, each, _constant(0), full) for each in (values, added)))
        low, high = (  # NaN stays
            builder.select(builder.and_(relu, builder.fcmp_ordered("<", each, zero)), zero, each)
            for each in given
        )
        steps.store(outs.dtype, (low, high), out, _constant(0), mask)
        return context.get_dummy_value()

    kinds = [types.intp] * 4 + [types.boolean]
    return types.void(outs, *kinds), generate


def _sums(
    tc: Any,
    gradients: Any,
    references: Any,
    gradient: Any,
    reference: Any,
    length: Any,
    relu: Any,
    out: Any,
) -> Any:
    del tc, gradient, reference, length, relu, out

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        _, _, gradient, reference, length, relu, out = arguments
        steps = _Row(builder, length)
        relu = _everywhere(builder, builder.trunc(relu, _BIT))

        def step(place: Any, mask: Any, sums: list[Any]) -> None:
            given = steps.load(gradients.dtype, gradient, place, mask)
            along = steps.load(references.dtype, reference, place, mask)
            for value, factor in zip(steps.passing(given, along, relu), along, strict=True):
                sums[0] = builder.fadd(sums[0], value, _FAST)
                sums[1] = builder.fadd(sums[1], builder.fmul(value, factor, _FAST), _FAST)

        for n, each in enumerate(steps.steps(step, *[ir.Constant(_FLOATS, None)] * 2)):
            place = builder.inttoptr(builder.add(out, _constant(4 * n)), _FLOAT.as_pointer())
            builder.store(steps.total(each), place)
        return context.get_dummy_value()

    kinds = [types.intp] * 3 + [types.boolean, types.intp]
    return types.void(gradients, references, *kinds), generate


def _pass_back(
    tc: Any,
    gradients: Any,
    references: Any,
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
    del tc, gradient, reference, length, relu, mean, slope, scale, packed, distance, errors, sums

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        _, _, gradient, reference, length, relu, *arguments = arguments
        *factors, packed, distance, errors, total = arguments
        steps = _Row(builder, length)
        relu = _everywhere(builder, builder.trunc(relu, _BIT))
        mean, slope, scale = map(steps.repeated, factors)
        is_kept = builder.icmp_signed("!=", errors, _constant(0))
        zero = ir.Constant(_SHORTS, None)

        def step(place: Any, mask: Any, found: list[Any]) -> None:
            given = steps.load(gradients.dtype, gradient, place, mask)
            along = steps.load(references.dtype, reference, place, mask)
            passing = steps.passing(given, along, relu)
            taken = steps.add(mean, steps.multiply(along, slope))
            values = steps.multiply(scale, steps.subtract(passing, taken))
            values = steps.where(mask, values)
            rounded = steps.rounded(values)
            number = builder.udiv(place, _constant(BLOCK))
            steps.store_whole(rounded, builder.add(packed, builder.mul(number, distance)))
            found[0] = builder.or_(found[0], rounded)
            with builder.if_then(is_kept):
                out = builder.inttoptr(steps.address(errors, place, 2), _SHORTS.as_pointer())
                steps.masked_store(_SHORTS, rounded, out, 2, mask)
                before = steps.load(types.float32, total, place, mask)
                steps.store(types.float32, steps.add(before, values), total, place, mask)

        (found,) = steps.steps(step, zero)
        # But for their signs, which zeros have as well.
        found = builder.shl(found, ir.Constant(_SHORTS, [1] * BLOCK))
        some = builder.bitcast(builder.icmp_unsigned("!=", found, zero), _WIDE)
        return builder.icmp_unsigned("!=", some, ir.Constant(_WIDE, 0))

    kinds = [types.intp] * 3 + [types.boolean] + [types.float32] * 3 + [types.intp] * 4
    return types.boolean(gradients, references, *kinds), generate


def _sum_products(tc: Any, one: Any, other: Any, out: Any) -> Any:
    del tc, one, other, out

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        one, other, out = arguments
        steps = _Row(builder, _constant(SIDE * BLOCK))
        quadrants = [(a, b) for a in range(2) for b in range(2)]

        def step(place: Any, _: Any, sums: list[Any]) -> None:
            for n, (a, b) in enumerate(quadrants):
                factors = []
                for block in (one, other):
                    first = _constant(4 * (SIDE * BLOCK * a + SIDE * b))
                    address = builder.add(steps.address(block, place, 4), first)
                    pointer = builder.inttoptr(address, _FLOATS.as_pointer())
                    factors.append(builder.load(pointer, align=4))
                sums[n] = builder.fadd(sums[n], builder.fmul(*factors, _FAST), _FAST)

        sums = steps.steps(step, *[ir.Constant(_FLOATS, None)] * 4)
        for n, each in enumerate(sums):
            place = builder.inttoptr(builder.add(out, _constant(4 * n)), _FLOAT.as_pointer())
            builder.store(steps.total(each), place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


def _at(typing_context: Any, address: Any) -> Any:
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


_intrinsic = (lambda function: function) if numba.config.DISABLE_JIT else intrinsic

sum_products: Callable[[int, int, int], None] = _intrinsic(_sum_products)
"""``sum_products(one, other, out)``: multiply two blocks' numbers; write their four tiles' sums."""

at: Callable[[int], Any] = _intrinsic(_at)
"""Return an address as `numba.carray` takes it."""

pack_row: Callable[..., None] = _intrinsic(_pack)
"""``pack_row(rows, row, length, out, distance)``: write a row as bf16, 32 numbers at a time.

Args:
    rows: An array of bf16 or float32 that the row is of; only its type matters.
    row: Its address.
    length: Of the row; behind it zeros fill up the last 32.
    out, distance: Where the first 32 go, and bytes from there to the next.
"""

join_rows: Callable[..., None] = _intrinsic(_join)
"""``join_rows(rows, first, second, one, other, length, out, distance)``: write pairs of bf16.

Args:
    rows: As of `pack_row`.
    first, second: Addresses of two rows; 0 for one of zeros.
    one, other: Factors of float32 that they are multiplied by, or integers for none.
    length: As of `pack_row`.
    out, distance: Where the first 16 pairs go, the next 16 a tile further, and bytes from there to
        the next 32.
"""

add_to_row: Callable[[int, int, int], Any] = _intrinsic(_add)
"""``add_to_row(values, added, length)``: add a row of float32 to another; return the sum of all."""

squares_of_row: Callable[[int, Any, int], Any] = _intrinsic(_squares)
"""``squares_of_row(values, mean, length)``: return the sum of squares of a row less its mean."""

write_row: Callable[..., None] = _intrinsic(_write)
"""``write_row(outs, values, mean, scale, length, out, relu)``: write ``(values - mean) * scale``.

Args:
    outs: An array of bf16 or float32 that it is written to; only its type matters.
    values, length: Of float32.
    mean, scale: Of float32.
    out: Where it goes.
    relu: Whether zeros stand for negative numbers.
"""

activate_row: Callable[..., None] = _intrinsic(_activate)
"""``activate_row(outs, values, added, length, out, relu)``: write ``values + added`` or 0, up to 32.

Args:
    outs: As of `write_row`.
    values, added: Addresses of 32 numbers of float32.
    length: How many of their sums are written.
    out, relu: As of `write_row`.
"""

sums_of_row: Callable[..., None] = _intrinsic(_sums)
"""``sums_of_row(gradients, references, gradient, reference, length, relu, out)``.

Write the sum of a row of gradients, with `relu` of those where `reference` is positive, and that of
their products with `reference`.
"""

pass_back: Callable[..., bool] = _intrinsic(_pass_back)
"""Take a row of gradients back through ReLU and norm; tell whether there is more than zeros in it.

Args:
    gradients, references: Arrays that the next two are of; only their types matter.
    gradient, reference: Addresses of the row and of what came out of the norm or, without one, of
        the ReLU.
    length: Of both.
    relu: Whether what `reference` shows to be zero stays behind.
    mean, slope, scale: The result is ``scale * (passed - mean - slope * reference)``.
    packed, distance: As `out` and `distance` of `pack_row`.
    errors: Where it goes as well, as bf16, or 0.
    sums: What it is added to then, of float32.
"""
