"""Layers in 8 bits: what they compute, where their units come from, and the gate that refuses them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import floats, graph_of, kinds, normal, run
from heads import graph_of_prior
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model, write_random_checkpoint

from kaem.errors import VerificationError
from kaem.noise import uniforms
from kaem_export.compile import export
from kaem_export.options import Options
from kaem_export.proof.rows import tail_uniforms
from kaem_export.rewrite import int8
from kaem_export.rewrite.editing import swept, with_shapes
from kaem_export.rewrite.eight_bit import (
    Range,
    _weight_steps,
    chain_to_eight_bit,
    chains,
    dense_to_eight_bit,
    is_dense,
)
from kaem_export.rewrite.int8 import ranges
from kaem_export.rewrite.optimise import optimise, precision_of

_WIDE = ("generator.dense=0", "generator.channels=[64,48]", "data.image_shape=[1,16,16]")


@pytest.fixture(scope="module")
def plain():
    _, model = random_model(*_WIDE)
    return graph_of_prior(model.prior, model.float().generator)


def _images(model, rows=64):
    return run(model, uniforms(5, 0, rows, 3), "image", "uniform")


def _whole_numbers(*shape, most, seed=0):
    return np.random.default_rng([seed, *shape]).integers(-most, most + 1, shape).astype(np.float32)


@pytest.mark.parametrize("activation", ["LeakyRelu<alpha=0.25>", "Clip"])
def test_a_chain_of_transposed_convolutions_is_what_it_was_up_to_rounding(activation):
    """Odd sides, two layers, a bias; inputs are whole numbers of their units, so that only weights are rounded."""
    graph = graph_of(
        f"""x = Reshape(latent, sides)  y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w, b)
            h = {activation}(y)  image = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(h, v)""",
        *(5 * 12, (3, 12, 16)),
        sides=np.array([-1, 5, 3, 4]),
        w=_whole_numbers(5, 4, 4, 4, most=1),
        b=_whole_numbers(4, most=3),
        v=_whole_numbers(4, 3, 4, 4, most=1),
    )
    x = _whole_numbers(9, 60, most=1)
    before = run(graph, x)
    (chain,) = chains(list(graph.graph))
    first, second = chain.layers
    # Whole numbers from -1 to 1, and quarters of whole numbers behind the activation.
    chain_to_eight_bit(chain, {first: Range(-127.0, 128.0, np.zeros(5)), second: Range(-31.75, 32.0, np.zeros(4))})
    after = ir.to_proto(with_shapes(swept(graph)))
    assert "ConvTranspose" not in kinds(graph)
    assert np.abs(before).max() > 5
    assert np.abs(run(after, x) - before).max() < 0.02 * np.abs(before).max()


def test_a_dense_layer_in_8_bits_takes_back_what_rounding_changes_on_the_average():
    graph = graph_of("image = Gemm(latent, w, b)", 40, (6,), w=floats(40, 6), b=floats(6))
    x = np.abs(normal(500, 40)) % 2.0
    before = run(graph, x)
    node = next(node for node in graph.graph if is_dense(node))
    dense_to_eight_bit(node, Range(0.0, 2.0, x.astype(np.float64).mean(axis=0)))
    after = run(ir.to_proto(with_shapes(swept(graph))), x)
    assert 1e-5 < np.abs(after - before).max() < 0.1
    assert np.abs((after - before).mean(axis=0)).max() < 2e-3


@given(seed=st.integers(0, 1000), rows=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_no_two_neighbouring_products_can_overflow_16_bits(seed, rows):
    weight = np.random.default_rng(seed).standard_t(2, (rows, 5))
    rounded = np.rint(weight / _weight_steps(weight))
    assert np.abs(rounded).max() <= 127
    padded = np.pad(rounded, ((0, -rows % 2), (0, 0))).reshape(-1, 2, 5)
    for products in (np.maximum(padded, 0), np.minimum(padded, 0)):
        assert np.abs(products.sum(axis=1) * 255).max() <= 32767


def test_units_fit_what_occurs_and_hold_zero(plain):
    optimised = optimise(plain).model
    name = next(node.input[0] for node in optimised.graph.node if node.op_type == "ConvTranspose")
    found = ranges(optimised, [name])[name]
    assert found.low <= 0.0 < found.high
    assert found.mean.shape == (64,)


def test_int8_is_measured_against_float32_and_keeps_the_prior(plain):
    result = optimise(plain, Options(precision="int8")).model
    uniform = uniforms(5, 0, 64, 3)
    assert precision_of(result) == "int8"
    assert {domain.domain for domain in result.opset_import} == {""}
    assert np.array_equal(run(result, uniform, "latent", "uniform"), run(plain, uniform, "latent", "uniform"))
    error = np.mean((_images(result).astype(np.float64) - _images(plain)) ** 2)
    assert error > 0
    assert -10 * np.log10(error) > int8.LEAST_PSNR - 1.5  # the gate's own samples are others
    alone = np.concatenate([run(result, row[None], "image", "uniform") for row in uniform[:8]])
    assert np.array_equal(run(result, uniform, "image", "uniform")[:8], alone)


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [
        ("LEAST_PSNR", 90.0, r"int8 images reach \d\d\.\d dB .* 90 dB"),
        ("MOST_ERROR", 1e-6, r"in the prior's tails differ from float32 by up to 0\.\d\d"),
        ("_LEAST_WEIGHTS", 1 << 40, "no layer of this generator"),
    ],
)
def test_int8_that_costs_too_much_is_refused_with_the_figure(plain, monkeypatch, bound, value, said):
    monkeypatch.setattr(int8, bound, value)
    monkeypatch.setattr(int8, "chains", lambda nodes: [] if bound == "_LEAST_WEIGHTS" else chains(nodes))
    with pytest.raises(VerificationError, match=said):
        optimise(plain, Options(precision="int8"))


def test_a_model_whose_tails_are_far_out_is_exported_whole_or_refused_before_anything_is_written(tmp_path):
    """Units that fit random samples alone would cut off the rare ones, which the certificate then finds."""
    for seed in (0, 1):
        checkpoint = write_random_checkpoint(tmp_path / f"{seed}.pt", *_WIDE, seed=seed)
        target = tmp_path / f"{seed}.onnx"
        try:
            manifest = export(checkpoint, target, options=Options(precision="int8"))
        except VerificationError as error:
            assert str(error).startswith("int8 images")  # noqa: PT017
            assert not target.exists()
        else:
            assert all(figure.is_kept for figure in manifest.certificate)
            assert target.exists()


def test_tails_are_one_uniform_of_every_row_and_both_ends():
    rows = tail_uniforms(5, 64)
    depth = np.abs(rows).min(axis=1)
    assert depth.min() == np.float32(2.0**-33)
    assert (np.sort(np.abs(rows), axis=1)[:, 1] > 2.0**-33).all()
    assert {np.sign(row[np.abs(row).argmin()]) for row in rows} == {-1.0, 1.0}
