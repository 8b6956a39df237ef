"""The amortised posterior: an encoder gives q(z|x) = N(m, s^2), and the evidence bound is maximised.

    log p(x) >= E_q log p(x|z) + E_q log p(z) + H(q)

with one reparametrised z in the first term. Until `prior_from` of the updates, p(z) is the reference N(0, I);
then the energies are started from encoded images and trained along, with their exact normaliser.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaem_train.config import PosteriorConfig
from kaem_train.data import Images
from kaem_train.devices import move_to_cpu, normal
from kaem_train.families.kaem import Kaem
from kaem_train.model.encoder import Encoder
from kaem_train.model.prior.reference import log_reference
from kaem_train.posterior.power import log_likelihood_of, squared_error_of
from kaem_train.posterior.protocol import Posterior, Terms
from kaem_train.posterior.start import start_prior
from kaem_train.training.objective import gaussian_entropy, log_likelihood, standard_normal_divergence

_START_IMAGES = 8192
_ENCODED_TOGETHER = 512


class AmortizedPosterior(Posterior):
    """A diagonal Gaussian q(z|x) whose moments an encoder computes.

    Args:
        config: Encoder widths and when the prior is switched on.
        image_shape: (C, H, W).
        latent_shape: (Q,) or (Q, P).
        updates: Length of the run.

    Attributes:
        encoder: Maps images to the mean and the log deviation of q.
    """

    num_bound_samples = 32

    def __init__(
        self,
        config: PosteriorConfig,
        image_shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        *,
        updates: int,
    ) -> None:
        self.config = config
        self.encoder: nn.Module = Encoder(image_shape, latent_shape, config.encoder_channels, config.encoder_dense)
        self.network: nn.Module = self.encoder
        self.prior_start = round(config.prior_from * updates)
        self.updates = updates

    def prepare(self, model: Kaem, train: Images, step: int, rng: torch.Generator) -> None:
        """Start the prior from encoded training images when its turn comes."""
        if step == self.prior_start:
            with torch.no_grad():
                starts = range(0, min(len(train), _START_IMAGES), _ENCODED_TOGETHER)
                moments = [self.encoder(train[start : start + _ENCODED_TOGETHER]) for start in starts]
                mean, log_std = (torch.cat(parts) for parts in zip(*moments, strict=True))
            with move_to_cpu(model.prior) as prior:
                start_prior(prior, mean.cpu(), log_std.exp().cpu(), rng)

    def terms(self, model: Kaem, images: Tensor, step: int, rng: torch.Generator) -> Terms:
        """Return the negative evidence bound."""
        mean, log_std, z = self._draw(images, rng)
        errors = squared_error_of(model, images, z)
        reconstruction = -log_likelihood(errors, images[0].numel(), model.sigma)
        if step < self.prior_start:
            divergence = standard_normal_divergence(mean, log_std)
        else:
            divergence = -gaussian_entropy(log_std) - _expected_log_prior(model, mean, log_std, z)
        loss = (reconstruction + divergence).mean()
        metrics = {"reconstruction": reconstruction.detach().mean(), "kl": divergence.detach().mean()}
        latents = z.detach() if step >= self.prior_start else None
        return Terms(loss=loss, squared_error=errors.detach().mean(), metrics=metrics, latents=latents)

    @torch.no_grad()
    def latents(self, model: Kaem, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return one draw of q(z|x) per image: shape (B, *latent_shape)."""
        return self._draw(images, rng)[-1]

    @torch.no_grad()
    def log_weights(self, model: Kaem, images: Tensor, num: int, rng: torch.Generator) -> Tensor:
        """Return log p(x|z) p(z) / q(z|x) of `num` draws per image: shape (B, num)."""
        mean, log_std = self.encoder(images)
        columns = []
        for _ in range(num):
            noise = normal(mean.shape, rng, mean)
            z = mean + log_std.exp() * noise
            log_joint = log_likelihood_of(model, images, z) + model.prior.log_density(z)
            log_q = (log_reference("gaussian", noise) - log_std).flatten(1).sum(1)
            columns.append(log_joint - log_q)
        return torch.stack(columns, -1)

    def _draw(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log deviation of q(z|x), and a reparametrised draw."""
        mean, log_std = self.encoder(images)
        return mean, log_std, mean + log_std.exp() * normal(mean.shape, rng, mean)


def log_prior_or_reference(model: Kaem, z: Tensor, *, is_reference: bool) -> Tensor:
    """Return log p(z), or log N(z; 0, I) while the prior has not been started: shape (S,)."""
    if is_reference:
        return log_reference("gaussian", z).flatten(1).sum(1)
    return model.prior.log_density(z)


def _expected_log_prior(model: Kaem, mean: Tensor, log_std: Tensor, z: Tensor) -> Tensor:
    # The closed form has no sampling noise; a base activation has none, so its z is sampled.
    if model.prior.bank.has_closed_expectation:
        return model.prior.expected_log_prob(mean, log_std.exp())
    return model.prior.log_density(z)
