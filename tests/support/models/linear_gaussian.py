"""A model whose every answer is known: x = phi z + sigma e with z ~ N(0, 1), pixel by latent.

At temperature t a latent has posterior precision 1 + t phi^2 / sigma^2 and mean t phi x / sigma^2 over it;
x itself is N(0, phi^2 + sigma^2). The prior is the real one with all energies zero: N(0, 1) on [-6, 6], which
leaves 2e-9 outside.
"""

import math
from contextlib import contextmanager

import torch
from torch import nn

from kaem_train.config.settings import load_config
from kaem_train.families.kaem import Kaem

PHI = 1.3
SIGMA = 0.6


@contextmanager
def double():
    """Make float64 the default, for fixtures that outlive the `float64` fixture."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(former)


class _Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi = nn.Parameter(torch.tensor(PHI))

    def forward(self, latent):
        return (self.phi * latent)[:, None, None, :]


def linear_model(num_latents=2):
    """Images have shape (1, 1, num_latents). Build it under the float64 fixture."""
    prior = ("prior.variant=mixture", "prior.frame=none", "prior.num_components=1")
    overrides = (*prior, f"prior.num_latents={num_latents}", "training.sigma=0.6")
    model = Kaem(load_config("digits", overrides))
    model.generator = _Scale()
    with torch.no_grad():
        model.prior.bank.coefficients.zero_()
    return model


def observe(num, num_latents=2):
    """Draw images from the model: shape (num, 1, 1, num_latents), by a seed that no test uses for latents."""
    rng = torch.Generator().manual_seed(20_000)
    deviation = math.sqrt(PHI**2 + SIGMA**2)
    return deviation * torch.randn(num, 1, 1, num_latents, generator=rng)


def precision(t):
    return 1.0 + t * PHI**2 / SIGMA**2


def standardise(z, images, t):
    """Map latents of temperature t to what is N(0, 1): shape (B, Q)."""
    mean = t * PHI * images.flatten(1) / SIGMA**2 / precision(t)
    return (z - mean) * math.sqrt(precision(t))


def exact_latents(images, t, seed):
    """Draw from the power posterior: shape (B, Q)."""
    x = images.flatten(1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return t * PHI * x / SIGMA**2 / precision(t) + noise / math.sqrt(precision(t))


def exact_mean_log_likelihood(images, t):
    """Return E_t log p(x|z): shape (B,)."""
    x = images.flatten(1)
    residual = x - PHI * t * PHI * x / SIGMA**2 / precision(t)
    expected = (residual.square() + PHI**2 / precision(t)) / (2 * SIGMA**2)
    return (-expected - 0.5 * math.log(2 * math.pi * SIGMA**2)).sum(1)


def exact_evidence(images):
    """Return log p(x): shape (B,)."""
    variance = PHI**2 + SIGMA**2
    return (-0.5 * images.flatten(1).square() / variance - 0.5 * math.log(2 * math.pi * variance)).sum(1)


def assert_standard_normal(values, bound=4.5):
    """Mean and variance of independent values within `bound` standard errors of N(0, 1)."""
    num = values.numel()
    assert abs(float(values.mean())) < bound / math.sqrt(num)
    assert abs(float(values.var()) - 1.0) < bound * math.sqrt(2.0 / num)
