"""tanh and the logistic function in float32, written so that LLVM vectorises a loop over them.

Both propagate NaN. Their relative errors stay below 3e-7; the polynomials are near-minimax fits made for this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deltamem.rule.cpu.compile import part

_F = np.float32
_ONE, _TWO, _HALF = _F(1), _F(2), _F(0.5)
_PER_LN2 = _F(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)  # they sum to ln 2; the first has few digits, so products are exact
_E2, _E3, _E4, _E5, _E6 = _F(0.5), _F(0.16666518), _F(0.041666206), _F(0.00836889), _F(0.0013950492)
_T3, _T5, _T7, _T9, _T11 = _F(-0.33333284), _F(0.1333149), _F(-0.053743497), _F(0.020650586), _F(-0.005717044)
_LIMIT = _F(87.0)  # exp(87) is still a float32, and so is exp(-87)
_SMALL = _F(0.625)


@intrinsic
def _power_of_two(typing_context: Any, whole: Any) -> Any:
    """2 to the power of an integer between -126 and 127, by setting the exponent bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(32)
        exponent = builder.add(builder.fptosi(args[0], integer), integer(127))
        return builder.bitcast(builder.shl(exponent, integer(23)), ir.FloatType())

    return types.float32(types.float32), generate


@part
def _exp(x: Any) -> Any:
    x = -_LIMIT if x < -_LIMIT else x  # comparisons with NaN are false, so a NaN stays
    x = _LIMIT if x > _LIMIT else x
    whole = np.floor((x if x == x else _ONE) * _PER_LN2 + _HALF)
    rest = x - whole * _LN2_HIGH - whole * _LN2_LOW
    tail = _E2 + rest * (_E3 + rest * (_E4 + rest * (_E5 + rest * _E6)))
    return (_ONE + (rest + rest * rest * tail)) * _power_of_two(whole)


@part
def logistic(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _ONE / (_ONE + _exp(-x))


@part
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    size = abs(x)
    square = x * x
    near = x + x * square * (_T3 + square * (_T5 + square * (_T7 + square * (_T9 + square * _T11))))
    far = _ONE - _TWO / (_exp(_TWO * size) + _ONE)
    return near if size < _SMALL else (far if x > _F(0) else -far)
