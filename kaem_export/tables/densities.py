"""The log densities of a prior's functions, in numpy and float64, any of them at any nodes.

    log p_qp(z) = w_b,qp b(z) + sum_g W_qpg B_g(z) + log pi0_qp(z)        (up to a constant; eq. 9 of the paper)

All functions on shared nodes are one matrix product. Where every function has B_g of its own (wavelets), they are
evaluated for the chosen functions alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from kaem_export.tables.chebyshev_cdf import Float64, Integers, curvature
from kaem_train.model.activations import ACTIVATIONS
from kaem_train.model.bases import tensors_of
from kaem_train.model.prior.abstract_prior import AbstractPrior
from kaem_train.model.prior.experts import ExpertsPrior

REACH = 6.5
"""Deviations of a Gaussian beyond which float32 uniforms never reach: they stop at 6.35."""


class PriorFunctions:
    """All R = Q P functions of a prior, row q P + p.

    Args:
        prior: Stays as it is; a copy in float64 is kept.

    Attributes:
        edges: Cell edges on all knots, kinks and ends, ascending.
        kinks: Points where a density has no derivative.
    """

    def __init__(self, prior: AbstractPrior) -> None:
        prior = copy.deepcopy(prior).double().cpu().requires_grad_(False)
        self._prior, self._bank = prior, prior.bank
        self.num_latents, self.num_components = prior.num_latents, prior.num_components
        self.edges: Float64 = prior.cell_edges(1).numpy()
        self.kinks: tuple[float, ...] = tuple(k for k in prior.bank.kinks if prior.low < k < prior.high)
        self._weights = prior.bank.weights().flatten(0, 1)  # (R, size)
        self._base_weight = None if prior.bank.base == "none" else prior.bank.base_weight.flatten()
        self._gaussian = self._gaussian_parts()
        self._has_own_gaussians = isinstance(prior, ExpertsPrior) or prior.reference.is_learnable

    def __len__(self) -> int:
        return len(self._weights)

    def of(self, rows: Integers) -> ChosenFunctions:
        """Return some of the functions as what `integrate` takes."""
        return ChosenFunctions(self, np.asarray(rows))

    def evaluate(self, rows: Integers, nodes: Float64) -> tuple[Float64, Float64]:
        """Return log densities (R', E, 17) on nodes (E, 17), and bounds of |f''| in each cell (R', E)."""
        index = torch.from_numpy(rows)
        weights, flat = self._weights[index], torch.from_numpy(nodes.reshape(-1))
        if self._bank.basis.is_shared:
            features = self._bank.features(flat).T  # (size, M)
            values = (weights @ features).numpy().reshape(-1, *nodes.shape)
            with np.errstate(invalid="ignore"):  # what is not finite is found, and named, by those who asked
                bound = weights.abs().numpy() @ curvature(features.numpy().reshape(-1, *nodes.shape), nodes)
        else:
            tensors = {
                name: value.flatten(0, 1)[index] for name, value in tensors_of(self._bank, self._bank.basis).items()
            }
            features = self._bank.basis.features(flat[:, None], tensors).permute(1, 2, 0)  # (R', size, M)
            values = torch.einsum("rgm,rg->rm", features, weights).numpy().reshape(-1, *nodes.shape)
            own = curvature(features.numpy().reshape(*features.shape[:2], *nodes.shape), nodes)
            bound = np.einsum("rg,rge->re", weights.abs().numpy(), own)
        if self._base_weight is not None:
            base = ACTIVATIONS[self._bank.base](flat).numpy().reshape(nodes.shape)
            slope = self._base_weight[index].numpy()
            values += slope[:, None, None] * base
            bound += np.abs(slope)[:, None] * curvature(base, nodes)
        if self._gaussian is not None and self._has_own_gaussians:
            mean, std = (part[rows] for part in self._gaussian)
            values -= 0.5 * ((nodes - mean[:, None, None]) / std[:, None, None]) ** 2
            bound += std[:, None] ** -2.0
        else:
            reference = self._prior.reference.nodes(flat[None, None]).numpy().reshape(nodes.shape)
            values += reference
            bound += curvature(reference, nodes)
        return values, bound

    def identities(self) -> tuple[Integers, Float64, Float64, Integers]:
        """Tell which functions are one another's affine image, exactly.

        Returns:
            For each function the number of its law, its offset and its scale; and for each law a function that is the
            law itself, or -1 where the law is N(0, 1). Gaussians whose domain ends beyond what a uniform can
            reach are images of N(0, 1); functions with equal parameters are equal.
        """
        count = len(self)
        gaussian = self._gaussian or (np.zeros(count), np.zeros(count))
        parts = [self._weights.numpy(), np.stack(gaussian, axis=1)]
        is_flat: NDArray[np.bool_] = np.asarray(~self._weights.numpy().any(axis=1))
        if self._base_weight is not None:
            parts.append(self._base_weight.numpy()[:, None])
            is_flat &= self._base_weight.numpy() == 0.0
        if not self._bank.basis.is_shared:
            parts += [
                np.where(is_flat[:, None], 0.0, value.flatten(0, 1).numpy())
                for value in tensors_of(self._bank, self._bank.basis).values()
            ]
        offset, scale = np.zeros(count), np.ones(count)
        is_normal = np.zeros(count, bool)
        if self._gaussian is not None:
            mean, std = self._gaussian
            is_normal = is_flat & (mean - REACH * std >= self._prior.low) & (mean + REACH * std <= self._prior.high)
            offset, scale = np.where(is_normal, mean, 0.0), np.where(is_normal, std, 1.0)
        keys = np.where(is_normal[:, None], 0.0, np.concatenate(parts, axis=1) + 0.0)
        keys = np.concatenate([~is_normal[:, None], keys], axis=1)
        _, first, law = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        # Laws by their first function, so that neighbours stay neighbours.
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first = first[order]
        return rank[law.reshape(-1)], offset, scale, np.where(is_normal[first], -1, first)

    def _gaussian_parts(self) -> tuple[Float64, Float64] | None:
        """Return means and deviations (R,) of the Gaussian that each function holds, None where there is none."""
        prior = self._prior
        if isinstance(prior, ExpertsPrior):
            moments: tuple[torch.Tensor, torch.Tensor] = (prior.means, prior.stds)
        else:
            match prior.reference.name:
                case "learnable_gaussian":
                    moments = prior.reference.moments()
                case "gaussian":
                    return np.zeros(len(self._weights)), np.ones(len(self._weights))
                case "lognormal" | "uniform" | "none":
                    return None
                case _:
                    assert_never(prior.reference.name)
        mean, std = (value.flatten().numpy() for value in moments)
        return mean, std


@dataclass(frozen=True, slots=True)
class ChosenFunctions:
    """Some functions of a prior: `LogDensities`."""

    functions: PriorFunctions
    rows: Integers

    def __call__(self, nodes: Float64) -> tuple[Float64, Float64]:
        """See `LogDensities`."""
        return self.functions.evaluate(self.rows, nodes)


class StandardNormal:
    """One function, log N(0, 1): `LogDensities`."""

    def __call__(self, nodes: Float64) -> tuple[Float64, Float64]:
        """See `LogDensities`."""
        return -0.5 * nodes[None] ** 2, np.ones((1, len(nodes)))
