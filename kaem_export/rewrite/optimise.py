"""Which rewrites a graph goes through, in which order.

Exact ones come first, in an order in which each finds what the ones before it leave: weights as single constants, then
scales inside them, then whole affine chains, then what ONNX Runtime fuses. What depends on the machine or costs
accuracy comes after them and only when asked for; a fixed batch size last, so that it is known to nothing before.

None of them is trusted, nor the libraries that they call: what a rewrite leaves is run beside the graph as it was
exported, and a rewrite that fails, makes an invalid graph or changes what the graph computes is left out.

What a graph computes in, read off its nodes: a manifest that says otherwise claims bounds that do not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import assert_never

import onnx
import onnx_ir as ir
from onnx import TensorProto

from kaem.errors import KaemError, VerificationError
from kaem_export.options import Options, Precision
from kaem_export.rewrite.affine import fold_affine_chains
from kaem_export.rewrite.constants import fold_constants
from kaem_export.rewrite.editing import fix_batch, with_shapes
from kaem_export.rewrite.effects import speedup, thread_seconds
from kaem_export.rewrite.first_layer import first_layer_to_gemm
from kaem_export.rewrite.half import to_float16
from kaem_export.rewrite.int8 import ROWS_PER_CALL as INT8_ROWS
from kaem_export.rewrite.int8 import to_int8
from kaem_export.rewrite.kan import fold_kan_layers
from kaem_export.rewrite.sameness import Sameness
from kaem_export.rewrite.scales import fold_scales
from kaem_export.rewrite.toom_cook.layer import ROWS_PER_CALL as TOOM_COOK_ROWS
from kaem_export.rewrite.toom_cook.layer import (
    add_large_batch_branch,
    has_large_batch_form,
    rows_of_equal_bits,
    to_toom_cook,
)
from kaem_train.library_errors import describe_error

Rewrite = Callable[[ir.Model], ir.Model]

EXACT: tuple[Rewrite, ...] = (fold_constants, fold_scales, fold_affine_chains, fold_kan_layers, first_layer_to_gemm)
"""Equal up to the rounding of float32, and never slower where they were measured."""

ROWS_PER_CALL = {"to_int8": INT8_ROWS, "to_toom_cook": TOOM_COOK_ROWS, "add_large_batch_branch": TOOM_COOK_ROWS}
"""Rows of one call beyond which a graph gets slower per row on a processor, by its last rewrite; others have none."""

PASS_NAMES = frozenset({*(rewrite.__name__ for rewrite in EXACT), *ROWS_PER_CALL, "to_float16", "fix_batch"})
"""Of all rewrites."""

LARGE_BATCH = 16
"""Rows from which the large-batch form runs where nothing was measured."""

_TRIED = (8, 16, 32)
"""No more than `rows_per_call` lets through."""
_WORTH = 1.03


@dataclass(frozen=True, slots=True)
class Step:
    """A graph after one rewrite.

    Attributes:
        name: Name of the rewrite.
        model: What it left.
        rows_per_call: Rows of one call beyond which it gets slower per row on a processor; 0 where that is not so.
    """

    name: str
    model: onnx.ModelProto
    rows_per_call: int = 0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A rewrite that would have broken the graph.

    Attributes:
        name: Name of the rewrite.
        reason: What it did, or what a library said, on one line.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimised:
    """A graph and how it came about.

    Attributes:
        steps: The graph as given, then after every rewrite that changed it.
        large_batch_rows: Rows from which the large-batch form runs; 0 where there is none.
        left_out: Rewrites whose result was no good; the graph went on without them.
    """

    steps: tuple[Step, ...]
    large_batch_rows: int = 0
    left_out: tuple[LeftOut, ...] = ()

    @property
    def model(self) -> onnx.ModelProto:
        """The result."""
        return self.steps[-1].model

    @property
    def rows_per_call(self) -> int:
        """Rows of one call beyond which the result gets slower per row; 0 where that is not so, or sizes are fixed."""
        return self.steps[-1].rows_per_call

    @property
    def passes(self) -> list[str]:
        """Names of the rewrites that changed something."""
        return [step.name for step in self.steps[1:]]


def optimise(model: onnx.ModelProto, options: Options | None = None) -> Optimised:
    """Make a graph fast.

    Args:
        model: As `build_graph` makes it; it is not changed. The same model and options give the same result, except
            with `auto`, where the machine's speed decides.
        options: What is asked for.

    Returns:
        The steps; the last one is checked and has inferred shapes.

    Raises:
        ArtifactError: ONNX Runtime cannot run the graph as given.
        VerificationError: The precision costs more accuracy than it may, or what was asked for cannot be done.
    """
    options = options or Options()
    done = Optimised(steps=(Step("as exported", model),))
    if options.optimize != "none":
        sameness = Sameness(model)
        for rewrite in EXACT:
            done = _after(done, rewrite.__name__, rewrite, sameness)
    match options.precision:
        case "float32":
            done = _large_batch(done, options)
        case "float16":
            done = _as_asked(done, "to_float16", to_float16, "use --precision float32")
        case "int8":
            done = replace(done, steps=(*done.steps, Step("to_int8", _int8(done.model), INT8_ROWS)))
        case _:
            assert_never(options.precision)
    if len(options.batch) == 1:
        fixed = partial(fix_batch, rows=options.batch[0])
        done = _as_asked(done, "fix_batch", fixed, "leave --batch out, or name several sizes")
    return done


def _after(
    done: Optimised, name: str, rewrite: Rewrite, sameness: Sameness, *, rows_per_call: int = 0, has_forms: bool = False
) -> Optimised:
    """Apply a rewrite where its result is the same graph in other words; leave it out where it is not."""
    try:
        after = _rewritten(done.model, rewrite)
    except Exception as error:  # onnx's, onnx_ir's and onnxscript's exceptions share no base
        return replace(done, left_out=(*done.left_out, LeftOut(name, describe_error(error))))
    if _is_unchanged(done.model, after):
        return done
    if reason := sameness.fault(after, has_forms=has_forms):
        return replace(done, left_out=(*done.left_out, LeftOut(name, reason)))
    return replace(done, steps=(*done.steps, Step(name, after, rows_per_call)))


def _as_asked(done: Optimised, name: str, rewrite: Rewrite, hint: str) -> Optimised:
    """Apply a rewrite that the user wants: it is no choice of ours to go on without it."""
    try:
        after = _rewritten(done.model, rewrite)
    except Exception as error:  # as above
        raise VerificationError(
            f"{name} cannot be applied to this graph: {describe_error(error)}", hint=hint
        ) from error
    return done if _is_unchanged(done.model, after) else replace(done, steps=(*done.steps, Step(name, after)))


def _int8(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return to_int8(model)
    except KaemError:
        raise
    except Exception as error:  # as above
        raise VerificationError(
            f"to_int8 cannot be applied to this graph: {describe_error(error)}", hint="use --precision float32"
        ) from error


def _rewritten(model: onnx.ModelProto, rewrite: Rewrite) -> onnx.ModelProto:
    after = ir.to_proto(rewrite(with_shapes(ir.from_proto(model))))
    onnx.checker.check_model(after, full_check=True)
    return after


def _is_unchanged(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    return bool(after.graph.node == before.graph.node and after.graph.input == before.graph.input)


def _large_batch(done: Optimised, options: Options) -> Optimised:
    """Add the large-batch form where it is wanted: for any batch size in a branch, for fixed ones in its place."""
    match options.optimize:
        case "none" | "default":
            return done
        case "large-batch" | "auto":
            pass
        case _:
            assert_never(options.optimize)
    try:
        graph = with_shapes(ir.from_proto(done.model))
        if not has_large_batch_form(graph):
            return done
    except Exception as error:  # as above
        return replace(done, left_out=(*done.left_out, LeftOut("to_toom_cook", describe_error(error))))
    sameness = Sameness(done.model)
    rewritten = _after(done, "to_toom_cook", to_toom_cook, sameness, rows_per_call=TOOM_COOK_ROWS, has_forms=True)
    if rewritten.left_out != done.left_out:
        return rewritten
    measured = {"large-batch": lambda: LARGE_BATCH, "auto": lambda: paying_rows(done.model, rewritten.model)}
    rows = measured[options.optimize]()
    rows = rows and max(rows, rows_of_equal_bits(graph))
    if rows == 0 or (options.batch and options.batch[-1] < rows):
        return done
    if options.batch and options.batch[0] >= rows:
        return replace(rewritten, large_batch_rows=1)
    if not options.branches:
        return done
    branch = partial(add_large_batch_branch, least_rows=rows)
    branched = _after(done, "add_large_batch_branch", branch, sameness, rows_per_call=TOOM_COOK_ROWS, has_forms=True)
    return branched if branched.left_out != done.left_out else replace(branched, large_batch_rows=rows)


def paying_rows(plain: onnx.ModelProto, rewritten: onnx.ModelProto, *, seconds: float = 1.0) -> int:
    """Measure from which batch size on the rewritten graph is at least 3 % faster on this machine, 0 if never.

    Args:
        plain: The graph.
        rewritten: The same in the large-batch form.
        seconds: For each size tried.
    """
    found = 0
    for rows in reversed(_TRIED):
        gain = speedup(thread_seconds([plain, rewritten], rows, seconds=seconds), graph=1, baseline=0)
        if gain.low <= _WORTH:
            return found
        found = rows
    return found


_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


def precision_of(model: onnx.ModelProto) -> Precision:
    """Return the narrowest arithmetic that a graph uses."""
    nodes = list(_nodes(model.graph))
    if any(node.op_type in _QUANTISED for node in nodes):
        return "int8"
    casts = [entry.i for node in nodes if node.op_type == "Cast" for entry in node.attribute if entry.name == "to"]
    if TensorProto.FLOAT16 in casts or any(
        tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer
    ):
        return "float16"
    return "float32"


def has_branches(model: onnx.ModelProto) -> bool:
    """Whether some node chooses between two graphs."""
    return any(node.op_type == "If" for node in _nodes(model.graph))


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    below = [entry.g for node in graph.node for entry in node.attribute if entry.HasField("g")]
    return [*graph.node, *(node for branch in below for node in _nodes(branch))]
