"""The learned linear frame z = b + W u: it turns and stretches the axes along which a prior factorises.

log p(z) = log p_U(W^-1 (z - b)) + log |det W^-1|

The density stays exact and a sample costs one matrix product more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LEAST_VARIANCE = 1e-4


class InvertibleMatrices(nn.Module):
    """One square matrix W, or several, and what is needed of their inverses.

    State: matrix W (..., Q, Q).
    """

    matrix: nn.Parameter
    _held: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def hold_inverse(self) -> Iterator[None]:
        """Invert W once, for all that is asked inside, where W must stay as it is and needs no gradient.

        A CUDA graph cannot hold an inversion: its workspace is not of the graph's memory.
        """
        before = self._held
        with torch.no_grad():
            self._held = torch.linalg.inv_ex(self.matrix).inverse, torch.linalg.slogdet(self.matrix).logabsdet
        try:
            yield
        finally:
            self._held = before

    def inverse_matrix(self) -> Tensor:
        """Return W^-1: shape (..., Q, Q)."""
        # Without the question whether it worked, for whose answer a GPU would be waited for: a singular matrix makes
        # the loss not finite, which is refused.
        inverse: Tensor = torch.linalg.inv_ex(self.matrix).inverse if self._held is None else self._held[0]
        return inverse

    def log_det_inverse(self) -> Tensor:
        """Return log |det W^-1| in nats: shape (...)."""
        log_det: Tensor = torch.linalg.slogdet(self.matrix).logabsdet if self._held is None else self._held[1]
        return -log_det


class LinearFrame(InvertibleMatrices):
    """An invertible affine map of Q latents, the identity until it is started or trained.

    State: offset b (Q,), start 0; matrix W (Q, Q), start I.

    Args:
        num_latents: Q.
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(num_latents))
        self.matrix = nn.Parameter(torch.eye(num_latents))

    def forward(self, u: Tensor) -> Tensor:
        """Return z = b + W u: shape (S, Q) -> (S, Q)."""
        z: Tensor = self.offset + u @ self.matrix.T
        return z

    def inverse(self, z: Tensor) -> Tensor:
        """Return u = W^-1 (z - b): shape (S, Q) -> (S, Q)."""
        u: Tensor = (z - self.offset) @ self.inverse_matrix().T
        return u

    def inverse_moments(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of every u_q where z ~ N(mean, diag std^2).

        The coordinates of u are correlated then. A sum of univariate functions needs their marginals only:
        mean W^-1 (m - b), variance (W^-1 o W^-1) s^2, o the elementwise product.

        Args:
            mean: Shape (S, Q).
            std: Shape (S, Q).

        Returns:
            Two of shape (S, Q).
        """
        inverse = self.inverse_matrix()
        return (mean - self.offset) @ inverse.T, (std.square() @ inverse.square().T).sqrt()

    @torch.no_grad()
    def start(self, latents: Tensor) -> None:
        """Set b and W to the mean and the principal axes of `latents`, shape (S, Q), so that u is white.

        With covariance E diag(v) E^T, W = E diag(sqrt v).
        """
        z = latents.double()
        variances, axes = torch.linalg.eigh(torch.cov(z.T).reshape(z.shape[1], -1))
        self.offset.copy_(z.mean(0))
        self.matrix.copy_(axes * variances.clamp_min(_LEAST_VARIANCE).sqrt())
