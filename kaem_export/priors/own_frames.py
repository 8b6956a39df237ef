"""Experts in frames of their own: z = b_k + W_k u as one product [W_k | b_k] [u; 1], k picked by the last uniform.

The column of that uniform is looked up with the others. What it follows is 1 everywhere, so that no sum adds the
offset; and where one function serves all experts, unless they are very many, the leaf in which it is found is k, so
that nothing else picks it. At one row, where every node costs about as much as any other, that is a third of what
experts cost.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from typing_extensions import override

from kaem_export.onnx_builder import Op, add_constant
from kaem_export.priors.experts import ExpertsLayout
from kaem_export.priors.layout import choose
from kaem_export.tables.lookup import Head, look_up, sign_uniforms
from kaem_export.tables.tree import QuantileTables

MOST_BLOCKS = 16
"""Blocks of steps up to which they pick the expert: they make the first level of the search wider for every column,
which from 64 rows on costs more than counting thresholds where there are many. With 256 experts a sixth was lost."""


class OwnFramesLayout(ExpertsLayout):
    """Experts that each have a frame of their own.

    Args:
        prior: Prior in its trained form.
    """

    kind = "experts in own frames"

    @override
    def write_head(self, op: Op, uniform: ir.Value, tables: QuantileTables) -> Head:
        if self.frame is None:
            raise AssertionError("experts in own frames have frames")
        latent_dim, one = self.prior.num_latents, _find_one(tables)
        frame = self.frame.fold(self.own_affine)
        is_shared = tables.num_functions == 1
        has_steps = is_shared and len(self.thresholds) < tables.fan_out * MOST_BLOCKS
        with_one = tables.with_steps(self.thresholds if has_steps else self.thresholds[:0], one)
        columns = np.zeros(latent_dim, np.int64) if is_shared else self.columns
        pad = [(0, 0)] * (columns.ndim - 1) + [(0, 1)]
        with_one = with_one.reading(np.pad(columns, pad, constant_values=with_one.num_functions - 1))
        signed = sign_uniforms(op, uniform)
        choice_column = add_constant(op, np.array(latent_dim, np.int32), "choice_column")
        if has_steps:
            found = look_up(op, with_one, signed, keep_axis=True)
            expert = op.Gather(found.row, choice_column, axis=1)
        else:
            expert = choose(op, op.Gather(signed, choice_column, axis=1), self.thresholds[:, None], axis=0)
            found = look_up(op, with_one, signed, chosen=None if is_shared else expert, keep_axis=True)
        # A row of a matrix product does not depend on the others; the certificate measures it.
        matrices = np.concatenate([frame.matrix, frame.offset[..., None] / one], axis=2)  # (K, Q, Q + 1)
        own_matrix = op.Gather(add_constant(op, matrices, "frame_matrix"), expert, axis=0)
        latent = op.Squeeze(op.MatMul(own_matrix, found.quantiles), [-1])
        measured = self.measured_tensors(found.quantiles)
        return Head(kind=self.kind, latent=latent, lookup=found, measured=measured)


def count_step_leaves(num_experts: int, num_functions: int, fan_out: int) -> int:
    """Return the rows of a graph's leaves that belong to the column which is 1 everywhere."""
    has_steps = num_functions == 1 and num_experts - 1 < fan_out * MOST_BLOCKS
    return ((num_experts - 1 if has_steps else 0) // fan_out + 1) * fan_out


def _find_one(tables: QuantileTables) -> np.float32:
    """Return a number that the clip lets through, to stand for 1.

    The largest power of two, or its negative: dividing by it rounds nothing. Where the domain holds none, say [5, 7],
    its end that is farther from 0; what is divided then is right to one float.
    """
    high, low = tables.high, tables.low
    end = high if high >= -low else low
    power = np.float32(np.copysign(2.0 ** np.floor(np.log2(np.abs(end))), end))
    return power if low <= power <= high else end
