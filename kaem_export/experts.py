"""The tables of an experts prior: which uniforms pick which expert, and the quantile functions of each.

The expert is picked by one more uniform v, the last of the D = Q + 1: with cumulative weights c_k summed in
float64, expert k owns v + 1/2 in [c_k, c_{k+1}), so its index is the number of thresholds c_j - 1/2, 0 < j < K,
that are at most v. That counts to K - 1 at most, whatever v is. Rounding v and the thresholds to float32 moves
a share by less than 2^-24.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kaem_export.collapse import Float64, LatentDistributions
from kaem_export.quantile import QuantileTables
from kaem_export.warp import REACH, WarpTables, normal_table, warp_tables
from kaem_train.model.experts import ExpertsPrior
from kaem_train.model.own_frames import OwnFramesPrior


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTables:
    """What the head of the graph needs.

    Attributes:
        thresholds: Shape (K - 1,), float32, signed uniforms at which the next expert begins; ascending.
        normal: The normal quantile, one coordinate.
        warps: Row k Q + q maps a normal x to latent q of expert k.
        latent_dim: Q.
    """

    thresholds: NDArray[np.float32]
    normal: QuantileTables
    warps: WarpTables
    latent_dim: int


def expert_weights(prior: ExpertsPrior | OwnFramesPrior) -> Float64:
    """Return pi, shape (K,), in float64."""
    with torch.no_grad():
        return np.asarray(prior.logits.double().softmax(-1), np.float64)


def frame_rounding(prior: OwnFramesPrior) -> float:
    """Return how far float32 latents may be from any u-error that their tables promise.

    Undoing an expert's frame, u = W^-1 (z - b), magnifies the rounding of z. With independent roundings of relative
    size 2^-24 and |u| up to the tables' reach, one deviation of the worst coordinate's error is returned; a density
    of u near 0.4 makes that 2.5 deviations of probability.
    """
    frames = {name: value.detach().double().cpu() for name, value in prior.frames.state_dict().items()}
    largest = frames["offset"].abs() + REACH * frames["matrix"].square().sum(-1).sqrt()  # (K, Q), of |z|
    rounding = 2.0**-24 * largest.unsqueeze(-1)
    inverse = torch.linalg.inv(frames["matrix"])
    return float((inverse.square() @ rounding.square()).sqrt().max())


def expert_tables(distributions: LatentDistributions, weights: Float64) -> ExpertTables:
    """Tabulate an experts prior.

    Args:
        distributions: K Q rows, row k Q + q.
        weights: pi, shape (K,).
    """
    return ExpertTables(
        thresholds=(np.cumsum(weights)[:-1] / weights.sum() - 0.5).astype(np.float32),
        normal=normal_table(),
        warps=warp_tables(distributions),
        latent_dim=len(distributions.edges) // len(weights),
    )
