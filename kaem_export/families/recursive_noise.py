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
import onnx
from onnx import TensorProto, helper

from kaem_export.tables.lookup import Constants, signed_nodes

NUM_WORDS = 6
"""Words of a state, oldest first: x_{k-3}, x_{k-2}, x_{k-1}, y_{k-3}, y_{k-2}, y_{k-1}."""

MODULI = (2**32 - 209, 2**32 - 22853)
_WORDS = 2.0**32


def seed_nodes(source: str, num_streams: int, targets: list[str]) -> tuple[list[onnx.NodeProto], Constants]:
    """Turn uniforms (N, 6 M) into the states of M streams a row: six arrays (N, M), word j of stream p from j M + p.

    A signed uniform v names the word 1 + (floor(2^32 v) + 2^31) mod (m - 1), which is never 0: no state is forbidden.
    """
    node = helper.make_node
    signed, constants = signed_nodes(source, "seed_signed", "seed_")
    constants |= {
        "seed_words": np.float32(_WORDS),
        "seed_lift": np.int64(2**31),
        "seed_one": np.int64(1),
        **{f"seed_range_{which}": np.int64(modulus - 1) for which, modulus in enumerate(MODULI)},
        "seed_sizes": np.full(NUM_WORDS, num_streams, np.int64),
    }
    nodes = [
        # Plain uniforms in [1/2, 1) become signed ones, as everywhere; scaling by 2^32 is exact.
        *signed,
        node("Mul", ["seed_signed", "seed_words"], ["seed_scaled"]),
        node("Floor", ["seed_scaled"], ["seed_floor"]),
        node("Cast", ["seed_floor"], ["seed_whole"], to=TensorProto.INT64),
        node("Add", ["seed_whole", "seed_lift"], ["seed_lifted"]),
        node("Split", ["seed_lifted", "seed_sizes"], [f"seed_{word}" for word in range(NUM_WORDS)], axis=1),
    ]
    for word, target in enumerate(targets):
        nodes += [
            node("Mod", [f"seed_{word}", f"seed_range_{word // 3}"], [f"seed_rest_{word}"]),
            node("Add", [f"seed_rest_{word}", "seed_one"], [target]),
        ]
    return nodes, constants


def stream_nodes(states: list[str], new: list[str], target: str) -> tuple[list[onnx.NodeProto], Constants]:
    """Advance streams (N, M) by one: six words to the six that follow, and one signed uniform each, float32."""
    node = helper.make_node
    first, second = MODULI
    constants: Constants = {
        "mrg_modulus_1": np.int64(first),
        "mrg_modulus_2": np.int64(second),
        "mrg_plus_1": np.int64(1403580),
        "mrg_minus_1": np.int64(810728),
        "mrg_lift_1": np.int64(810728 * first),
        "mrg_plus_2": np.int64(527612),
        "mrg_minus_2": np.int64(1370589),
        "mrg_lift_2": np.int64(1370589 * second),
        # z - 1 = (x - y - 1) mod m1; y < m2 < m1, so adding m1 - 1 makes x - y positive.
        "mrg_lift_3": np.int64(first - 1),
        "mrg_one": np.int64(1),
        "mrg_half": np.int64((first + 1) // 2),
        "mrg_range": np.int64(first + 1),
        "mrg_unit": np.float32(1.0 / (first + 1)),
        "mrg_none": np.int64(0),
    }
    nodes = []
    for which, (taken, dropped) in enumerate(((states[1], states[0]), (states[5], states[3])), start=1):
        nodes += [
            node("Mul", [taken, f"mrg_plus_{which}"], [f"mrg_taken_{which}"]),
            node("Mul", [dropped, f"mrg_minus_{which}"], [f"mrg_dropped_{which}"]),
            node("Add", [f"mrg_taken_{which}", f"mrg_lift_{which}"], [f"mrg_lifted_{which}"]),
            node("Sub", [f"mrg_lifted_{which}", f"mrg_dropped_{which}"], [f"mrg_sum_{which}"]),
            node("Mod", [f"mrg_sum_{which}", f"mrg_modulus_{which}"], [new[3 * which - 1]]),
        ]
    nodes += [node("Identity", [states[word + 1]], [new[word]]) for word in (0, 1, 3, 4)]
    nodes += [
        node("Sub", [new[2], new[5]], ["mrg_difference"]),
        node("Add", ["mrg_difference", "mrg_lift_3"], ["mrg_positive"]),
        node("Mod", ["mrg_positive", "mrg_modulus_1"], ["mrg_z_less_1"]),
        node("Add", ["mrg_z_less_1", "mrg_one"], ["mrg_z"]),
        # u above 1/2 becomes the signed u - 1 while it is still a whole number: both tails stay exact.
        node("GreaterOrEqual", ["mrg_z", "mrg_half"], ["mrg_is_upper"]),
        node("Where", ["mrg_is_upper", "mrg_range", "mrg_none"], ["mrg_turn"]),
        node("Sub", ["mrg_z", "mrg_turn"], ["mrg_signed"]),
        node("Cast", ["mrg_signed"], ["mrg_float"], to=TensorProto.FLOAT),
        node("Mul", ["mrg_float", "mrg_unit"], [target]),
    ]
    return nodes, constants
