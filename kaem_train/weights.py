"""The digest of a model's weights, by which artifacts, evaluations and checkpoints know each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from kaem.artifact import fingerprint


def fingerprint_weights(state: Mapping[str, Tensor]) -> str:
    """Return the digest of a model's tensors: names, shapes, types and values, whatever file they came from."""
    parts = []
    for name in sorted(state):
        array = state[name].detach().cpu().numpy()
        parts.append(f"{name} {array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return fingerprint(b"".join(parts))
