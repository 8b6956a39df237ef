from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats

from kaem_export.collapse import LatentDistributions
from kaem_export.quantile import LEVEL_SCALE, LEVELS, TABLE_CELLS
from kaem_export.warp import BUDGET_BYTES, LEAST_CELLS, MOST_CELLS, REACH, normal_table, warp_tables

EDGES = np.linspace(-8, 8, 2049)
LAWS = {
    "gaussian": scipy.stats.norm(1.5, 0.8),
    "narrow": scipy.stats.norm(0.3, 0.14),
    "skewed": scipy.stats.skewnorm(4, -1, 1.5),
    "cut off": scipy.stats.norm(7.0, 1.0),
    "flat": scipy.stats.uniform(-8, 16),
}


def _distribution(cdf, copies=1):
    values = cdf(EDGES) - cdf(EDGES[0])
    return LatentDistributions(edges=np.tile(EDGES, (copies, 1)), cdf=np.tile(values / values[-1], (copies, 1)))


def _evaluate(table, x):
    """The documented lookup once more, in float64."""
    position = (x + REACH) * table.shape[0] / (2 * REACH)
    cell = np.clip(np.floor(position).astype(int), 0, len(table) - 1)
    return np.polynomial.polynomial.polyval(position - cell, table[cell].T.astype(np.float64), tensor=False)


@pytest.mark.parametrize("law", LAWS)
def test_a_warped_normal_follows_the_law_within_the_stated_bound(law):
    tables = warp_tables(_distribution(LAWS[law].cdf))
    x = np.linspace(-6.4, 6.4, 100_001)
    low, high = LAWS[law].cdf([-8, 8])
    found = (LAWS[law].cdf(_evaluate(tables.coefficients[0], x)) - low) / (high - low)
    assert np.abs(found - scipy.special.ndtr(x)).max() < tables.u_error_bound
    assert tables.u_error <= 2e-5 or tables.coefficients.shape[1] == MOST_CELLS


@pytest.mark.parametrize("law", LAWS)
def test_a_warp_never_descends_and_stays_on_the_domain(law):
    table = warp_tables(_distribution(LAWS[law].cdf)).coefficients[0]
    z = _evaluate(table, np.linspace(-REACH, REACH, 50_001))
    assert np.all(np.diff(z) >= -2e-6)  # a few float32 roundings of 8
    assert z.min() >= -8.000002
    assert z.max() <= 8.000002


def test_a_gaussian_is_a_straight_line_in_the_fewest_cells():
    law = scipy.stats.norm(0.5, 0.7)
    tables = warp_tables(_distribution(law.cdf))
    (table,) = tables.coefficients
    assert len(table) == LEAST_CELLS
    assert tables.u_error < 1e-6
    x = np.linspace(-6, 6, 1001)
    assert np.abs(_evaluate(table, x) - (0.5 + 0.7 * x)).max() < 2e-4


def test_tables_grow_with_difficulty_but_not_beyond_the_budget():
    def two_modes(z):
        return 0.5 * scipy.stats.norm.cdf(z, -3, 0.3) + 0.5 * scipy.stats.norm.cdf(z, 3, 0.3)

    alone, many = warp_tables(_distribution(two_modes)), warp_tables(_distribution(two_modes, copies=1000))
    assert alone.coefficients.shape[1] > many.coefficients.shape[1] > LEAST_CELLS
    assert many.coefficients.nbytes <= BUDGET_BYTES
    assert many.u_error > alone.u_error
    assert many.u_error_bound < 1.05 * (2 * REACH / many.coefficients.shape[1] * 0.4 + 1 / TABLE_CELLS)


def test_all_tables_are_as_fine_as_the_most_demanding_law_needs():
    plain, demanding = _distribution(LAWS["gaussian"].cdf), _distribution(LAWS["narrow"].cdf)
    wavy = _distribution(lambda z: 0.5 * scipy.stats.norm.cdf(z, -1, 0.5) + 0.5 * scipy.stats.norm.cdf(z, 1, 0.5))
    alone = warp_tables(wavy)
    assert alone.coefficients.shape[1] > LEAST_CELLS
    for order in ([plain, wavy, demanding], [demanding, plain, wavy]):
        together = warp_tables(
            LatentDistributions(
                edges=np.concatenate([d.edges for d in order]), cdf=np.concatenate([d.cdf for d in order])
            )
        )
        row = next(index for index, law in enumerate(order) if law is wavy)
        assert np.array_equal(together.coefficients[row], alone.coefficients[0])


def test_the_normal_table_holds_the_normal_quantile_in_every_level():
    table = normal_table()
    k = np.arange(TABLE_CELLS // 2)
    for level in range(LEVELS):
        expected = scipy.stats.norm.ppf((k[1:] / TABLE_CELLS) / LEVEL_SCALE**level)
        assert np.allclose(table.left[0, level, 1 : TABLE_CELLS // 2], np.maximum(expected, -REACH), rtol=1e-6)
        upper = table.left[0, level] + table.width[0, level]
        assert np.allclose(upper[::-1], -table.left[0, level], atol=1e-6)
    assert table.left.min() == -REACH
