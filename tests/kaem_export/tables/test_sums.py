"""Sums of independent components: against closed forms and direct convolution."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from models import MORE_FUNCTIONS, VARIANTS, random_model

from kaem.errors import ArtifactError
from kaem_export.tables import sums
from kaem_export.tables.collapse import collapse, function_laws


def _convolved(components, x):
    """F of the sum of two components at x by Gauss-Legendre on cells that end where either density does."""
    first, second = components
    low, high = first[1]
    points, weights = np.polynomial.legendre.leggauss(24)
    found = []
    for value in x:
        inner = np.clip(value - np.linspace(low, high, 121), low, high)
        edges = np.unique(np.concatenate([np.linspace(low, high, 121), inner, np.clip([value], low, high)]))
        half = 0.5 * np.diff(edges)[:, None]
        y = (edges[:-1, None] + half * (points + 1)).reshape(-1)
        density = first[0](y)[2]
        rest = value - y
        below = np.where(rest < low, 0.0, np.where(rest > high, 1.0, second[0](rest)[0]))
        found.append(np.sum((half * weights).reshape(-1) * density * below))
    return np.array(found)


@pytest.mark.parametrize(
    "variant", ["gaussian independent", "uniform sum of three", "kan generator", "learnable gaussian independent"]
)
def test_the_sum_of_two_is_their_convolution(variant):
    _, model = random_model(*VARIANTS[variant], "prior.num_components=2")
    components, laws = function_laws(model.prior), collapse(model.prior)
    for q in range(2):
        x = np.linspace(*laws.ends(q), 23)[1:-1]
        parts = [(lambda z, row=row: components.evaluate(row, z), components.ends(row)) for row in (2 * q, 2 * q + 1)]
        assert np.abs(laws.evaluate(q, x)[0] - _convolved(parts, x)).max() < 1e-10


@pytest.mark.parametrize("terms", [2, 3, 5, 12, 40])
def test_flat_energies_on_the_unit_interval_sum_to_the_irwin_hall_law(terms):
    _, model = random_model(*VARIANTS["uniform sum of three"], f"prior.num_components={terms}", amplitude=0.0)
    laws = collapse(model.prior)
    assert laws.num_laws == 1
    x = np.linspace(*laws.ends(0), 301)
    cdf, survival, _ = laws.evaluate(0, x)
    if terms <= 12:  # scipy's own formula cancels beyond
        assert np.abs(cdf - scipy.stats.irwinhall(terms).cdf(x)).max() < 1e-11
        assert np.abs(survival - scipy.stats.irwinhall(terms).sf(x)).max() < 1e-11
    else:
        assert np.abs(cdf + cdf[::-1] - 1).max() < 1e-12
        assert np.abs(cdf - scipy.stats.norm(terms / 2, np.sqrt(terms / 12)).cdf(x)).max() < 0.05 / terms


@pytest.mark.parametrize("variant", ["sum of splines", "sum of waves on [0, 1]", "one wavelet per energy"])
def test_the_moments_of_a_sum_are_the_sums_of_the_moments(variant):
    config, model = random_model(*MORE_FUNCTIONS[variant])
    components, laws = function_laws(model.prior), collapse(model.prior)
    terms = config.prior.num_components
    points, weights = np.polynomial.legendre.leggauss(20)

    def moments(some, row):
        edges = np.linspace(*some.ends(row), 401)
        half = 0.5 * np.diff(edges)[:, None]
        z = edges[:-1, None] + half * (points + 1)
        mass = some.evaluate(row, z)[2] * half * weights
        mean = (mass * z).sum()
        return np.array([mass.sum(), mean, (mass * (z - mean) ** 2).sum()])

    for q in range(2):
        parts = np.array([moments(components, q * terms + p) for p in range(terms)])
        assert moments(laws, q) == pytest.approx([1.0, parts[:, 1].sum(), parts[:, 2].sum()], abs=1e-8)


def test_a_series_that_does_not_converge_is_refused(monkeypatch):
    monkeypatch.setattr(sums, "MOST_FREQUENCIES", 200)
    _, model = random_model(*VARIANTS["uniform sum of three"], "prior.num_components=2", "prior.base=relu")
    with pytest.raises(ArtifactError, match="sum of the 2 components"):
        collapse(model.prior)
