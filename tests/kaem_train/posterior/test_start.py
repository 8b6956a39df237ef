"""The experts start at clusters of encoded images, in the frame that whitens them."""

import pytest
import torch

from kaem_train.config import PriorConfig
from kaem_train.model.prior.factorised import build_prior
from kaem_train.posterior.start import start_prior


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _encoded(num=3000):
    """Three clusters in two dimensions; posterior deviation 0.3."""
    member = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), num, replacement=True, generator=_rng(1))
    centres = torch.tensor([[-3.0, 0.0], [3.0, 1.0], [0.0, 4.0]])
    return centres[member] + 0.4 * torch.randn(num, 2, generator=_rng(2)), torch.full((num, 2), 0.3)


def _prior(frame, num_experts=3):
    torch.manual_seed(0)
    return build_prior(
        PriorConfig(variant="experts", num_latents=2, num_components=num_experts, frame=frame, low=-8.0, high=8.0)
    )


def test_experts_start_at_the_clusters():
    prior = _prior("none")
    start_prior(prior, *_encoded(), _rng())
    order = prior.log_weights().argsort(descending=True)
    assert prior.log_weights().exp()[order].tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    means = prior.means.T[order].detach()
    assert torch.allclose(means, torch.tensor([[-3.0, 0.0], [3.0, 1.0], [0.0, 4.0]]), atol=0.1)
    assert torch.allclose(prior.stds, torch.full((2, 3), 0.5), atol=0.03)  # sqrt(0.4^2 + 0.3^2)


def test_a_frame_makes_the_start_white_and_the_density_better():
    mean, std = _encoded()
    z = mean + std * torch.randn(mean.shape, generator=_rng(3))
    values = {}
    for frame, num_experts in (("none", 1), ("global", 1), ("global", 3)):
        prior = _prior(frame, num_experts)
        start_prior(prior, mean, std, _rng())
        values[frame, num_experts] = float(prior.log_density(z).detach().mean())
    assert values["none", 1] < values["global", 1] < values["global", 3] - 0.5
    u = prior.frame.inverse(z)
    assert torch.allclose(torch.cov(u.T), torch.eye(2), atol=0.1)


def test_the_same_noise_gives_the_same_start():
    states = []
    for _ in range(2):
        prior = _prior("global")
        start_prior(prior, *_encoded(), _rng(5))
        states.append(prior.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
