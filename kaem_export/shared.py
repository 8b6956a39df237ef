"""The tables of an independent prior whose uniforms are shared over q (eq. 13): z_{q,p} = F_{q,p}^-1(u_p).

The generator sees the sums s_q = sum_p z_{q,p}. Each has the law that it has without sharing, but together they
are functions of P uniforms, so no table per coordinate can stand for them: all Q P quantile functions stay. There
are thousands, so each is a short warp of the normal quantile (`warp.py`), which is looked up once per uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

from kaem_export.collapse import LatentDistributions
from kaem_export.quantile import QuantileTables
from kaem_export.warp import WarpTables, normal_table, warp_tables

BUDGET_BYTES = 64_000_000
"""For 1,024 cells in each of the 3,240 tables of the published sizes; smooth energies need 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTables:
    """What the head of the graph needs.

    Attributes:
        normal: The normal quantile, one coordinate.
        warps: Row q P + p maps the normal of u_p to z_{q,p}.
        num_components: P.
    """

    normal: QuantileTables
    warps: WarpTables
    num_components: int

    @property
    def latent_dim(self) -> int:
        """Q."""
        return len(self.warps.coefficients) // self.num_components


def shared_tables(distributions: LatentDistributions, num_components: int) -> SharedTables:
    """Tabulate the Q P distributions of all components, row q P + p."""
    warps = warp_tables(distributions, budget_bytes=BUDGET_BYTES)
    return SharedTables(normal=normal_table(), warps=warps, num_components=num_components)
