"""Vectors of neighbouring numbers in compiled functions, for loops too short to become vectors.

What `bits` loads is one vector; sums, products, comparisons and `where` are of its lanes. The
compiler makes of it what the processor has.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel import models
from numba.extending import lower_builtin, register_model, type_callable

intrinsic: Callable[..., Any] = extending.intrinsic  # whose types do not fit such use


class Vector(types.Type):
    """As many numbers as `lanes`, in a register."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")

    def of(self, dtype: Any) -> Vector:
        """As many of another kind."""
        return Vector(dtype, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _in_llvm(vector))


def _in_llvm(vector: Vector) -> ir.Type:
    if vector.dtype == types.boolean:
        element: ir.Type = ir.IntType(1)
    elif vector.dtype in (types.float32, types.float64):
        element = ir.FloatType() if vector.dtype == types.float32 else ir.DoubleType()
    else:
        element = ir.IntType(vector.dtype.bitwidth)
    return ir.VectorType(element, vector.lanes)


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _vector_at(context: Any, builder: Any, vector: Vector, of: Any, arguments: Any) -> Any:
    """Where in an array `of` some type a vector begins."""
    start = _place(context, builder, of, *arguments[:2])
    return builder.bitcast(start, _in_llvm(vector).as_pointer())


def _size(array: Any) -> int:
    return int(array.dtype.bitwidth // 8)


@intrinsic
def bits(typing, array, index, lanes):  # type: ignore[no-untyped-def]
    """What stands in `array` from `index` on."""
    vector = Vector(array.dtype, lanes.count)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        start = _vector_at(context, builder, vector, array, arguments)
        return builder.load(start, align=_size(array))

    return vector(array, types.intp, lanes), generate


@intrinsic
def filled(typing, like, lanes, value):  # type: ignore[no-untyped-def]
    """Every lane `value`, in the dtype of an array or a vector."""
    vector = Vector(like.dtype, lanes.count)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        one = context.cast(builder, arguments[2], value, like.dtype)
        none = ir.Constant(_in_llvm(vector), ir.Undefined)
        first = builder.insert_element(none, one, ir.IntType(32)(0))
        return builder.shuffle_vector(first, none, _every(_in_llvm(vector.of(types.int32)), 0))

    return vector(like, lanes, value), generate


@intrinsic
def number(typing, vector):  # type: ignore[no-untyped-def]
    """What `bits` stand for: a bfloat16, read as an integer, is the upper half of a float32."""
    if not isinstance(vector.dtype, types.Integer):
        return vector(vector), lambda context, builder, signature, arguments: arguments[0]

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        whole = _in_llvm(vector.of(types.int32))
        upper = builder.shl(builder.zext(arguments[0], whole), _every(whole, 16))
        return builder.bitcast(upper, _in_llvm(vector.of(types.float32)))

    return vector.of(types.float32)(vector), generate


@intrinsic
def wide(typing, vector):  # type: ignore[no-untyped-def]
    """The same in float64."""
    double = vector.of(types.float64)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if vector == double:
            return arguments[0]
        return builder.fpext(arguments[0], _in_llvm(double))

    return double(vector), generate


@intrinsic
def store(typing, array, index, vector):  # type: ignore[no-untyped-def]
    """Write to `array` from `index` on, rounded to the nearest (of two, the even) for bfloat16."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        value = arguments[2]
        if vector.dtype == types.float32 and isinstance(array.dtype, types.Integer):
            value = _rounded(builder, value, vector)
        kept = vector.of(array.dtype)
        start = _vector_at(context, builder, kept, array, arguments)
        builder.store(value, start, align=_size(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


def _rounded(builder: Any, value: Any, vector: Vector) -> Any:
    whole = _in_llvm(vector.of(types.int32))
    number = builder.bitcast(value, whole)
    odd = builder.and_(builder.lshr(number, _every(whole, 16)), _every(whole, 1))
    nearest = builder.add(builder.add(number, _every(whole, 0x7FFF)), odd)
    # The bits of what is not a number could carry over into infinity.
    none = builder.or_(number, _every(whole, 0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), none, nearest)
    upper = builder.lshr(kept, _every(whole, 16))
    return builder.trunc(upper, _in_llvm(vector.of(types.int16)))


def _every(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


@intrinsic
def where(typing, mask, yes, no):  # type: ignore[no-untyped-def]
    """`yes` in the lanes that `mask` has, `no` in the others."""
    return yes(mask, yes, no), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def prefetch(typing, array, index):  # type: ignore[no-untyped-def]
    """Have what stands at `index`, which may lie outside, come into the cache."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        start = _place(context, builder, array, *arguments)
        start = builder.bitcast(start, ir.IntType(8).as_pointer())
        whole = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [start.type, whole, whole, whole])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [start, whole(0), whole(3), whole(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def rounding(typing, vector):  # type: ignore[no-untyped-def]
    """1.5 · 2²³ in float32, 1.5 · 2⁵² in float64: what is added to it is rounded to an integer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return _every(_in_llvm(vector), 1.5 * 2.0 ** _fraction(vector))

    return vector(vector), generate


@intrinsic
def doubled(typing, vector, times):  # type: ignore[no-untyped-def]
    """`vector` · 2ⁿ, where n is the integer in the last bits of `times`, what `rounding` gave."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        whole = _in_llvm(vector.of(types.int32 if vector.dtype == types.float32 else types.int64))
        number, shifted = (builder.bitcast(one, whole) for one in arguments)
        exponent = builder.shl(shifted, _every(whole, _fraction(vector)))  # the rest falls out
        return builder.bitcast(builder.add(number, exponent), _in_llvm(vector))

    return vector(vector, times), generate


def _fraction(vector: Vector) -> int:
    """Bits after the point."""
    return 23 if vector.dtype == types.float32 else 52


@intrinsic
def multiply_add(typing, one, other, total):  # type: ignore[no-untyped-def]
    """`one · other + total`, in one instruction where the processor has it."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = _in_llvm(total)
        name = f"llvm.fmuladd.v{total.lanes}f{total.dtype.bitwidth}"
        kind = ir.FunctionType(vector, [vector] * 3)
        return builder.call(get_or_insert_function(builder.module, kind, name), arguments)

    return total(one, other, total), generate


def _operator(of: Callable[..., Any], emit: Callable[..., Any], *, compares: bool = False) -> None:
    """Let the operator `of` take two equal kinds of vectors."""

    @type_callable(of)
    def typing(context):  # type: ignore[no-untyped-def]
        def typer(one, other):  # type: ignore[no-untyped-def]
            if isinstance(one, Vector) and one == other:
                return one.of(types.boolean) if compares else one
            return None

        return typer

    @lower_builtin(of, Vector, Vector)
    def lower(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return emit(builder, isinstance(signature.args[0].dtype, types.Integer), *arguments)


def _compares(sign: str) -> Callable[..., Any]:
    def emit(builder: Any, integers: bool, one: Any, other: Any) -> Any:
        if integers:
            return builder.icmp_unsigned(sign, one, other)
        compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        return compare(sign, one, other)

    return emit


for _of in (operator.add, operator.iadd):
    _operator(_of, lambda builder, integers, one, other: builder.fadd(one, other))
_operator(operator.sub, lambda builder, integers, one, other: builder.fsub(one, other))
_operator(operator.mul, lambda builder, integers, one, other: builder.fmul(one, other))
_operator(operator.truediv, lambda builder, integers, one, other: builder.fdiv(one, other))
_operator(operator.or_, lambda builder, integers, one, other: builder.or_(one, other))
_operator(operator.and_, lambda builder, integers, one, other: builder.and_(one, other))
_operator(operator.gt, _compares(">"), compares=True)
_operator(operator.eq, _compares("=="), compares=True)
_operator(operator.ne, _compares("!="), compares=True)
