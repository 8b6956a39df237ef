"""Distribution functions are exact and invert; references are scipy's adaptive quadrature and closed forms."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from kaem_train.model.prior.quadrature import cell_edges, gauss_legendre, integrate

_KNOTS = np.linspace(-1.2, 1.2, 21)
_WIDE_KNOTS = np.linspace(-5.0, 5.0, 21)


def _bumps(amplitude, knots):
    heights = amplitude * np.random.default_rng(7).standard_normal(len(knots))
    width = knots[1] - knots[0]
    return lambda z: (heights * np.exp(-0.5 * ((z[..., None] - knots) / width) ** 2)).sum(-1)


def _morlet(z):
    return sum(
        amplitude * np.cos(5.0 * (z - center)) * np.exp(-0.5 * (z - center) ** 2)
        for amplitude, center in ((1.5, -2.0), (-2.0, 0.3), (1.0, 2.5))
    )


ENERGIES = {
    "flat": (-1.2, 1.2, _KNOTS, lambda z: 0.0 * z),
    "gaussian": (-1.2, 1.2, _KNOTS, lambda z: -0.5 * z**2),
    "gentle bumps": (-1.2, 1.2, _KNOTS, _bumps(1.0, _KNOTS)),
    "strong bumps": (-1.2, 1.2, _KNOTS, _bumps(3.0, _KNOTS)),
    "gaussian and bumps": (-5.0, 5.0, _WIDE_KNOTS, lambda z: -0.5 * z**2 + _bumps(2.0, _WIDE_KNOTS)(z)),
    "gaussian and wavelets": (-5.0, 5.0, _WIDE_KNOTS, lambda z: -0.5 * z**2 + _morlet(z)),
    "spike": (-1.2, 1.2, _KNOTS, lambda z: 8.0 * np.exp(-0.5 * ((z - 0.3) / 0.05) ** 2)),
    "uniform": (0.0, 1.0, np.linspace(0.0, 1.0, 21), lambda z: 0.0 * z),
}


def _integrate(name):
    low, high, knots, energy = ENERGIES[name]
    edges = cell_edges(low, high, knots, widest=(knots[1] - knots[0]) / 51)
    assert 1000 <= len(edges) <= 1100
    return integrate(lambda z: torch.from_numpy(energy(z.numpy())), edges)


@pytest.mark.parametrize("name", ENERGIES)
def test_a_sample_lies_where_its_uniform_says(name):
    low, high, knots, energy = ENERGIES[name]

    def mass(start, end):
        inner = knots[(knots > start) & (knots < end)]
        return scipy.integrate.quad(
            lambda z: np.exp(energy(np.array(z))), start, end, points=inner, limit=400, epsabs=0, epsrel=1e-10
        )[0]

    uniform = np.concatenate([[1e-5, 1e-3], np.linspace(0.02, 0.98, 25), [1 - 1e-3, 1 - 1e-5]])
    z = _integrate(name).invert(torch.from_numpy(uniform)).numpy()
    assert np.all(np.diff(z) > 0)
    total = mass(low, high)
    reached = np.array([mass(low, point) / total if point > low else 0.0 for point in z])
    assert np.abs(reached - uniform).max() < 1e-5  # the method asks for 1e-3


@pytest.mark.parametrize("name", ENERGIES)
def test_samples_pass_a_kolmogorov_smirnov_test(name):
    low, high, _, energy = ENERGIES[name]
    rng = torch.Generator().manual_seed(1)
    z = _integrate(name).invert(torch.rand(100_000, generator=rng, dtype=torch.float64)).numpy()
    fine = np.linspace(low, high, 40_001)
    reference = scipy.integrate.cumulative_simpson(np.exp(energy(fine)), x=fine, initial=0.0)
    assert scipy.stats.kstest(z, lambda x: np.interp(x, fine, reference / reference[-1])).pvalue > 1e-3


def test_the_distribution_function_is_not_late_by_half_a_weight():
    # The flat density shows it best: there F is the identity.
    cumulative = _integrate("uniform")
    assert torch.allclose(cumulative.at_edges, cumulative.edges, atol=1e-14)


def test_the_normaliser_of_a_truncated_gaussian_is_known():
    edges = cell_edges(-6.0, 6.0, np.linspace(-4, 4, 21), widest=0.2)
    log_total = integrate(_log_normal, edges).log_total
    assert float(log_total) == pytest.approx(np.log1p(-2 * scipy.stats.norm.sf(6.0)), abs=1e-14)


def _log_normal(z):
    return -0.5 * z**2 - 0.5 * np.log(2 * np.pi)


def test_gauss_legendre_is_exact_for_its_degree():
    nodes, weights = gauss_legendre(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), 4)
    assert float((weights * nodes**7).sum()) == pytest.approx((2.0**8 - 1.0) / 8.0)


def test_cells_end_at_knots_at_kinks_and_at_the_ends():
    edges = cell_edges(-6.0, 6.0, torch.linspace(-4, 4, 22).tolist(), (0.0,), widest=4 / 21)
    for point in (-6.0, 0.0, 6.0, *np.linspace(-4, 4, 22)):
        assert float((edges - point).abs().min()) < 1e-6
    assert 0.0 in edges.tolist()
    assert bool((edges.diff() > 1e-3).all())


def test_a_valley_without_mass_is_jumped_over():
    def two_islands(z):
        return torch.where((z - 0.5).abs() < 0.25, -2000.0, 0.0)

    edges = cell_edges(0.0, 1.0, np.linspace(0, 1, 5), widest=1 / 32)
    z = integrate(two_islands, edges).invert(torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    assert not bool(((z > 0.3) & (z < 0.7)).any())
    assert torch.isfinite(z).all()
