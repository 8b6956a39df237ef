"""Every function is the formula of its docstring, evaluated on the latent that belongs to it."""

import numpy as np
import pytest
import torch

from kaem_train.model.bases import build_basis
from kaem_train.model.prior.energy import UnivariateBank

pytestmark = pytest.mark.usefixtures("float64")


def _basis(name, grid_size):
    return build_basis(name, grid_size, grid=(-2.0, 2.0), domain=(-3.0, 3.0))


def _bank(base="none", num_latents=4, num_components=3):
    torch.manual_seed(0)
    bank = UnivariateBank(num_latents, num_components, _basis("rbf", 7), base=base)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn_like(parameter))
        bank.log_tau.fill_(0.3)
    return bank


def _formula(state, base, q, p, z):
    """f_{q,p}(z) in NumPy from the names a checkpoint holds."""
    state = {name: value.numpy() for name, value in state.items()}
    centers = state["centers"]
    width = (centers[-1] - centers[0]) / (len(centers) - 1) * np.exp(state["log_tau"])
    radial = np.exp(-0.5 * ((z - centers) / width) ** 2)
    value = state["spline_weight"][q, p] * (state["coefficients"][q, p] * radial).sum()
    if base == "relu":
        value += state["base_weight"][q, p] * max(z, 0.0)
    if base == "silu":
        value += state["base_weight"][q, p] * z / (1.0 + np.exp(-z))
    return value


@pytest.mark.parametrize("base", ["none", "silu", "relu"])
def test_all_evaluators_compute_the_documented_formula(base):
    bank = _bank(base)
    state = bank.state_dict()
    own = torch.randn(5, 4, 3)
    common = torch.randn(5, 4)
    shared_nodes = torch.randn(1, 1, 5)
    paired, broadcast = bank.paired(own).detach(), bank.broadcast(common).detach()
    nodes = bank.nodes(shared_nodes).detach()
    nodes_per_latent = bank.nodes(common.T.unsqueeze(1)).detach()
    nodes_per_function = bank.nodes(own.permute(1, 2, 0)).detach()
    for s, q, p in np.ndindex(5, 4, 3):
        assert float(paired[s, q, p]) == pytest.approx(_formula(state, base, q, p, float(own[s, q, p])))
        assert float(nodes_per_function[q, p, s]) == pytest.approx(float(paired[s, q, p]))
        assert float(broadcast[s, q, p]) == pytest.approx(_formula(state, base, q, p, float(common[s, q])))
        assert float(nodes_per_latent[q, p, s]) == pytest.approx(float(broadcast[s, q, p]))
        assert float(nodes[q, p, s]) == pytest.approx(_formula(state, base, q, p, float(shared_nodes[0, 0, s])))


def test_an_energy_depends_on_its_own_latent_only():
    bank = _bank(num_latents=4, num_components=5)
    jacobian = torch.autograd.functional.jacobian(lambda z: bank.paired(z[None])[0], torch.randn(4, 5))
    for q, p, other_q, other_p in np.ndindex(4, 5, 4, 5):
        is_own = (q, p) == (other_q, other_p)
        assert bool(jacobian[q, p, other_q, other_p] != 0.0) == is_own


def test_expected_energies_equal_gauss_hermite_integrals():
    bank = _bank()
    mean, std = torch.randn(6, 4), torch.rand(6, 4) + 0.05
    points, weights = np.polynomial.hermite_e.hermegauss(120)
    z = mean.unsqueeze(-1) + std.unsqueeze(-1) * torch.from_numpy(points)
    values = torch.stack([bank.broadcast(z[..., i]) for i in range(len(points))], -1)
    integral = (values * torch.from_numpy(weights / weights.sum())).sum(-1)
    assert torch.allclose(bank.expected_broadcast(mean, std), integral, atol=1e-9)
    own_mean, own_std = mean.unsqueeze(-1).expand(-1, -1, 3), std.unsqueeze(-1).expand(-1, -1, 3)
    assert torch.allclose(bank.expected_paired(own_mean, own_std), integral, atol=1e-9)


def test_a_fit_reproduces_a_function_of_the_family():
    wanted, fitted = _bank(), _bank()
    with torch.no_grad():
        fitted.coefficients.zero_()
    nodes = torch.linspace(-2.5, 2.5, 200)
    targets = wanted.nodes(nodes[None, None]).detach()
    fitted.fit(targets, torch.full_like(targets, 1 / 200), nodes, ridge=1e-12)
    assert torch.allclose(fitted.nodes(nodes[None, None]), targets, atol=1e-4)
