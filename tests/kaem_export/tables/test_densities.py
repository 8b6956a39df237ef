"""Distribution functions in float64: against scipy's quadrature and closed forms, and what they refuse."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from models import MORE_FUNCTIONS, VARIANTS, random_model
from zoo import ZOO, Family

from kaem.errors import ArtifactError
from kaem_export.tables.chebyshev_cdf import integrate
from kaem_export.tables.collapse import collapse, function_laws
from kaem_export.tables.densities import PriorFunctions
from kaem_train.model.prior.factorised import MixturePrior


def _family(log_density, edges, bound=lambda nodes: np.zeros(len(nodes))):
    """One function, given in closed form, that owns up to a bound of |f''| in every cell."""

    def evaluate(nodes):
        return log_density(nodes)[None], bound(nodes)[None]

    return lambda: integrate(evaluate, np.asarray(edges, float), lambda row: f"function {row}")


@pytest.mark.parametrize("name", ZOO)
def test_distribution_functions_are_those_of_adaptive_quadrature(name):
    family = ZOO[name]
    densities = family.integrated()
    points = np.sort(np.random.default_rng(0).uniform(family.edges[0], family.edges[-1], 25))
    cdf, survival, _ = densities.evaluate(np.array(0), points)
    assert np.abs(cdf - family.reference_cdf(0, points)).max() < 2e-13
    assert np.abs(cdf + survival - 1).max() < 1e-13


@pytest.mark.parametrize("name", ZOO)
def test_twice_as_many_cells_change_nothing(name):
    family = ZOO[name]
    halved = np.union1d(family.edges, 0.5 * (family.edges[1:] + family.edges[:-1]))
    finer = Family(family.features, family.weights, halved, family.reference)
    z = np.linspace(family.edges[0], family.edges[-1], 2001)
    rows = np.arange(len(family.weights))[:, None]
    for before, after in zip(
        family.integrated().evaluate(rows, z)[:2], finer.integrated().evaluate(rows, z)[:2], strict=True
    ):
        assert np.abs(before - after).max() < 1e-13


def test_both_tails_of_a_gaussian_keep_their_relative_precision():
    densities = ZOO["gaussian"].integrated()
    z = np.linspace(-5.99, 5.99, 300)
    cdf, survival, density = densities.evaluate(np.array(0), z)
    law = scipy.stats.truncnorm(-6, 6)
    with mpmath.workdps(40):
        total = mpmath.ncdf(6) - mpmath.ncdf(-6)
        below = np.array([float((mpmath.ncdf(x) - mpmath.ncdf(-6)) / total) for x in z])
    assert np.abs(cdf / below - 1).max() < 1e-11
    assert np.abs(survival / below[::-1] - 1).max() < 1e-11
    assert np.abs(density / law.pdf(z) - 1).max() < 1e-11


def test_a_lognormal_is_that_of_scipy():
    z = np.geomspace(1.1e-3, 7.9, 300)
    law = scipy.stats.lognorm(1.0)
    low, high = law.cdf([1e-3, 8.0])
    assert (
        np.abs(ZOO["lognormal"].integrated().evaluate(np.array(0), z)[0] - (law.cdf(z) - low) / (high - low)).max()
        < 1e-14
    )


def test_quantiles_undo_both_tails():
    densities = ZOO["rbf20 f 8"].integrated()
    rows, u = np.arange(4)[:, None], np.geomspace(1e-12, 0.5, 40)
    low = densities.quantile(*np.broadcast_arrays(rows, u))
    high = densities.quantile(*np.broadcast_arrays(rows, u), of_survival=True)
    assert np.abs(densities.evaluate(rows, low)[0] / u - 1).max() < 1e-6
    assert np.abs(densities.evaluate(rows, high)[1] / u - 1).max() < 1e-6


def test_energies_of_a_million_are_integrated_in_a_few_hundred_cells():
    family = ZOO["rbf20 f 8"]
    steep = Family(family.features, family.weights * 1e5, family.edges, family.reference)
    densities = steep.integrated()
    assert len(densities.edges) < 1000
    # Laplace's method: around its peak the density is a Gaussian of the peak's curvature.
    mass = np.diff(densities.below[0])
    cell = int(np.argmax(mass))
    z = np.linspace(densities.edges[max(cell - 3, 0)], densities.edges[cell + 4], 200_001)
    value = steep.log_density(0, z)
    peak = z[value.argmax()]
    step = 1e-5
    second = np.diff(steep.log_density(0, np.array([peak - step, peak, peak + step])), 2)[0] / step**2
    law = scipy.stats.norm(peak, 1 / np.sqrt(-second))
    assert np.abs(densities.evaluate(np.array(0), z)[0] - law.cdf(z)).max() < 2e-3


def test_a_spike_between_all_nodes_is_found_from_the_curvature():
    width, place = 2e-6, 0.31234567

    def spike(nodes):
        return 60 * np.exp(-0.5 * ((nodes - place) / width) ** 2)

    def bound(nodes):
        margin = 0.01 * (nodes[:, -1] - nodes[:, 0])  # from the outermost nodes to the ends
        distance = np.abs(np.clip(place, nodes[:, 0] - margin, nodes[:, -1] + margin) - place)
        return 60 / width**2 * np.exp(-0.5 * np.minimum(distance / width, 40) ** 2) + 1e-9

    blind = _family(spike, np.linspace(-1, 1, 11))()
    aware = _family(spike, np.linspace(-1, 1, 11), bound=bound)()
    assert blind.evaluate(np.array(0), np.array(0.312))[0] == pytest.approx(0.656, abs=1e-6)  # nothing there
    # e^60 width dwarfs the rest: all mass is within a few widths.
    cdf = aware.evaluate(np.array(0), 0.31234567 + width * np.array([-6.0, 0.0, 6.0]))[0]
    assert cdf == pytest.approx([0.0, 0.5, 1.0], abs=1e-9)


@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda z: np.where(z < 0.2, z, np.nan), r"energy of function 0 is not finite at z = 0\.2"),
        (lambda z: np.where(z < 0.2, z, np.inf), r"not finite at z = 0\.2"),
        (lambda z: np.full_like(z, -np.inf), "function 0 has no mass between z = -1 and 1"),
        (lambda z: np.where(z < 0.2345, 0.0, 1.0), r"function 0 is too sharp near z = 0\.2345"),
        (lambda z: np.where(z < 0.2345, 0.0, -np.inf), r"function 0 is too sharp near z = 0\.2345"),
        (lambda z: np.sin(1e6 * z), "too sharp"),
    ],
)
def test_what_cannot_be_integrated_is_refused_with_function_and_place(log_density, message):
    with pytest.raises(ArtifactError, match=message) as refusal:
        _family(log_density, np.linspace(-1, 1, 11))()
    assert refusal.value.hint


def test_a_listed_jump_is_no_trouble():
    densities = _family(lambda z: np.where(z < 0.2345, 0.0, 1.0), [-1, 0.2345, 1])()
    share = 1.2345 / (1.2345 + 0.7655 * np.e)
    assert densities.evaluate(np.array(0), np.array(0.2345))[0] == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize("variant", [*VARIANTS, *MORE_FUNCTIONS])
def test_functions_of_a_prior_are_those_that_torch_evaluates(variant):
    _, model = random_model(*(VARIANTS | MORE_FUNCTIONS)[variant])
    prior = model.prior.double()
    functions = PriorFunctions(prior)
    nodes = np.sort(np.random.default_rng(0).uniform(prior.low, prior.high, 34)).reshape(2, 17)
    with torch.no_grad():
        expected = prior.unnormalised_log_density(torch.from_numpy(nodes.reshape(1, 1, -1))).flatten(0, 1).numpy()
    values, _ = functions.evaluate(np.arange(len(functions)), nodes)
    gap = values.reshape(len(functions), -1) - expected
    assert np.ptp(gap, axis=1).max() < 1e-12  # up to a constant of each


@pytest.mark.parametrize("variant", [*VARIANTS, *MORE_FUNCTIONS])
def test_the_curvature_of_a_prior_is_bounded_in_every_cell(variant):
    _, model = random_model(*(VARIANTS | MORE_FUNCTIONS)[variant])
    functions = PriorFunctions(model.prior)
    rows = np.arange(len(functions))
    left, right = functions.edges[:-1], functions.edges[1:]
    inside = left[:, None] + (right - left)[:, None] * np.linspace(0.02, 0.98, 97)
    prior = model.prior.double()
    with torch.no_grad():
        flat = prior.unnormalised_log_density(torch.from_numpy(inside.reshape(1, 1, -1))).flatten(0, 1)
    values = flat.numpy().reshape(len(rows), *inside.shape)
    step = inside[:, 1:2] - inside[:, :1]
    second = np.abs(np.diff(values, 2, axis=-1) / step**2).max(axis=-1)
    _, bound = functions.evaluate(rows, 0.5 * (left + right)[:, None] + 0.5 * (right - left)[:, None] * _nodes())
    assert np.all(second <= bound * 1.001 + 1e-3)


def _nodes():
    return np.cos(np.pi * (2 * np.arange(17, 0, -1) - 1) / 34)


def test_masses_of_a_mixture_are_its_weights():
    _, model = random_model("prior.num_components=9")
    assert isinstance(model.prior, MixturePrior)
    laws, components = collapse(model.prior), function_laws(model.prior)
    weights = model.prior.logits.double().softmax(-1).detach().numpy()
    z = np.linspace(-6, 6, 501)
    for q in range(3):
        mixed = sum(weights[q, p] * components.evaluate(q * 9 + p, z)[0] for p in range(9))
        assert np.abs(laws.evaluate(q, z)[0] - mixed).max() < 1e-14
        assert laws.evaluate(q, np.array(6.0))[0] == pytest.approx(1.0, abs=1e-12)


def test_a_component_that_cannot_be_integrated_is_named():
    _, model = random_model(*VARIANTS["shared uniforms"])
    with torch.no_grad():
        model.prior.bank.coefficients[2, 1, 5] = torch.inf
    with pytest.raises(ArtifactError, match="latent 2, component 1 is not finite at z = "):
        function_laws(model.prior)


def test_gaussians_within_reach_are_images_of_one_and_equal_functions_are_one():
    config, model = random_model(*VARIANTS["experts"], "prior.low=-30", "prior.high=30", amplitude=0.0)
    laws = function_laws(model.prior)
    assert laws.num_laws == 1
    z = np.linspace(-12, 12, 201)
    for row in range(len(laws)):
        q, k = divmod(row, config.prior.num_components)
        law = scipy.stats.norm(model.prior.means[q, k].item(), model.prior.stds[q, k].item())
        assert np.abs(laws.evaluate(row, z)[0] - law.cdf(z)).max() < 1e-7
    _, near = random_model(*VARIANTS["experts"], amplitude=0.0)
    assert function_laws(near.prior).num_laws > 1  # [-8, 8] cuts some off
    _, wild = random_model(*VARIANTS["experts"], amplitude=1.0)
    with torch.no_grad():
        for name in ("coefficients", "spline_weight"):
            getattr(wild.prior.bank, name)[2] = getattr(wild.prior.bank, name)[0]
        wild.prior.means[2], wild.prior.log_stds[2] = wild.prior.means[0], wild.prior.log_stds[0]
    assert function_laws(wild.prior).num_laws == 8
