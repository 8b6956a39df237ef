"""Layers with fewer products: equality with float64, the two branches, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import floats, graph_of, kinds, normal, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from kaem_export.rewrite.effects import graph_cost
from kaem_export.rewrite.toom_cook.layer import (
    add_large_batch_branch,
    has_large_batch_form,
    rows_of_equal_bits,
    to_toom_cook,
)
from kaem_export.targets.torch_twin import TorchTwin

_LAYER = "ConvTranspose<strides=[2,2], pads=[1,1,1,1]>"


def _chain(side: int = 4) -> ir.Model:
    """Two layers with an activation and a bias each, then one to three channels."""
    return graph_of(
        f"""x = Reshape(latent, sides)  a = {_LAYER}(x, w, b)  h = LeakyRelu<alpha=0.2>(a)  c = {_LAYER}(h, v)
            t = Clip(c, low)  y = {_LAYER}(t, u)  image = Sigmoid(y)""",
        *(32 * side * side, (3, 8 * side, 8 * side)),
        sides=np.array([-1, 32, side, side]),
        w=0.2 * floats(32, 48, 4, 4),
        b=floats(48),
        v=0.2 * floats(48, 32, 4, 4),
        low=np.float32(-3),
        u=0.2 * floats(32, 3, 4, 4),
    )


def _one_layer(inputs: int, outputs: int, side: int, bias: np.ndarray | None) -> tuple[ir.Model, np.ndarray]:
    weight = floats(inputs, outputs, 4, 4)
    graph = graph_of(
        f"x = Reshape(latent, sides)  image = {_LAYER}(x, w{'' if bias is None else ', b'})",
        *(inputs * side * side, (outputs, 2 * side, 2 * side)),
        sides=np.array([-1, inputs, side, side]),
        w=weight,
        **({} if bias is None else {"b": bias}),
    )
    return graph, weight


@given(
    side=st.sampled_from([4, 8, 12]),
    inputs=st.integers(32, 40),
    outputs=st.integers(32, 40),
    rows=st.integers(1, 9),
    bias=st.sampled_from([None, 1.0, 10.0, 100.0]),
)
@settings(max_examples=8, deadline=None)
def test_one_layer_is_torch_s_in_float64_to_a_few_roundings(side, inputs, outputs, rows, bias):
    offset = None if bias is None else bias * floats(outputs)
    graph, weight = _one_layer(inputs, outputs, side, offset)
    x = normal(rows, inputs * side * side)
    pixels = torch.from_numpy(x).double().reshape(-1, inputs, side, side)
    exact = torch.nn.functional.conv_transpose2d(
        pixels,
        torch.from_numpy(weight).double(),
        None if offset is None else torch.from_numpy(offset).double(),
        stride=2,
        padding=1,
    )
    to_toom_cook(graph)
    assert "ConvTranspose" not in kinds(graph)
    result = run(graph, x)
    assert np.abs(result - exact.numpy()).max() < 5e-6 * float(exact.abs().max())


@pytest.mark.parametrize(
    "activation",
    ["Tanh(a)", "Softplus(a)", "Neg(a)", "Sigmoid(a)", "Gelu(a)", "Elu<alpha=0.5>(a)", "Clip(a, , most)"],
)
def test_biases_survive_activations_that_do_not_leave_a_one_alone(activation):
    def chain() -> ir.Model:
        return graph_of(
            f"""x = Reshape(latent, sides)  a = {_LAYER}(x, w, b)  h = {activation}  g = Tanh(h)
                image = {_LAYER}(g, v, c)""",
            *(512, (32, 16, 16)),
            sides=np.array([-1, 32, 4, 4]),
            w=0.2 * floats(32, 33, 4, 4),
            b=3 * floats(33),
            v=0.2 * floats(33, 32, 4, 4),
            c=3 * floats(32),
            most=np.float32(0.3),
        )

    rewritten = to_toom_cook(chain())
    assert "ConvTranspose" not in kinds(rewritten)
    assert kinds(rewritten).count("Transpose") == 4
    x = normal(5, 512)
    before = run(chain(), x)
    assert np.abs(run(rewritten, x) - before).max() < 1e-5 * np.abs(before).max()
    assert np.array_equal(run(add_large_batch_branch(chain(), 6), x), before)


def test_an_activation_that_makes_nothing_of_a_one_ends_its_chain():
    def chain() -> ir.Model:
        return graph_of(
            f"""x = Reshape(latent, sides)  a = {_LAYER}(x, w, b)  h = ThresholdedRelu(a)
                image = {_LAYER}(h, v, c)""",
            *(512, (32, 16, 16)),
            sides=np.array([-1, 32, 4, 4]),
            w=0.2 * floats(32, 32, 4, 4),
            b=floats(32),
            v=0.2 * floats(32, 32, 4, 4, seed=1),
            c=floats(32, seed=1),
        )

    x = normal(5, 512)
    rewritten = to_toom_cook(chain())
    assert kinds(rewritten).count("Transpose") == 8
    close = np.isclose(run(rewritten, x), run(chain(), x), atol=1e-5)
    assert np.mean(close) > 0.99  # a value at the threshold may fall on its other side


@pytest.mark.parametrize("inputs", [32, 511, 512, 1030])
def test_a_row_has_the_same_bits_in_every_batch_of_the_size_of_a_call(inputs):
    graph, _ = _one_layer(inputs, 32, 4, floats(32))
    x = normal(32, inputs * 16)
    plain, least = run(graph, x), max(rows_of_equal_bits(graph), 16)
    to_toom_cook(graph)
    whole = run(graph, x)
    assert np.abs(whole - plain).max() < 5e-6 * np.abs(plain).max()
    for rows in (least, 17, 23, 31):
        assert np.array_equal(run(graph, x[:rows]), whole[:rows])
        assert np.array_equal(run(graph, x[-rows:]), whole[-rows:])


def _with_dense(*, transposed: int, offset: np.ndarray | None, activation: str, more: str = "") -> ir.Model:
    """A dense layer from 24 latents to images (32, 4, 4), one layer, and `more` lines."""
    weight = 0.2 * floats(24, 512)
    return graph_of(
        f"""g = Gemm<transB={transposed}>(latent, d{"" if offset is None else ", o"})  a = {activation}(g)
            x = Reshape(a, sides)  y = {_LAYER}(x, w, b)  {more or "image = Tanh(y)"}""",
        *(24, (40, 8, 8)),
        sides=np.array([-1, 32, 4, 4]),
        d=weight.T.copy() if transposed else weight,
        w=0.1 * floats(32, 40, 4, 4),
        b=floats(40),
        **({} if offset is None else {"o": offset}),
    )


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("offset", [None, (512,), (1, 512), (1,), ()], ids=str)
@pytest.mark.parametrize("activation", ["LeakyRelu<alpha=0.2>", "Softplus", "Identity"])
def test_a_dense_layer_in_front_gives_images_in_the_layout(transposed, offset, activation):
    value = None if offset is None else np.asarray(floats(*(offset or (1,))).reshape(offset), np.float32)
    plain, rewritten = (_with_dense(transposed=transposed, offset=value, activation=activation) for _ in range(2))
    to_toom_cook(rewritten)
    assert not {"Gemm", "ConvTranspose"} & {*kinds(rewritten)}
    assert kinds(rewritten).count("Transpose") == 3  # of the latents, and two out of the layout
    both = add_large_batch_branch(
        _with_dense(transposed=transposed, offset=value, activation=activation), least_rows=17
    )
    x = normal(32, 24)
    expected, found = run(plain, x), run(rewritten, x)
    assert np.abs(found - expected).max() < 5e-6
    assert np.array_equal(run(both, x), found)
    assert np.array_equal(run(both, x[:16]), run(plain, x[:16]))
    for rows in (16, 17, 31):
        assert np.array_equal(run(rewritten, x[:rows]), found[:rows])


@pytest.mark.parametrize(
    ("activation", "more"),
    [
        ("ThresholdedRelu", ""),  # makes nothing of a one
        ("LeakyRelu", "t = Tanh(y)  r = ReduceMean(x)  image = Add(t, r)"),  # the images are read elsewhere
        ("LeakyRelu", "t = Tanh(y)  r = ReduceMean(g)  image = Add(t, r)"),  # and the product before them
    ],
)
def test_a_dense_layer_that_something_else_reads_stays(activation, more):
    plain, rewritten = (
        _with_dense(transposed=0, offset=floats(512), activation=activation, more=more) for _ in range(2)
    )
    to_toom_cook(rewritten)
    assert kinds(rewritten).count("Gemm") == 1
    assert "ConvTranspose" not in kinds(rewritten)
    x = normal(20, 24)
    assert np.abs(run(rewritten, x) - run(plain, x)).max() < 1e-5


def test_a_dense_layer_whose_images_have_sizes_computed_in_the_graph_stays():
    def layers() -> ir.Model:
        return graph_of(
            f"""g = Gemm(latent, d)  rows = Shape<start=0, end=1>(latent)  sizes = Concat<axis=0>(rows, sides)
                x = Reshape(g, sizes)  image = {_LAYER}(x, w)""",
            *(24, (40, 8, 8)),
            sides=np.array([32, 4, 4]),
            d=0.2 * floats(24, 512),
            w=0.1 * floats(32, 40, 4, 4),
        )

    plain, both = layers(), add_large_batch_branch(layers(), 6)
    assert kinds(both).count("Gemm") == kinds(both).count("If") == 1
    x = normal(6, 24)
    assert np.array_equal(run(both, x[:5]), run(plain, x[:5]))
    assert np.abs(run(both, x) - run(plain, x)).max() < 1e-5


def _on_large_images() -> ir.Model:
    """Three layers, of which the second is large for its images of 16 x 16, the last to three channels."""
    return graph_of(
        f"""x = Reshape(latent, sides)  a = {_LAYER}(x, w, b)  h = LeakyRelu<alpha=0.2>(a)
            c = {_LAYER}(h, v, d)  t = Tanh(c)  y = {_LAYER}(t, u)  image = Sigmoid(y)""",
        *(2048, (3, 64, 64)),
        sides=np.array([-1, 32, 8, 8]),
        w=0.2 * floats(32, 64, 4, 4),
        b=floats(64),
        v=0.1 * floats(64, 48, 4, 4),
        d=floats(48),
        u=0.2 * floats(48, 3, 4, 4),
    )


def test_layers_on_large_images_take_half_the_rows_at_a_time_and_no_row_depends_on_the_cut():
    x = normal(32, 2048)
    plain, rewritten = run(_on_large_images(), x), to_toom_cook(_on_large_images())
    # The first layer is one product, the second and all behind it two.
    assert [kinds(rewritten).count(kind) for kind in ("Slice", "Tanh", "ConvTranspose", "Concat")] == [2, 2, 2, 3]
    whole = run(rewritten, x)
    assert np.abs(whole - plain).max() < 1e-5
    for rows in (4, 5, 16, 17, 31):
        assert np.array_equal(run(rewritten, x[:rows]), whole[:rows])
        assert np.array_equal(run(rewritten, x[-rows:]), whole[-rows:])
    for rows in (1, 2, 3):  # of one row the second half is empty
        assert np.abs(run(rewritten, x[:rows]) - plain[:rows]).max() < 1e-5


def test_the_torch_twin_takes_the_same_halves():
    model = ir.to_proto(to_toom_cook(_on_large_images()))
    model.graph.input[0].name = "uniform"
    model.graph.node.insert(0, helper.make_node("Identity", ["uniform"], ["latent"]))
    x = normal(5, 2048)
    twin = TorchTwin(model)
    for rows in (1, 2, 5):
        expected = run(model, x[:rows], source="uniform")
        assert np.abs(twin(torch.from_numpy(x[:rows]))[0].numpy() - expected).max() < 2e-6


def test_a_chain_is_rewritten_as_a_whole_and_the_layer_to_few_channels_stays():
    graph = _chain()
    before = run(graph, normal(5, 512))
    to_toom_cook(graph)
    assert kinds(graph).count("ConvTranspose") == 1
    assert kinds(graph).count("Transpose") == 4  # two into the layout, two out of it, none between layers
    assert np.abs(run(graph, normal(5, 512)) - before).max() < 1e-5


def test_the_branch_is_chosen_by_the_number_of_rows():
    plain, rewritten, both = _chain(), to_toom_cook(_chain()), add_large_batch_branch(_chain(), 6)
    for rows, expected in ((1, plain), (5, plain), (6, rewritten), (13, rewritten)):
        x = normal(rows, 512)
        assert np.array_equal(run(both, x), run(expected, x))


def test_the_large_branch_costs_fewer_operations_and_the_small_one_as_many_as_before():
    plain, both = ir.to_proto(_chain()), ir.to_proto(add_large_batch_branch(_chain(), 6))
    assert graph_cost(both, 5).flops == pytest.approx(graph_cost(plain, 5).flops, rel=1e-3)
    assert graph_cost(both, 6).flops < 0.8 * graph_cost(plain, 6).flops
    assert graph_cost(both, 6).constant_bytes > graph_cost(plain, 6).constant_bytes


@pytest.mark.parametrize(
    ("attributes", "weight", "side"),
    [
        ("strides=[2,2], pads=[1,1,1,1]", floats(8, 8, 4, 4), 4),
        ("strides=[2,2], pads=[1,1,1,1]", floats(32, 32, 4, 4), 6),
        ("strides=[2,2], pads=[0,0,0,0]", floats(32, 32, 4, 4), 4),
        ("strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", floats(32, 32, 4, 4), 4),
        ("strides=[1,1], pads=[1,1,1,1]", floats(32, 32, 4, 4), 4),
        ("strides=[2,2], pads=[1,1,1,1], group=2", floats(32, 32, 4, 4), 4),
        ("strides=[2,2], pads=[1,1,1,1]", floats(32, 32, 3, 3), 4),
    ],
)
def test_other_layers_are_left_alone(attributes, weight, side):
    with torch.no_grad():
        settings = {"stride": 1 if "strides=[1" in attributes else 2, "padding": 0 if "pads=[0" in attributes else 1}
        settings |= {"groups": 2 if "group" in attributes else 1, "output_padding": int("output_padding" in attributes)}
        pixels = torch.zeros(1, len(weight), side, side)
        shape = tuple(torch.nn.functional.conv_transpose2d(pixels, torch.from_numpy(weight), **settings).shape[1:])
    graph = graph_of(
        f"x = Reshape(latent, sides)  image = ConvTranspose<{attributes}>(x, w)",
        *(len(weight) * side * side, shape),
        sides=np.array([-1, len(weight), side, side]),
        w=weight,
    )
    assert not has_large_batch_form(graph)
    assert kinds(to_toom_cook(graph)) == kinds(add_large_batch_branch(graph, 6)) == ["Reshape", "ConvTranspose"]


def test_a_result_that_is_read_twice_ends_its_chain():
    graph = graph_of(
        f"x = Reshape(latent, sides)  a = {_LAYER}(x, w)  h = Relu(a)  image = Add(a, h)",
        *(512, (32, 8, 8)),
        sides=np.array([-1, 32, 4, 4]),
        w=floats(32, 32, 4, 4),
    )
    before = run(graph, normal(3, 512))
    add_large_batch_branch(graph, 2)
    assert kinds(graph).count("If") == 1
    assert np.abs(run(graph, normal(3, 512)) - before).max() < 2e-6 * np.abs(before).max()
