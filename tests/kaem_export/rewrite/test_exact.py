"""Every exact rewrite: what it makes of a graph, when it leaves one alone, and equality in real ONNX Runtime."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import floats, graph_of, kinds, normal, run
from heads import graph_of_prior
from models import random_model

from kaem.noise import uniforms
from kaem_export.graph import trace_generator
from kaem_export.rewrite.affine import fold_affine_chains
from kaem_export.rewrite.constants import fold_constants
from kaem_export.rewrite.editing import with_shapes
from kaem_export.rewrite.effects import graph_cost
from kaem_export.rewrite.first_layer import first_layer_to_gemm
from kaem_export.rewrite.kan import fold_kan_layers
from kaem_export.rewrite.optimise import optimise
from kaem_export.rewrite.scales import fold_scales
from kaem_train.config import GeneratorConfig
from kaem_train.model.generators.generator import KanGenerator

_SIDES = np.array([-1, 6, 1, 1])


def test_products_of_constants_become_one_constant_and_expanded_numbers_numbers():
    graph = graph_of(
        """w = Mul(a, b)  y = MatMul(latent, w)  s = Shape(y)  ones = Expand(one, s)  z = Sub(ones, y)
           image = Sigmoid(z)""",
        *(6, (3,)),
        a=floats(6, 3),
        b=floats(6, 1),
        one=np.float32(1),
    )
    before = run(graph, normal(9, 6))
    fold_constants(graph)
    assert kinds(graph) == ["MatMul", "Sub", "Sigmoid"]
    assert len(graph.graph.initializers) == 2
    assert np.array_equal(run(graph, normal(9, 6)), before)


def test_an_expansion_that_gives_the_result_its_shape_stays():
    graph = graph_of(
        "s = Shape(latent)  big = Expand(one, s)  few = ReduceSum<keepdims=1>(latent, axis)  image = Add(big, few)",
        *(6, (6,)),
        one=np.float32(1),
        axis=np.array([1]),
    )
    before = run(graph, normal(9, 6))
    fold_constants(graph)
    assert run(graph, normal(9, 6)).shape == before.shape == (9, 6)


def _statistics(name: str, channels: int) -> dict[str, np.ndarray]:
    positive = {f"{name}v": np.abs(floats(channels, seed=4)), f"{name}g": floats(channels, seed=1)}
    return positive | {f"{name}b": floats(channels, seed=2), f"{name}m": floats(channels, seed=3)}


NORMALISED = {
    "transposed convolutions, in groups": (
        """x = Reshape(latent, sides)  y = ConvTranspose(x, w)  z = BatchNormalization<epsilon=0.01>(y, ag, ab, am, av)
           r = Relu(z)  t = ConvTranspose<group=2, strides=[2,2], pads=[1,1,1,1]>(r, v, c)
           u = BatchNormalization(t, bg, bb, bm, bv)  image = Sigmoid(u)""",
        (4, 6, 6),
        {"w": floats(6, 8, 3, 3), "v": floats(8, 2, 4, 4), "c": floats(4), "sides": _SIDES},
        _statistics("a", 8) | _statistics("b", 4),
    ),
    "convolutions, in groups": (
        """x = Reshape(latent, wide)  y = Conv<group=2, pads=[1,1,1,1]>(x, w, c)
           z = BatchNormalization(y, ag, ab, am, av)  image = Tanh(z)""",
        (4, 1, 3),
        {"w": floats(4, 1, 3, 3), "c": floats(4), "wide": np.array([-1, 2, 1, 3])},
        _statistics("a", 4),
    ),
    "dense layers, with factors": (
        """y = Gemm<transB=1, alpha=0.5, beta=2.0>(latent, w, c)  z = BatchNormalization(y, ag, ab, am, av)
           image = Sigmoid(z)""",
        (12,),
        {"w": floats(12, 6), "c": floats(12)},
        _statistics("a", 12),
    ),
}


@pytest.mark.parametrize("after", NORMALISED)
def test_batch_normalisation_disappears_into(after):
    nodes, shape, weights, statistics = NORMALISED[after]
    graph = graph_of(nodes, 6, shape, **weights, **statistics)
    before = run(graph, normal(9, 6))
    fold_scales(graph)
    assert "BatchNormalization" not in kinds(graph)
    assert np.abs(run(graph, normal(9, 6)) - before).max() < 1e-6


_SCALED = "x = Reshape(latent, sides)  y = ConvTranspose(x, w)  a = Mul(y, s)  b = Sub(t, a)  z = Div(b, two)"


@pytest.mark.parametrize(
    ("scale_shape", "end", "folds"),
    [
        ((3, 1, 1), "image = Sigmoid(z)", True),
        ((3, 4, 4), "image = Sigmoid(z)", False),
        ((), "image = Mul(z, y)", False),
    ],
)
def test_numbers_per_channel_fold_and_those_per_pixel_or_of_shared_layers_stay(scale_shape, end, folds):
    constants = {"w": floats(6, 3, 4, 4), "s": floats(*scale_shape), "t": floats(1, 3, 1, 1), "two": np.float32(2)}
    graph = graph_of(f"{_SCALED} {end}", 6, (3, 4, 4), sides=_SIDES, **constants)
    before = run(graph, normal(9, 6))
    fold_scales(graph)
    assert ("Mul" not in kinds(graph)) == ("Sub" not in kinds(graph)) == folds
    assert np.abs(run(graph, normal(9, 6)) - before).max() < 1e-6


def _cnn(activation: str) -> ir.Model:
    """Two layers as kaem's CNN generator has them, the first as a product with channels last."""
    return graph_of(
        f"""p = MatMul(latent, w)  q = Reshape(p, last)  r = Add(q, b)  x = Transpose<perm=[0,3,1,2]>(r)
            h = {activation}(x)  y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(h, v, c)  image = Sigmoid(y)""",
        *(6, (3, 8, 8)),
        w=floats(6, 16 * 8),
        b=floats(8),
        last=np.array([-1, 4, 4, 8]),
        v=floats(8, 3, 4, 4),
        c=floats(3),
    )


def test_a_generator_without_activations_becomes_one_matrix_product():
    graph = _cnn("Identity")
    before = run(graph, normal(50, 6))
    fold_affine_chains(graph)
    assert kinds(graph) == ["Gemm", "Reshape", "Sigmoid"]
    assert np.abs(run(graph, normal(50, 6)) - before).max() < 1e-6


def test_layers_with_activations_between_them_are_left_alone_but_for_what_is_linear():
    graph = _cnn("LeakyRelu")
    before = run(graph, normal(50, 6))
    fold_affine_chains(graph)
    assert kinds(graph) == ["Gemm", "Reshape", "LeakyRelu", "ConvTranspose", "Sigmoid"]
    assert np.abs(run(graph, normal(50, 6)) - before).max() < 1e-6


def test_a_chain_that_would_cost_more_as_one_matrix_is_left_alone():
    # 256 numbers as 16 x 16 pixels: one convolution of 9 taps is far cheaper than a 256 x 256 matrix.
    graph = graph_of(
        "a = Relu(latent)  x = Reshape(a, sides)  y = Conv<pads=[1,1,1,1]>(x, w)  image = Sigmoid(y)",
        *(256, (1, 16, 16)),
        w=floats(1, 1, 3, 3),
        sides=np.array([-1, 1, 16, 16]),
    )
    assert "Conv" in kinds(fold_affine_chains(graph))


@pytest.mark.parametrize(("inputs", "between", "left"), [(6, 64, 1), (32, 2, 2)])
def test_two_dense_layers_fold_only_where_their_product_is_smaller(inputs, between, left):
    constants = {"w": floats(inputs, between), "b": floats(between), "v": floats(32, between), "c": floats(32)}
    graph = graph_of("y = Gemm(latent, w, b)  image = Gemm<transB=1>(y, v, c)", inputs, (32,), **constants)
    before = run(graph, normal(9, inputs))
    fold_affine_chains(graph)
    assert kinds(graph) == ["Gemm"] * left
    assert np.abs(run(graph, normal(9, inputs)) - before).max() < 1e-5


def test_a_sum_over_rows_of_a_constant_with_rows_is_not_taken_for_affine():
    """A constant (5, 6) adds another row to each row: what holds for the batch of 5 alone must not be folded."""
    graph = graph_of(
        "y = Add(latent, rows)  z = MatMul(y, w)  image = MatMul(z, w)", 6, (6,), rows=floats(5, 6), w=floats(6, 6)
    )
    fold_affine_chains(graph)
    assert kinds(graph) == ["Add", "Gemm"] or kinds(graph) == ["Add", "MatMul", "MatMul"]


@pytest.fixture(scope="module")
def framed():
    _, model = random_model("prior.variant=experts", "prior.low=-8", "prior.high=8", "prior.frame=global")
    return graph_of_prior(model.prior, model.float().generator)


def test_the_frame_stays_one_product_of_its_own_for_the_latents_are_an_output(framed):
    """Folding it into the next layer would spare nothing: it is needed for `latent` all the same."""
    after = optimise(framed).model
    (frame,) = (node for node in after.graph.node if "latent" in node.output)
    assert frame.op_type == "Gemm"
    uniform = uniforms(3, 0, 64, 4)
    for name in ("latent", "image"):
        before = run(framed, uniform, name, "uniform")
        assert np.abs(run(after, uniform, name, "uniform") - before).max() < 1e-6


def test_a_frame_that_nobody_else_reads_folds_into_the_generator(framed):
    alone = onnx.ModelProto()
    alone.CopyFrom(framed)
    del alone.graph.output[1]
    model = fold_affine_chains(with_shapes(ir.from_proto(alone)))
    assert "frame_matrix" not in model.graph.initializers
    uniform = uniforms(3, 0, 64, 4)
    before = run(alone, uniform, "image", "uniform")
    assert np.abs(run(model, uniform, "image", "uniform") - before).max() < 1e-6


def test_all_rewrites_are_deterministic_leave_what_is_given_alone_and_find_nothing_twice(framed):
    given = framed.SerializeToString(deterministic=True)
    first, second = optimise(framed).model, optimise(framed).model
    assert framed.SerializeToString(deterministic=True) == given
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert len(optimise(first).steps) == 1


def test_a_transposed_convolution_of_a_point_becomes_a_product_with_its_activation_next_to_it():
    graph = graph_of(
        """x = Unsqueeze(latent, axes)  y = ConvTranspose<strides=[2,2]>(x, w, b)  h = LeakyRelu<alpha=0.2>(y)
           image = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(h, v)""",
        *(6, (3, 8, 8)),
        axes=np.array([2, 3]),
        w=floats(6, 8, 4, 4),
        b=floats(8),
        v=floats(8, 3, 4, 4),
    )
    before = run(graph, normal(9, 6))
    first_layer_to_gemm(graph)
    assert kinds(graph) == ["Gemm", "LeakyRelu", "Reshape", "ConvTranspose"]
    assert np.abs(run(graph, normal(9, 6)) - before).max() < 1e-6


@pytest.mark.parametrize(
    ("attributes", "weight", "shape"),
    [
        ("group=2", floats(6, 3, 4, 4), (6, 4, 4)),
        ("pads=[1,1,1,1]", floats(6, 3, 4, 4), (3, 2, 2)),
        ("dilations=[2,2]", floats(6, 3, 2, 2), (3, 3, 3)),
        ("strides=[2,2], output_padding=[1,1]", floats(6, 3, 4, 4), (3, 5, 5)),
    ],
)
def test_other_first_layers_are_left_alone(attributes, weight, shape):
    nodes = f"x = Reshape(latent, sides)  y = ConvTranspose<{attributes}>(x, w)  image = Sigmoid(y)"
    graph = first_layer_to_gemm(graph_of(nodes, 6, shape, sides=_SIDES, w=weight))
    assert "ConvTranspose" in kinds(graph)


def test_an_activation_stays_behind_a_change_of_shape_that_something_else_reads():
    graph = graph_of(
        "y = Gemm(latent, w)  x = Reshape(y, sides)  h = Relu(x)  image = Add(h, x)",
        *(6, (3, 2, 2)),
        w=floats(6, 12),
        sides=np.array([-1, 3, 2, 2]),
    )
    assert kinds(first_layer_to_gemm(graph)) == ["Gemm", "Reshape", "Relu", "Add"]


@cache
def _kan(basis: str, base: str = "silu") -> tuple[KanGenerator, bytes]:
    """One layer with large coefficients and knots that differ between inputs, and its plain export."""
    torch.manual_seed(0)
    generator = KanGenerator(5, (1, 4, 4), GeneratorConfig(kind="kan", basis=basis, base=base, grid_size=4)).eval()
    with torch.no_grad():
        if generator.layers[0].basis.knots_name:
            generator.refit_grids(torch.randn(200, 5))
        generator.layers[0].coefficients.normal_(0.0, 0.5)
    return generator, trace_generator(generator, 5).SerializeToString()


def _rewritten(basis: str, base: str = "silu") -> tuple[ir.Model, ir.Model]:
    plain = fold_constants(with_shapes(ir.from_proto(onnx.load_from_string(_kan(basis, base)[1]))))
    return plain, fold_kan_layers(ir.from_proto(ir.to_proto(plain)))


def _features(graph: ir.Model) -> tuple[int, ...]:
    (shape,) = [
        node.inputs[0].shape.dims
        for node in graph.graph
        if node.op_type == "Reshape" and len(node.inputs[0].shape) == 3
    ]
    return tuple(shape[1:])


@pytest.mark.parametrize(
    ("basis", "base"),
    [
        ("rbf", "silu"),
        ("rbf", "none"),
        ("rswaf", "silu"),
        ("bspline", "silu"),
        ("fourier", "silu"),
        ("chebyshev", "silu"),
    ],
)
def test_kan_layers_are_as_exact_as_before_with_functions_in_front_of_inputs(basis, base):
    plain, rewritten = _rewritten(basis, base)
    assert _features(rewritten) == _features(plain)[::-1]
    assert _features(plain)[0] == 5
    assert ("Gemm" in kinds(rewritten)) == (base != "none")
    x = np.concatenate([normal(200, 5), 4.0 * normal(50, 5)])
    with torch.no_grad():
        exact = _kan(basis, base)[0].double()(torch.from_numpy(x).double()).numpy()
    _kan(basis, base)[0].float()
    before, after = (np.abs(run(graph, x) - exact).max() for graph in (plain, rewritten))
    assert after < 2.0 * before + 1e-6


def test_gaussians_are_one_difference_one_square_and_one_exponential():
    _, rewritten = _rewritten("rbf")
    wide = [node.op_type for node in rewritten.graph if len(node.outputs[0].shape) == 3]
    assert sorted(wide) == ["Exp", "Mul", "Neg", "Sub", "Unsqueeze"]


def test_wavelets_with_scales_of_their_own_keep_their_layout():
    plain, rewritten = _rewritten("morlet")
    assert np.abs(run(rewritten, normal(50, 5)) - run(plain, normal(50, 5))).max() < 1e-6
    assert kinds(rewritten).count("Gemm") == 1


def test_features_that_are_read_elsewhere_too_keep_their_layout():
    graph = graph_of(
        """x = Unsqueeze(latent, axis)  d = Sub(x, c)  e = Exp(d)  f = Reshape(e, flat)  y = MatMul(f, w)
           s = ReduceSum<keepdims=0>(e, axis)  t = MatMul(s, v)  image = Mul(y, t)""",
        *(5, (3,)),
        axis=np.array([2]),
        c=floats(5, 4),
        flat=np.array([-1, 20]),
        w=floats(20, 3),
        v=floats(5, 3),
    )
    before = run(graph, normal(9, 5))
    fold_kan_layers(graph)
    assert _features(graph) == (5, 4)
    assert np.allclose(run(graph, normal(9, 5)), before, rtol=1e-6)


def test_a_loop_costs_what_its_body_does_times_its_steps():
    body = onnx.parser.parse_graph(
        """step (int64 i, bool on, float[N, 4] x) => (bool still, float[N, 4] z) {
           still = Identity(on)  y = MatMul(x, w)  z = Relu(y) }"""
    )
    body.value_info.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4]))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Loop", ["trips", "going", "latent"], ["image"], body=body)],
        "loop",
        [onnx.helper.make_tensor_value_info("latent", onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 4])],
        [
            onnx.numpy_helper.from_array(np.int64(7), "trips"),
            onnx.numpy_helper.from_array(np.bool_(True), "going"),
            onnx.numpy_helper.from_array(floats(4, 4), "w"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    cost = graph_cost(model, 3)
    assert cost.flops == 7 * (2 * 4 * 4 + 4)
    assert cost.nodes == 4


def test_costs_are_those_counted_by_hand():
    graph = graph_of(
        """x = Reshape(latent, sides)  y = ConvTranspose(x, w)  h = Relu(y)
           image = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(h, v)""",
        *(6, (3, 8, 8)),
        sides=_SIDES,
        w=floats(6, 8, 4, 4),
        v=floats(8, 3, 4, 4),
    )
    cost = graph_cost(ir.to_proto(graph), 5)
    # 128 results of 6 products; 128 activations; 8 x 8 x 3 results, each from 8 channels and 2 x 2 of the 4 x 4 taps.
    assert cost.flops == 2 * 128 * 6 + 128 + 2 * 192 * 8 * 4
    assert cost.constant_bytes == 4 * (6 * 128 + 8 * 3 * 16) + 8 * 4
    assert cost.nodes == 4
