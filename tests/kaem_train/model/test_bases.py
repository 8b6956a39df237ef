"""Every basis is the family of functions that it is named after; references are scipy, numpy and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from numpy.polynomial import chebyshev, hermite_e, legendre
from scipy.interpolate import BSpline

from kaem_train.config import PriorConfig
from kaem_train.model.activations import ACTIVATIONS
from kaem_train.model.bases import ClosedExpectation, build_basis
from kaem_train.model.bases.waves import cosine_by_arithmetic
from kaem_train.model.prior.energy import UnivariateBank
from kaem_train.model.prior.factorised import build_prior
from kaem_train.posterior.start import start_prior

pytestmark = pytest.mark.usefixtures("float64")

GRID_SIZES = {"rbf": 8, "rswaf": 8, "bspline": 8, "fourier": 6, "chebyshev": 9, "legendre": 7, "morlet": 5}
DOMAINS = {
    "gaussian": {"low": -6.0, "high": 6.0, "grid_low": -4.0, "grid_high": 4.0},
    "uniform": {"low": 0.0, "high": 1.0, "grid_low": 0.0, "grid_high": 1.0},
    "none": {"low": -1.2, "high": 1.2, "grid_low": -1.2, "grid_high": 1.2},
}
Z = torch.linspace(-5.5, 5.5, 401, dtype=torch.float64)


def _bank(name, base="none", num_latents=2, num_components=3):
    torch.manual_seed(0)
    basis = build_basis(name, GRID_SIZES[name], grid=(-4.0, 4.0), domain=(-6.0, 6.0))
    bank = UnivariateBank(num_latents, num_components, basis, base=base)
    with torch.no_grad():
        bank.coefficients.normal_(0.0, 1.5)
        for key, value in bank.named_parameters():
            if key in ("log_tau", "log_scales"):
                value.uniform_(-0.5, 0.5)
            if key in ("base_weight", "spline_weight"):
                value.uniform_(0.5, 1.5)
    return bank


def _prior(name, reference="gaussian", variant="mixture", num_components=3, has_tails=True, **settings):
    torch.manual_seed(0)
    domain = DOMAINS[reference] if variant != "experts" else {"low": -8.0, "high": 8.0}
    config = PriorConfig(
        variant=variant,
        num_latents=2,
        num_components=num_components,
        reference=reference,
        basis=name,
        grid_size=GRID_SIZES[name],
        **domain | settings,
    )
    prior = build_prior(config, has_tails=has_tails)
    with torch.no_grad():
        prior.bank.coefficients.normal_(0.0, 1.5)
        if name == "morlet":
            prior.bank.log_scales.uniform_(-1.0, 1.0)
    return prior


def _features_by_hand(bank, name, z):
    """B_g(z) of function (0, 0) in numpy: shape (M,) -> (M, size)."""
    state = {key: value.detach().numpy() for key, value in bank.state_dict().items()}
    tau = np.exp(state.get("log_tau", 0.0))
    if name in ("rbf", "rswaf"):
        scaled = (z[:, None] - np.linspace(-4.0, 4.0, 9)) / tau  # h = 1
        return np.exp(-0.5 * scaled**2) if name == "rbf" else 1.0 - np.tanh(scaled) ** 2
    if name == "bspline":
        knots = np.arange(-7.0, 8.0)
        return np.stack(
            [np.nan_to_num(BSpline.basis_element(knots[g : g + 5], extrapolate=False)(z)) for g in range(11)], -1
        )
    if name == "fourier":
        angle = 2.0 * np.pi * np.outer(z, np.arange(7)) * tau / 12.0
        return np.concatenate([np.cos(angle), np.sin(angle[:, 1:])], -1)
    if name == "chebyshev":
        return chebyshev.chebvander(np.tanh(z) / 1.001, 9)
    if name == "legendre":
        return legendre.legvander(np.clip(z / 6.0, -1, 1), 7)
    t = (z[:, None] - state["translations"][0, 0]) / np.exp(state["log_scales"][0, 0])
    return np.cos(5.0 * t) * np.exp(-0.5 * t**2)


@pytest.mark.parametrize("name", GRID_SIZES)
def test_features_are_the_documented_functions(name):
    bank = _bank(name)
    features = bank.features(Z[:, None, None].expand(-1, 2, 3))[:, 0, 0].detach().numpy()
    assert features.shape[-1] == bank.basis.size == bank.coefficients.shape[-1]
    assert np.allclose(features, _features_by_hand(bank, name, Z.numpy()), atol=1e-12)


@pytest.mark.parametrize("name", GRID_SIZES)
def test_all_evaluators_agree_on_the_sum_of_features(name):
    bank = _bank(name, base="tanh")
    with torch.no_grad():
        common = torch.randn(7, 2)
        own = common.unsqueeze(-1).expand(-1, -1, 3)
        expected = bank.paired(own)
        assert torch.allclose(bank.broadcast(common), expected, atol=1e-12)
        assert torch.allclose(bank.nodes(common.T.unsqueeze(1)), expected.permute(1, 2, 0), atol=1e-12)
        assert torch.allclose(bank.nodes(own.permute(1, 2, 0)), expected.permute(1, 2, 0), atol=1e-12)
        shared = bank.nodes(common[:, 0][None, None])
        assert torch.allclose(shared[0], expected[:, 0].T, atol=1e-12)
        scale = bank.spline_weight[0, 0].item() if bank.basis.is_scaled else 1.0
        by_hand = _features_by_hand(bank, name, common[:, 0].numpy()) @ bank.coefficients[0, 0].numpy() * scale
        by_hand += bank.base_weight[0, 0].item() * np.tanh(common[:, 0].numpy())
        assert np.allclose(expected[:, 0, 0].numpy(), by_hand, atol=1e-12)


def test_splines_sum_to_one_between_the_knots_and_vanish_beyond_their_continuation():
    bank = _bank("bspline")
    inside = torch.tensor([-4.0, -1.3, 0.0, 3.999, 4.0])
    assert torch.allclose(bank.features(inside).sum(-1), torch.ones(5))
    assert float(bank.features(torch.tensor([-7.01, 7.01])).abs().max()) == 0.0


def test_splines_on_coinciding_knots_are_those_of_scipy():
    bank = _bank("bspline")
    knots = torch.tensor([-4.0, -3.0, -1.0, -1.0, 0.0, 0.5, 2.0, 2.0, 4.0])
    bank.knots.copy_(knots)
    longer = np.concatenate([[-7.0, -6.0, -5.0], knots.numpy(), [5.0, 6.0, 7.0]])
    z = np.linspace(-3.95, 3.95, 80)
    expected = BSpline(longer, np.eye(11), 3)(z)
    assert np.allclose(bank.features(torch.from_numpy(z)).numpy(), expected, atol=1e-12)


def test_legendre_functions_are_orthogonal_on_the_domain_and_constant_beyond():
    basis = build_basis("legendre", 20, grid=(0.0, 1.0), domain=(-2.0, 5.0))
    x, weights = legendre.leggauss(40)
    values = basis.features(torch.from_numpy(1.5 + 3.5 * x), {}).numpy()
    assert np.allclose(values.T * (weights / 2) @ values, np.diag(1 / (2 * np.arange(21) + 1)), atol=1e-13)
    beyond = basis.features(torch.tensor([-9.0, -2.0, 5.0, 1e9]), {})
    assert torch.equal(beyond[0], beyond[1])
    assert torch.equal(beyond[2], beyond[3])
    assert np.allclose(beyond[2].numpy(), 1.0, atol=1e-12)


@pytest.mark.parametrize("name", ["rbf", "fourier", "morlet"])
def test_closed_expectations_equal_gauss_hermite_integrals(name):
    bank = _bank(name)
    assert bank.has_closed_expectation
    mean, std = torch.randn(6, 2), 0.05 + torch.rand(6, 2)
    points, weights = hermite_e.hermegauss(120)
    z = mean.unsqueeze(-1) + std.unsqueeze(-1) * torch.from_numpy(points)
    values = torch.stack([bank.broadcast(z[..., i]) for i in range(len(points))], -1)
    integral = (values * torch.from_numpy(weights / weights.sum())).sum(-1)
    assert torch.allclose(bank.expected_broadcast(mean, std), integral, atol=1e-8)


def test_other_functions_have_no_closed_expectation():
    for name in ("rswaf", "bspline", "chebyshev", "legendre"):
        bank = _bank(name)
        assert not bank.has_closed_expectation
        assert not isinstance(bank.basis, ClosedExpectation)
        with pytest.raises(TypeError, match="closed form"):
            bank.expected_broadcast(torch.zeros(1, 2), torch.ones(1, 2))
    assert not _bank("fourier", base="silu").has_closed_expectation


@pytest.mark.parametrize("name", GRID_SIZES)
def test_gradients_of_all_parameters_equal_finite_differences(name):
    bank = _bank(name, base="gelu")
    z = torch.randn(9, 2, requires_grad=True)
    names = [key for key, _ in bank.named_parameters()]
    values = tuple(value for _, value in bank.named_parameters())

    def energies(z, *values):
        return torch.func.functional_call(_Broadcast(bank), dict(zip(_prefixed(names), values, strict=True)), (z,))

    assert torch.autograd.gradcheck(energies, (z, *values), atol=1e-6)
    gradients = torch.autograd.grad(bank.broadcast(z).square().sum(), values)
    assert all(float(gradient.abs().max()) > 0.0 for gradient in gradients)


class _Broadcast(torch.nn.Module):
    def __init__(self, bank):
        super().__init__()
        self.bank = bank

    def forward(self, z):
        return self.bank.broadcast(z)


def _prefixed(names):
    return [f"bank.{name}" for name in names]


@pytest.mark.parametrize(
    ("base", "formula"),
    [
        ("silu", lambda z: z * scipy.special.expit(z)),
        ("relu", lambda z: np.maximum(z, 0.0)),
        ("leakyrelu", lambda z: np.where(z < 0.0, 0.01 * z, z)),
        ("gelu", lambda z: z * scipy.special.ndtr(z)),
        ("tanh", np.tanh),
        ("none", np.zeros_like),
    ],
)
def test_base_activations_are_the_functions_of_their_names(base, formula):
    assert np.allclose(ACTIVATIONS[base](Z).numpy(), formula(Z.numpy()), atol=1e-14)


def _reference_log_total(prior, q, p):
    """Logarithm of the integral of exp(f) pi0 by scipy's adaptive rule on pieces."""
    with torch.no_grad():
        peak = float(prior.unnormalised_log_density(prior.cell_edges(4)[None, None])[q, p].max())

    def density(z):
        with torch.no_grad():
            return math.exp(float(prior.unnormalised_log_density(torch.tensor(z).reshape(1, 1, 1))[q, p, 0]) - peak)

    edges = prior.cell_edges(1).numpy()[::8]
    edges = np.unique(np.append(edges, [prior.low, prior.high, 0.0 if prior.low < 0 else prior.low]))
    breaks = np.unique([*edges, *(b for b in prior.bank.breaks if prior.low < b < prior.high)])
    pieces = [scipy.integrate.quad(density, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in pairwise(breaks)]
    return math.log(math.fsum(pieces)) + peak


@pytest.mark.parametrize("reference", DOMAINS)
@pytest.mark.parametrize("name", GRID_SIZES)
def test_normalisers_of_wild_energies_are_right_to_nine_digits(name, reference):
    prior = _prior(name, reference, has_tails=False)
    found = prior.log_normalizer().detach()
    assert float(found[1, 2]) == pytest.approx(_reference_log_total(prior, 1, 2), abs=5e-9)
    fine = prior.cumulative().log_total
    assert float((fine - found).abs().max()) < 2e-8
    assert float(fine[1, 2]) == pytest.approx(_reference_log_total(prior, 1, 2), abs=1e-11)


@pytest.mark.parametrize("name", ["fourier", "morlet", "rbf", "rswaf"])
def test_finer_functions_get_finer_cells(name):
    prior = _prior(name, has_tails=False)
    with torch.no_grad():
        scale = prior.bank.log_scales if name == "morlet" else prior.bank.log_tau
        # A wave gets faster as tau grows, the others as it falls; beyond the clamp nothing changes any more.
        scale.fill_(5.0 if name == "fourier" else -5.0)
    found = prior.log_normalizer().detach()
    assert float((found - prior.cumulative().log_total).abs().max()) < 2e-8


@pytest.mark.parametrize("name", GRID_SIZES)
def test_samples_lie_where_their_uniforms_say(name):
    prior = _prior(name)
    uniform = torch.linspace(0.001, 0.999, 300).expand(2, 3, -1)
    z = prior.cumulative().invert(uniform)
    fine = np.linspace(-6.0, 6.0, 60_001)
    with torch.no_grad():
        log_density = prior.unnormalised_log_density(torch.from_numpy(fine)[None, None]).numpy()
    cdf = scipy.integrate.cumulative_simpson(np.exp(log_density), x=fine, initial=0.0)
    for q, p in np.ndindex(2, 3):
        reached = np.interp(z[q, p].numpy(), fine, cdf[q, p] / cdf[q, p, -1])
        assert np.abs(reached - uniform[q, p].numpy()).max() < 1e-3


@pytest.mark.parametrize("name", GRID_SIZES)
def test_experts_of_any_functions_integrate_to_one(name):
    prior = _prior(name, variant="experts", num_components=2)
    with torch.no_grad():
        prior.means.normal_(0.0, 1.5)
        prior.log_stds.uniform_(-1.5, 0.4)
    axis = torch.linspace(-8.0, 8.0, 601)
    z = torch.cartesian_prod(axis, axis)
    density = prior.log_density(z).exp().detach().reshape(601, 601).numpy()
    total = scipy.integrate.simpson(scipy.integrate.simpson(density, x=axis.numpy()), x=axis.numpy())
    assert total == pytest.approx(1.0, abs=2e-4)
    if prior.bank.has_closed_expectation:
        mean, spread = torch.randn(5, 2), torch.full((5, 2), 1e-6)
        assert torch.allclose(prior.expected_log_prob(mean, spread), prior.log_density(mean), atol=1e-6)


@pytest.mark.parametrize("name", GRID_SIZES)
def test_a_prior_of_any_functions_starts_at_the_latents_it_is_given(name):
    prior = _prior(name, num_components=1)
    with torch.no_grad():
        prior.bank.coefficients.zero_()
    mean = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1)) * 0.6 + torch.tensor([0.8, -0.5])
    before = float(prior.log_density(mean).detach().mean())
    start_prior(prior, mean, torch.full_like(mean, 0.1), torch.Generator().manual_seed(2))
    after = float(prior.log_density(mean).detach().mean())
    # Five wavelets cannot be a Gaussian; whatever can comes within a tenth of a nat of the best one.
    best = 2 * (-math.log(0.6) - 0.5 * math.log(2 * math.pi) - 0.5)
    assert after > (before if name == "morlet" else best - 0.1)


def test_the_cosine_of_an_exported_graph_is_the_cosine():
    angle = torch.linspace(-60.0, 60.0, 10_001)
    assert torch.allclose(cosine_by_arithmetic(angle), angle.cos(), atol=1e-13)
    assert torch.allclose(cosine_by_arithmetic(angle.float()), angle.float().cos(), atol=2e-6)
