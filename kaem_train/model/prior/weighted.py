"""Priors that mix: their trained weights, and experts, which are drawn for all latents at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaem_train.config import PriorConfig
from kaem_train.devices import uniform
from kaem_train.model.prior.abstract_prior import AbstractPrior
from kaem_train.model.prior.quadrature import trapezoid


class WeightedPrior(AbstractPrior):
    """A prior with mixture weights, the softmax of trained logits over their last axis.

    State besides that of `AbstractPrior`: `logits`, start 0, which is where they stay if proportions are not trained.
    """

    def __init__(self, config: PriorConfig, *, has_tails: bool = True) -> None:
        super().__init__(config, has_tails=has_tails)
        self.trains_proportions = config.train_proportions
        self.logits = nn.Parameter(torch.zeros(self._weights_shape), requires_grad=config.train_proportions)

    @property
    def _weights_shape(self) -> tuple[int, ...]:
        """Shape of the logits: (P,), one set of weights for all latents."""
        return (self.num_components,)

    def log_weights(self) -> Tensor:
        """Return the logarithms of the weights: the shape of the logits."""
        return torch.log_softmax(self.logits, -1)

    @torch.no_grad()
    def start_weights(self, weights: Tensor) -> None:
        """Set the weights, all positive, where they are trained."""
        if self.trains_proportions:
            self.logits.copy_(weights.log())


class ExpertMixturePrior(WeightedPrior):
    """K experts over Q latents, one of which draws all latents of a sample; `num_components` is K.

    Attributes:
        largest_cell: Widest cell that resolves the Gaussian part of every expert.
        largest_step: Widest equal step that does.
    """

    variant = "experts"
    largest_cell: float
    largest_step: float
    _sampling_cells = 4

    @property
    def cell(self) -> float:
        """Width of the cells in which a few nodes integrate every density, its Gaussian part too."""
        return min(self.bank.cell, self.largest_cell)

    def _training_rule(self) -> tuple[Tensor, Tensor]:
        step = self.bank.equal_step
        if step is None or not self.has_tails:
            return super()._training_rule()
        # With tails the domain is so wide that functions vanish at both ends, where equal steps are the best rule.
        return trapezoid(self.low, self.high, spacing=min(step, self.largest_step))

    def _draw(self, num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one expert per sample, then invert its Q distribution functions.

        Returns:
            Experts, shape (num,), and u, shape (num, Q), float64.
        """
        weights = self.log_weights().double().softmax(-1).cumsum(-1)
        choice = uniform((num,), rng, weights)
        draws = uniform((self.num_latents, num), rng, weights)
        expert = torch.searchsorted(weights, choice, right=True).clamp_(max=self.num_components - 1)
        cumulative = self.cumulative()
        u = torch.empty_like(draws)
        for k in sorted(set(expert.tolist())):
            chosen = expert == k
            u[:, chosen] = cumulative.of_component(k).invert(draws[:, chosen])
        return expert, u.T
