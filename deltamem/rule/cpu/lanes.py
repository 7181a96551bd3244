"""SIMD vectors of eight float32 numbers in compiled code, for loops that LLVM does not vectorise.

Loops over the few rows of a state are too short for LLVM's loop vectoriser. Here a vector is a value with `+`, `-` and `*`.
Multiply-add may be fused; nothing else is assumed (a NaN stays a NaN).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_UNALIGNED = 4  # bytes: the alignment of float32 itself


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__("float32_lanes")


lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _VECTOR)


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), _VECTOR.as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Load eight numbers of a flat float32 array, starting at an index."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, args), align=_UNALIGNED)

    return lanes(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Store eight numbers in a flat float32 array, starting at an index."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature, args), align=_UNALIGNED)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def spread(typing_context: Any, number: Any) -> Any:
    """Broadcast one number to all eight lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = ir.IntType(32)
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], index(0))
        return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

    return lanes(types.float32), generate


@intrinsic
def total(typing_context: Any, vector: Any) -> Any:
    """The sum of the eight numbers, added pairwise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR])
        add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(add, [ir.Constant(ir.FloatType(), 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(lanes), generate


@intrinsic
def totals(typing_context: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """The sums of eight vectors, as one vector."""
    even, odd = (ir.Constant(ir.VectorType(ir.IntType(32), LANES), [*range(first, 2 * LANES, 2)]) for first in (0, 1))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = list(args)
        while len(vectors) > 1:  # add neighbouring lanes: each pair of vectors becomes one, with half as many numbers of each
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            halves = [[builder.shuffle_vector(*pair, mask) for mask in (even, odd)] for pair in pairs]
            vectors = [builder.fadd(*half) for half in halves]
        return vectors[0]

    return lanes(*[lanes] * LANES), generate


def _define(operation: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def apply(typing_context: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=("contract",))

        return lanes(lanes, lanes), generate

    @overload(operation, strict=False)  # a strict overload would also compare the annotations of the signatures
    def choose(left: Any, right: Any) -> Any:
        if isinstance(left, _LanesType) and isinstance(right, _LanesType):
            return lambda left, right: apply(left, right)
        return None


_define(operator.add, "fadd")
_define(operator.iadd, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
