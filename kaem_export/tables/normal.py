"""Standard normal draws inside a graph: the normal quantile of uniforms, by the same tables as a prior's.

No Box-Muller: one uniform makes one draw, so a row of draws depends on its own uniforms alone, and both tails reach
6.3 deviations.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir

from kaem_export.onnx_builder import Op
from kaem_export.tables.collapse import standard_normal
from kaem_export.tables.fit_tables import Baked, bake
from kaem_export.tables.laws import Laws
from kaem_export.tables.lookup import Lookup, look_up, sign_uniforms

NORMAL_U_ERROR_BOUND = 2.0**-22
"""What |Phi(x(u)) - u| stays under: the tables' 2^-24, one float of x where the density is largest, and a reserve."""


def draw_normals(op: Op, uniform: ir.Value) -> Lookup:
    """Turn uniforms into standard normal draws, with 2 KB of tables, however many columns there are.

    Args:
        op: Builder of the graph.
        uniform: Uniforms, float32 (N, M): signed ones in [-1/2, 1/2], or plain ones in [0, 1).

    Returns:
        The lookup; its quantiles are the draws, float32 (N, M).
    """
    return look_up(op, normal_tables().tables, sign_uniforms(op, uniform))


@cache
def normal_tables() -> Baked:
    """Return the tables of N(0, 1), one function that any number of columns follows."""
    alone = np.zeros(1)
    return bake(Laws(parts=(standard_normal(),), law_of=np.zeros(1, int), offset=alone, scale=alone + 1.0))
