"""Sums that no place in memory changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from baselines import session_of
from heads import graph_of_prior, head_of_prior
from models import VARIANTS, random_model, write_random_checkpoint
from onnx import parser

from kaem.noise import uniforms
from kaem_export.compile import export
from kaem_export.onnx_builder import start_graph, to_model
from kaem_export.priors.ordered_sum import add_up, fix_sum_orders, most_roundings

_ROWS = 67


def _run(session, x):
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def _moves(session, x):
    """Whether a row's bits depend on what stands before it."""
    alone = np.concatenate([_run(session, row[None].copy()) for row in x])
    sizes = (2, 3, 5, 8, 16, 31, len(x))
    return any(not np.array_equal(_run(session, x[-size:].copy()), alone[-size:]) for size in sizes)


def _fix(model):
    return ir.to_proto(fix_sum_orders(ir.from_proto(model)))


def _model(text):
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> agraph {text}')


@pytest.mark.parametrize("num_terms", [*range(1, 14), 33, 129])
def test_a_sum_is_right_to_as_many_roundings_as_it_says_and_bound_to_no_place(num_terms):
    builder, flat = start_graph("x", 3 * num_terms)
    x = np.random.default_rng(num_terms).normal(0, 10, (_ROWS, 3, num_terms)).astype(np.float32)
    terms = builder.op.Reshape(flat, [0, 3, num_terms])
    session = session_of(to_model(builder, y=add_up(builder.op, terms, num_terms)))
    error = np.abs(_run(session, x.reshape(_ROWS, -1)) - x.astype(np.float64).sum(-1))
    allowed = most_roundings(num_terms) * 2.0**-24 * np.abs(x.astype(np.float64)).sum(-1)
    assert (error <= allowed).all()
    assert not _moves(session, x.reshape(_ROWS, -1))


@pytest.mark.parametrize("terms", range(2, 13))
@pytest.mark.parametrize("shares", [True, False])
def test_sums_of_any_number_of_summands_have_equal_bits_in_every_batch(terms, shares):
    variant = VARIANTS["shared uniforms"] if shares else VARIANTS["gaussian independent"]
    _, model = random_model(*variant, f"prior.num_components={terms}")
    session = session_of(head_of_prior(model.prior, keep_components=not shares))
    noise = session.get_inputs()[0].shape[1]
    assert noise == (terms if shares else 3 * terms)
    assert not _moves(session, uniforms(1, 0, _ROWS, noise))


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("x[N,5,7]", "y[N,5] <keepdims=0> sum 2"),
        ("x[N,5,7]", "y[N,5,1] <keepdims=1> mean 2"),
        ("x[N,12,7]", "y[N,1,7] <keepdims=1> mean 1"),
        ("x[N,3,5,5]", "y[N,3,1,1] <keepdims=1> mean 2,3"),
        ("x[N,6,3,5]", "y[N,3] <keepdims=0> sum 1,3"),
        ("x[N,9]", "y[N] <keepdims=0> sum 1"),
    ],
)
def test_sums_and_means_of_a_generator_are_bound_to_no_place(text, reference):
    name, keeps, kind, axes = reference.split()
    operator = {"sum": "ReduceSum", "mean": "ReduceMean"}[kind]
    numbers = [int(axis) for axis in axes.split(",")]
    model = _model(
        f"(float[N,{text[4:-1]}] x) => (float[{name[2:-1]}] y) <int64[{len(numbers)}] a={{{axes}}}>"
        f"{{ z=Neg(x) y={operator}{keeps}(z,a) }}"
    )
    x = np.random.default_rng(0).normal(size=(_ROWS, *map(int, text[4:-1].split(",")))).astype(np.float32)
    if axes != "1,3":  # whose loop is plain today
        assert _moves(session_of(model), x)  # if not, there is nothing to mend any more
    fixed = session_of(_fix(model))
    assert not _moves(fixed, x)
    wanted = getattr(np, kind)(-x.astype(np.float64), axis=tuple(numbers), keepdims="1" in keeps)
    found = _run(fixed, x)
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, atol=1e-5)


def test_a_normalisation_over_an_odd_number_is_bound_to_no_place():
    model = _model(
        "(float[N,3,7,7] x) => (float[N,3,7,7] y) <float[3] s={1,2,3}, float[3] b={0,1,2}>"
        "{ z=Neg(x) y=InstanceNormalization<epsilon=1e-3>(z,s,b) }"
    )
    x = np.random.default_rng(0).normal(2, 3, (_ROWS, 3, 7, 7)).astype(np.float32)
    assert _moves(session_of(model), x)
    fixed = session_of(_fix(model))
    assert not _moves(fixed, x)
    scale, offset = (torch.tensor(values).double() for values in ([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]))
    wanted = torch.nn.functional.instance_norm(-torch.from_numpy(x).double(), weight=scale, bias=offset, eps=1e-3)
    assert np.allclose(_run(fixed, x), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,5,8] x) => (float[N,5] y) <int64[1] a={2}> { y=ReduceSum<keepdims=0>(x,a) }",
        "(float[N,5] x) => (float[5] y) <int64[1] a={0}> { y=ReduceSum<keepdims=0>(x,a) }",
        "(float[N,5,M] x) => (float[N,5] y) <int64[1] a={2}> { y=ReduceSum<keepdims=0>(x,a) }",
        "(float[N,5,7] x) => (float[N,5,7] y) { y=Softmax<axis=-1>(x) }",
        "(int64[N,5,7] x) => (int64[N,5] y) <int64[1] a={2}> { y=ReduceSum<keepdims=0>(x,a) }",
    ],
)
def test_what_has_one_order_already_or_no_known_size_stays_as_it_is(text):
    model = _model(text)
    assert [node.op_type for node in _fix(model).graph.node] == [node.op_type for node in model.graph.node]


class _Normalised(torch.nn.Module):
    """Pixel norm over seven channels, as style-based generators have it."""

    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(3, 7 * 16)

    def forward(self, latent):
        x = self.dense(latent).reshape(-1, 7, 4, 4)
        x = x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
        return torch.sigmoid(x.sum(dim=1, keepdim=True))


def test_a_users_generator_that_averages_over_channels_has_equal_bits_in_every_batch():
    _, model = random_model()
    generator = _Normalised().eval()
    graph = graph_of_prior(model.prior, generator)
    session = session_of(graph)
    uniform = uniforms(3, 0, _ROWS, 3)
    assert not _moves(session, uniform)
    images, latents = session.run(["image", "latent"], {"uniform": uniform})
    with torch.no_grad():
        assert np.abs(images - generator(torch.from_numpy(latents)).numpy()).max() < 1e-6


@pytest.mark.parametrize(("terms", "keeps"), [(5, False), (7, True), (10, False)])
def test_summands_that_are_no_multiple_of_four_can_be_exported(tmp_path, terms, keeps):
    variant = VARIANTS["gaussian independent"] if keeps else VARIANTS["shared uniforms"]
    checkpoint = write_random_checkpoint(tmp_path / "ckpt.pt", *variant, f"prior.num_components={terms}")
    manifest = export(checkpoint, tmp_path / "model.onnx", keep_components=keeps)
    figures = {figure.name: figure.value for figure in manifest.certificate}
    assert (figures["row_difference"], figures["thread_difference"]) == (0.0, 0.0)
