"""Noise of many steps from few uniforms, in the graph: one MRG32k3a stream per row and pixel.

A thousand steps of ancestral noise would be a thousand uniforms per pixel of input. Instead every pixel has six more
uniforms, the state of its own stream of L'Ecuyer's combined multiple recursive generator (Operations Research 47,
1999), which is published, portable and passes every common test:

    x_k = (1403580 x_{k-2} - 810728 x_{k-3}) mod m1,     m1 = 2^32 - 209
    y_k = ( 527612 y_{k-1} - 1370589 y_{k-3}) mod m2,    m2 = 2^32 - 22853
    z_k = (x_k - y_k) mod m1, in 1 .. m1,     u_k = z_k / (m1 + 1)

All products stay below 2^53, so int64 holds them; only operators that every runtime has for int64 are used (no
bitwise ones, which TensorRT refuses), and no operand is ever negative where a remainder is taken. A row's noise
depends on nothing but its own uniforms.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kaem_export.onnx_builder import Op, add_constant, split
from kaem_export.tables.lookup import sign_uniforms

NUM_WORDS = 6
"""Words of a state, oldest first: x_{k-3}, x_{k-2}, x_{k-1}, y_{k-3}, y_{k-2}, y_{k-1}."""

MODULI = (2**32 - 209, 2**32 - 22853)
_WORDS = 2.0**32


def seed_streams(op: Op, uniform: ir.Value, num_streams: int) -> list[ir.Value]:
    """Turn uniforms (N, 6 M) into the states of M streams a row: six arrays (N, M), word j of stream p from j M + p.

    A signed uniform v names the word 1 + (floor(2^32 v) + 2^31) mod (m - 1), which is never 0: no state is forbidden.
    """
    # Plain uniforms in [1/2, 1) become signed ones, as everywhere; scaling by 2^32 is exact.
    floor = op.Floor(op.Mul(sign_uniforms(op, uniform), _WORDS))
    lifted = op.Add(op.Cast(floor, to=ir.DataType.INT64), 2**31)
    words = split(op, lifted, [num_streams] * NUM_WORDS, 1)
    return [op.Add(op.Mod(word, MODULI[place // 3] - 1), 1) for place, word in enumerate(words)]


def advance_streams(op: Op, states: list[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
    """Advance streams (N, M) by one: six words to the six that follow, and one signed uniform each, float32."""
    first, second = MODULI
    x = _recur(op, states[1], states[0], (1403580, 810728, first))
    y = _recur(op, states[5], states[3], (527612, 1370589, second))
    # z - 1 = (x - y - 1) mod m1; y < m2 < m1, so adding m1 - 1 makes x - y positive.
    z = op.Add(op.Mod(op.Add(op.Sub(x, y), first - 1), first), 1)
    # u above 1/2 becomes the signed u - 1 while it is still a whole number: both tails stay exact.
    turn = op.Where(op.GreaterOrEqual(z, (first + 1) // 2), _whole(op, first + 1), _whole(op, 0))
    unit = add_constant(op, np.float32(1.0 / (first + 1)), "unit")
    signed = op.Mul(op.Cast(op.Sub(z, turn), to=ir.DataType.FLOAT), unit)
    kept = [op.Identity(states[word]) for word in (1, 2, 4, 5)]
    return [*kept[:2], x, *kept[2:], y], signed


def _recur(op: Op, taken: ir.Value, dropped: ir.Value, numbers: tuple[int, int, int]) -> ir.Value:
    """Return (plus taken - minus dropped) mod m, without a negative operand."""
    plus, minus, modulus = numbers
    lifted = op.Add(op.Mul(taken, plus), minus * modulus)
    return op.Mod(op.Sub(lifted, op.Mul(dropped, minus)), modulus)


def _whole(op: Op, number: int) -> ir.Value:
    return add_constant(op, np.int64(number), "whole")
