"""A finished decoder as a generator: the ONNX file itself, held in the checkpoint and run by ONNX Runtime.

It has no gradient. The prior of a model that holds one is fitted to latents (`kaem fit-prior`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kaem.engines.session import open_session
from kaem.errors import ConfigError
from kaem_train.library_errors import one_line


class OnnxGenerator(nn.Module):
    """A frozen decoder in the form of `decoder_graph`, on the CPU.

    State: `content` (bytes,), uint8: the ONNX file, structure and weights; empty until it is given or loaded.
    """

    content: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("content", torch.empty(0, dtype=torch.uint8))
        self._session: Any = None

    def set_file(self, content: bytes) -> None:
        """Hold another decoder: the bytes of its ONNX file."""
        self.content = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._session = None

    def file(self) -> bytes:
        """Return the bytes of the ONNX file."""
        return self.content.cpu().numpy().tobytes()

    def forward(self, latent: Tensor) -> Tensor:
        """Return the images in [0, 1]: shape (N, Q) -> (N, C, H, W), in float32 arithmetic.

        Raises:
            ConfigError: A gradient is wanted.
            ArtifactError: The file held is not a usable decoder.
        """
        if latent.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                "a decoder of generator.kind = 'onnx' has no gradient",
                hint="fit a prior to its latents with kaem fit-prior, or train a generator.kind=module",
            )
        if self._session is None:
            self._session = open_session(self.file(), "cpu", source="the checkpoint's decoder")
        with one_line("the checkpoint's decoder cannot be run", "fit it again"):
            (images,) = self._session.run(["image"], {"latent": latent.detach().cpu().float().numpy()})
        return torch.from_numpy(np.asarray(images)).to(latent)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A decoder of any size fits: its buffer becomes as long as the one to load.
        content = state_dict.get(f"{prefix}content")
        if isinstance(content, Tensor) and content.dtype == torch.uint8 and content.dim() == 1:
            self.content = torch.empty_like(content)
            self._session = None
        super()._load_from_state_dict(state_dict, prefix, *rest)
