"""There is one density: at most 1 over the whole line, and sampled but for a millionth. By other people's integrals."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_gaussian import PHI, SIGMA, linear_model, observe

from kaem.errors import ConfigError, KaemError
from kaem_train.config import PriorConfig
from kaem_train.config.settings import load_config
from kaem_train.evaluation.likelihood import held_out_bound
from kaem_train.model.prior.factorised import build_prior
from kaem_train.model.prior.reference import log_gaussian_tails
from kaem_train.posterior import build_posterior

pytestmark = pytest.mark.usefixtures("float64")

GRID_SIZES = {"rbf": 10, "rswaf": 10, "bspline": 10, "fourier": 4, "chebyshev": 5, "legendre": 5, "morlet": 3}
KINDS = [
    ("mixture", "none"),
    ("mixture", "global"),
    ("independent", "none"),
    ("experts", "none"),
    ("experts", "global"),
    ("experts", "own"),
]
DOMAINS = {"uniform": (0.0, 1.0), "none": (-1.2, 1.2), "lognormal": (1e-3, 8.0)}
ENDS = {
    "gaussian": [(-5.0, 5.0), (-6.0, 6.0), (-7.0, 5.5), (-1.2, 1.2)],
    "learnable_gaussian": [(-5.0, 5.0), (-6.0, 6.0)],
}
BASES = ["none", "silu", "relu", "leakyrelu", "gelu", "tanh"]


@st.composite
def priors(draw, references=("gaussian", "learnable_gaussian", *DOMAINS)):
    """One univariate latent, any functions, random parameters as large as long training makes them."""
    variant, frame = draw(st.sampled_from(KINDS))
    reference = draw(st.sampled_from(references)) if variant != "experts" else "gaussian"
    low, high = draw(st.sampled_from(ENDS.get(reference, [DOMAINS.get(reference)])))
    is_inner = reference in ENDS and draw(st.booleans())
    grid = (max(low, -4.0), min(high, 4.0)) if is_inner else (low, high)
    basis = draw(st.sampled_from(list(GRID_SIZES)))
    base = "none" if variant == "experts" else draw(st.sampled_from(BASES))
    config = PriorConfig(
        variant=variant,
        frame=frame,
        num_latents=1,
        num_components=1 if variant == "independent" else 3,
        reference=reference,
        basis=basis,
        grid_size=GRID_SIZES[basis],
        base=base,
        low=low,
        high=high,
        grid_low=grid[0],
        grid_high=grid[1],
    )
    torch.manual_seed(draw(st.integers(0, 2**31)))
    prior = build_prior(config).requires_grad_(False)
    with torch.no_grad():
        for name, value in prior.named_parameters():
            value.copy_(torch.randn_like(value) if "matrix" not in name else 0.3 + torch.rand_like(value))
    return prior


def _mass(prior):
    """Integrate the density over the whole line, by Gauss-Legendre rules in fine cells of u for every frame."""
    fine = [np.linspace(prior.low, prior.high, 1201), np.linspace(-40.0, 40.0, 1601)]
    u = np.unique(np.concatenate([*fine, prior.cell_edges(2).numpy()]))
    maps = [(torch.zeros(1), torch.ones(1, 1))]
    if prior.frame is not None:
        maps = [(prior.frame.offset, prior.frame.matrix)]
    if hasattr(prior, "frames"):
        maps = list(zip(prior.frames.offset, prior.frames.matrix, strict=True))
    edges = np.unique(np.concatenate([float(b[0]) + float(w[0, 0]) * u for b, w in maps]))
    points, weights = np.polynomial.legendre.leggauss(6)
    half, middle = np.diff(edges) / 2.0, (edges[1:] + edges[:-1]) / 2.0
    nodes = (middle[:, None] + half[:, None] * points).reshape(-1)
    with torch.no_grad():
        density = prior.log_density(torch.from_numpy(nodes).reshape(-1, *prior.latent_shape)).exp().numpy()
    return float(density @ (half[:, None] * weights).reshape(-1))


@settings(max_examples=40, deadline=None)
@given(priors())
def test_any_density_integrates_to_at_most_one_over_the_whole_line_and_to_one_once_its_domain_is_wide_enough(prior):
    # Experts are integrated by equal steps, which want functions that vanish at both ends.
    assert _mass(prior) <= 1.0 + (1e-3 if prior.variant == "experts" and prior.has_tails else 1e-6)
    before = (prior.low, prior.high)
    assert prior.widen() == ((prior.low, prior.high) != before)
    assert prior.low <= before[0] < before[1] <= prior.high
    assert prior.has_tails or (prior.low, prior.high) == before
    assert _mass(prior) == pytest.approx(1.0, abs=3e-6)


@settings(max_examples=40, deadline=None)
@given(priors())
def test_what_is_sampled_is_that_density(prior):
    prior.widen()
    z = prior.sample(2000, torch.Generator().manual_seed(1)).flatten().numpy()
    fine = np.unique(np.concatenate([np.linspace(z.min() - 0.5, z.max() + 0.5, 40_001), np.sort(z)]))
    with torch.no_grad():
        density = prior.log_density(torch.from_numpy(fine).reshape(-1, *prior.latent_shape)).exp().numpy()
    cdf = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(fine))])
    assert scipy.stats.kstest(z, lambda x: np.interp(x, fine, cdf)).pvalue > 1e-5


@settings(max_examples=40, deadline=None)
@given(priors(references=("gaussian", "learnable_gaussian")), st.floats(-30.0, 30.0), st.floats(0.01, 5.0))
def test_the_expectation_under_an_encoder_is_at_most_that_of_the_density(prior, mean, std):
    # Wherever the encoder goes: far outside the domain there is nothing to be gained.
    if not prior.bank.has_closed_expectation:
        return
    shape = (1, *prior.latent_shape)
    closed = float(prior.expected_log_prob(torch.full(shape, mean), torch.full(shape, std)).detach())
    if not prior.has_tails:
        assert closed == -math.inf
        return
    z = np.linspace(mean - 9.0 * std, mean + 9.0 * std, 4001)
    with torch.no_grad():
        values = prior.log_density(torch.from_numpy(z).reshape(-1, *prior.latent_shape)).numpy()
    expected = float(np.trapezoid(scipy.stats.norm(mean, std).pdf(z) * values, z))
    assert closed <= expected + 1e-6 * (1.0 + abs(expected))
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * std**2)
    # -KL(q || p) cannot be positive for a density: the objective cannot run away.
    assert closed + entropy <= 1e-6


@settings(max_examples=40, deadline=None)
@given(end=st.floats(-3.0, 8.0), mean=st.floats(-2.0, 2.0), std=st.floats(0.2, 2.0), slope=st.floats(0.0, 2.0))
def test_tails_of_tilted_gaussians_are_those_of_scipy(end, mean, std, slope):
    ends, (mean_, std_, slope_) = torch.tensor([-end, end]), (torch.tensor([[x]]) for x in (mean, std, slope))
    found = log_gaussian_tails(ends, mean_, std_, slope_)[0, 0].exp().tolist()
    law = scipy.stats.norm(mean, std)
    upper = np.linspace(end, end + 30.0, 200_001)
    lower = np.linspace(-end - 30.0, -end, 200_001)
    for value, z, at in ((found[0], lower, -end), (found[1], upper, end)):
        expected = np.trapezoid(np.exp(slope * np.abs(z - at) + law.logpdf(z)), z)
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-300)


@pytest.mark.parametrize("reference", DOMAINS)
def test_without_tails_the_density_ends_with_the_domain_and_no_gradient_is_nan(reference):
    low, high = DOMAINS[reference]
    ends = {"low": low, "high": high, "grid_low": low, "grid_high": high}
    prior = build_prior(PriorConfig(variant="mixture", num_latents=2, num_components=2, reference=reference, **ends))
    z = torch.tensor([[0.5, 0.7], [0.5, low - 0.1], [high + 1.0, 0.5]], requires_grad=True)
    value = prior.log_density(z)
    assert value.isinf().tolist() == prior.is_outside(z).tolist() == [False, True, True]
    value[0].backward()
    assert bool(z.grad.isfinite().all())
    assert not prior.widen(z)
    assert (prior.low, prior.high) == (low, high)


def test_a_narrow_domain_has_no_tails_and_encoders_are_told_so():
    narrow = {"low": -2.0, "high": 2.0, "grid_low": -2.0, "grid_high": 2.0}
    config = PriorConfig(variant="experts", num_latents=1, num_components=2, **narrow)
    assert config.reference_outside == pytest.approx(2.0 * scipy.stats.norm.sf(2.0))
    assert build_prior(config).log_density(torch.tensor([[2.1]])).tolist() == [-math.inf]
    with pytest.raises(ConfigError, match=r"domain \[-2, 2\] leaves 0\.046 of the gaussian reference outside"):
        config.require_tails()
    for ends, is_held in (((-5.0, 5.0), True), ((-4.8, 4.8), False), ((-4.8, 8.0), True)):
        config = PriorConfig(variant="experts", num_latents=1, num_components=2, low=ends[0], high=ends[1])
        assert config.has_tails == is_held == (scipy.stats.norm.cdf(ends[0]) + scipy.stats.norm.sf(ends[1]) <= 1e-6)


@pytest.mark.parametrize("frame", ["none", "global", "own"])
def test_a_domain_grows_to_hold_latents_and_the_density_stays_what_it_was(frame):
    torch.manual_seed(0)
    prior = build_prior(PriorConfig(variant="experts", num_latents=3, num_components=4, frame=frame))
    z = torch.tensor([[0.0, 0.5, 9.0], [-7.5, 0.0, 0.1], [0.1, 0.2, 0.3]])
    before = prior.log_density(z)
    assert prior.is_outside(z).tolist() == [True, True, False]
    assert prior.widen(z)
    assert not prior.is_outside(z).any()
    assert torch.allclose(prior.log_density(z), before, atol=1e-8)
    assert not prior.widen(z)
    # 33 times its length is the most; what lies farther out has its density in the tails.
    far, length = torch.cat([1e4 * z[:2], z[2:]]), prior.high - prior.low
    assert prior.widen(far)
    assert length < prior.high - prior.low < 34.0 * 16.0
    assert prior.is_outside(far).tolist() == [True, True, False]
    assert not prior.widen(far)
    assert torch.isfinite(prior.log_density(far)).all()


@pytest.mark.parametrize("kind", ["amortized", "weighted_bound", "refined"])
@pytest.mark.parametrize("stray", [0.0, 9.0, 40.0])
def test_the_held_out_bound_is_below_the_likelihood_wherever_the_encoder_puts_its_latents(kind, stray):
    # x ~ N(0, phi^2 + sigma^2) per pixel; an encoder that strays beyond the domain must only lose by it.
    model = linear_model()
    config = load_config("digits", [f"posterior.kind={kind}", "prior.frame=none", "prior.num_latents=2"])
    posterior = build_posterior(config, model.prior.latent_shape)

    class Encoder(torch.nn.Module):
        def forward(self, images):
            precision = 1.0 + PHI**2 / SIGMA**2
            mean = PHI * images.flatten(1) / SIGMA**2 / precision
            return mean + stray, torch.full_like(mean, -0.5 * math.log(precision))

    posterior.encoder = Encoder()
    images = observe(200)
    found = held_out_bound(model, posterior, images, torch.Generator().manual_seed(0), num_samples=16)
    law = scipy.stats.norm(0.0, math.sqrt(PHI**2 + SIGMA**2))
    exact = float(law.logpdf(images.numpy()).sum()) / len(images)
    assert found <= exact + 1e-6
    assert found == pytest.approx(exact, abs=1e-6) if stray == 0.0 else found < exact - 10.0


@pytest.mark.parametrize(("place", "message"), [(1e4, "far beyond the domain"), (1e300, "too large for float32")])
def test_a_prior_that_has_run_away_ends_the_run_instead_of_growing_its_domain_for_ever(place, message):
    prior = build_prior(PriorConfig(variant="experts", num_latents=2, num_components=3))
    with torch.no_grad():
        prior.means[0, 1] = place
    with pytest.raises(KaemError, match=message) as caught:
        prior.widen()
    assert "training.prior_learning_rate" in caught.value.hint
    assert (prior.low, prior.high) == (-6.0, 6.0)
