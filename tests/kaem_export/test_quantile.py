from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from kaem_export.collapse import LatentDistributions
from kaem_export.quantile import LEVEL_SCALE, LEVELS, TABLE_CELLS, quantile_tables

EDGES = np.linspace(-6, 6, 4097)
LAWS = {
    "gaussian": scipy.stats.norm(),
    "flat": scipy.stats.uniform(-6, 12),
    "narrow": scipy.stats.norm(0.3, 0.1),
    "skewed": scipy.stats.gamma(2.5, loc=-5.9),
}


def _two_modes(z):
    return 0.5 * scipy.stats.norm.cdf(z, -3, 0.1) + 0.5 * scipy.stats.norm.cdf(z, 3, 0.2)


def _tables(cdf):
    values = cdf(EDGES) - cdf(EDGES[0])
    return quantile_tables(LatentDistributions(edges=EDGES[None], cdf=(values / values[-1])[None]))


def _u(level):
    """Left end of every cell of a level, as documented."""
    k = np.arange(TABLE_CELLS)
    scale = TABLE_CELLS * LEVEL_SCALE**level
    return np.where(k < TABLE_CELLS // 2, k / scale, 1 - (TABLE_CELLS - k) / scale)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("level", range(LEVELS))
def test_cells_begin_at_the_quantiles_of_the_law(law, level):
    frozen = LAWS[law]
    tables = _tables(frozen.cdf)
    low, high = frozen.cdf([-6, 6])
    u = low + _u(level)[1:] * (high - low)
    z = tables.left[0, level, 1:].astype(float)
    slack = 5e-6 + frozen.pdf(z) * np.spacing(np.abs(z).astype(np.float32))
    assert np.all(np.abs(frozen.cdf(z) - u) <= slack)


@pytest.mark.parametrize("law", LAWS)
def test_tables_never_descend_and_never_leave_the_support(law):
    tables = _tables(LAWS[law].cdf)
    assert np.all(tables.width >= 0)
    assert tables.left.min() >= -6
    assert (tables.left + tables.width).max() <= 6


def test_levels_meet_without_a_step():
    tables = _tables(LAWS["gaussian"].cdf)
    half, inner = TABLE_CELLS // 2, TABLE_CELLS // 2 // LEVEL_SCALE
    for level in range(1, LEVELS):
        lower_end = tables.left[0, level, half - 1] + tables.width[0, level, half - 1]
        assert lower_end == pytest.approx(tables.left[0, level - 1, inner], abs=1e-6)
        assert tables.left[0, level, half] == pytest.approx(tables.left[0, level - 1, -inner], abs=1e-6)


def test_a_gap_without_mass_is_jumped_in_one_cell():
    tables = _tables(_two_modes)
    z = tables.left[0, 0]
    inside_gap = (z > -2) & (z < 2)
    assert inside_gap.sum() <= 1


def test_cell_counts_other_than_powers_of_two_are_refused():
    with pytest.raises(ValueError, match="power of two"):
        quantile_tables(LatentDistributions(edges=EDGES[None], cdf=np.linspace(0, 1, 4097)[None]), cells=1000)
