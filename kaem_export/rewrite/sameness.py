"""Whether a rewritten graph computes what the graph it was made from does, on probe rows in several batch sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kaem.engines.session import open_session
from kaem_export.proof.rows import probe_uniforms
from kaem_train.library_errors import describe_error, one_line

SAME = 1e-5
"""Of intensities, as the certificate has it between ONNX Runtime and torch; of latents beyond 1, relative to them."""

_PROBES = 64
_BATCHES = ((0, 1), (1, 4), (4, 37), (0, 64))
"""Rows of each batch, as first and end: one with a row alone, two on either side of where a large-batch form begins."""

_ALONE = 4


class Sameness:
    """A graph as it was exported, and what it gives.

    Args:
        model: From `uniform` (N, D) to `image`, and maybe `latent`.

    Raises:
        ArtifactError: ONNX Runtime cannot run it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        source = model.graph.input[0]
        self._input = source.name
        self._outputs = [value.name for value in model.graph.output]
        self._rows = probe_uniforms(source.type.tensor_type.shape.dim[1].dim_value, _PROBES // 2)
        with one_line(
            "ONNX Runtime cannot run the exported graph", "export the generator anew, with simpler operators"
        ):
            self._given = self._run(model)
        self._is_steady = _is_steady(self._given)

    def fault(self, model: onnx.ModelProto, *, has_forms: bool = False) -> str:
        """Say how a rewritten graph differs from the first one; "" where it does not.

        Args:
            model: The rewritten graph.
            has_forms: Whether it may round a row otherwise in a larger batch.
        """
        try:
            found = self._run(model)
        except Exception as error:  # onnxruntime's own exception classes share no public base
            return f"ONNX Runtime cannot run the result: {describe_error(error)}"
        for name in self._outputs:
            for before, after in zip(self._given[name], found[name], strict=True):
                difference = _difference(before, after)
                if not difference <= 1.0:
                    return f"{name} of {len(before)} rows differs by {difference * SAME:.2g}"
        if self._is_steady and not has_forms and not _is_steady(found):
            return "a row has other bits in a larger batch"
        return ""

    def _run(self, model: onnx.ModelProto) -> dict[str, list[NDArray[Any]]]:
        """Return every output of every batch, then of rows by themselves."""
        session = open_session(model.SerializeToString(), "cpu", source="the graph")
        places = (*_BATCHES, *((row, row + 1) for row in range(_ALONE)))
        calls = [session.run(self._outputs, {self._input: self._rows[first:end]}) for first, end in places]
        return {name: [np.asarray(call[at]) for call in calls] for at, name in enumerate(self._outputs)}


def _difference(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Return the largest difference in units of what is let through."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return float("inf")
    if before.dtype == np.uint8:  # a value between two levels may go either way
        return float(np.abs(before.astype(int) - after).max(initial=0))
    with np.errstate(invalid="ignore"):
        units = np.abs(after - before) / (SAME * np.maximum(np.abs(before), 1.0))
    units[np.isnan(before) & np.isnan(after) | (before == after)] = 0.0
    return float(units.max(initial=0.0))


def _is_steady(found: dict[str, list[NDArray[Any]]]) -> bool:
    """Whether rows by themselves have the bits that they have in the largest batch."""
    batch = len(_BATCHES) - 1
    pairs = ((np.concatenate(parts[batch + 1 :]), parts[batch][:_ALONE]) for parts in found.values())
    return all(np.array_equal(alone, together, equal_nan=alone.dtype.kind == "f") for alone, together in pairs)
