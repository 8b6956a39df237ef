"""What options make of a whole graph: narrow types, fixed batches, the choice by measurement, and the account of it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import floats, graph_of, normal, run
from heads import graph_of_prior
from models import random_model, write_random_checkpoint
from onnx import TensorProto, helper

import kaem
from kaem.artifact import MANIFEST_KEY, Manifest, read_manifest, seal
from kaem.errors import ArtifactError, ConfigError, VerificationError
from kaem.noise import uniforms
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.graph import attach_manifest, graph_fingerprint
from kaem_export.options import Options, parse_batch
from kaem_export.rewrite import optimise as optimise_module
from kaem_export.rewrite.editing import prior_nodes
from kaem_export.rewrite.effects import estimate, speedup
from kaem_export.rewrite.explain import explain
from kaem_export.rewrite.half import to_float16
from kaem_export.rewrite.optimise import has_branches, optimise, precision_of

_WIDE = ("generator.dense=0", "generator.channels=[64,48]", "data.image_shape=[1,16,16]")


@pytest.fixture(scope="module")
def plain():
    """A graph whose one inner layer is wide enough for the large-batch form."""
    _, model = random_model(*_WIDE)
    return graph_of_prior(model.prior, model.float().generator)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("wide") / "ckpt.pt", *_WIDE)


def _images(model, rows=64):
    return run(model, uniforms(5, 0, rows, 3), "image", "uniform")


def test_float16_keeps_the_prior_in_float32_bit_for_bit_and_halves_the_layers(plain):
    half = optimise(plain, Options(precision="float16")).model
    uniform = uniforms(5, 0, 64, 3)
    assert np.array_equal(run(half, uniform, "latent", "uniform"), run(plain, uniform, "latent", "uniform"))
    assert 1e-7 < np.abs(_images(half) - _images(plain)).max() < 5e-3
    weights = [tensor for tensor in half.graph.initializer if len(tensor.dims) in (2, 4) and np.prod(tensor.dims) > 100]
    assert {t.data_type for t in weights if t.name not in ("first", "second", "leaves", "blocks")} == {
        TensorProto.FLOAT16
    }
    assert [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)] == [1, 1, 1]
    assert precision_of(half) == "float16"


def test_float16_leaves_the_arguments_of_features_in_float32():
    graph = graph_of(
        """latent2 = Mul(latent, two)  x = Unsqueeze(latent2, axis)  d = Sub(x, c)  q = Mul(d, d)  n = Neg(q)
           e = Exp(n)  f = Reshape(e, flat)  y = MatMul(f, w)  h = Tanh(y)  z = Gemm(h, v)  image = Sigmoid(z)""",
        *(5, (3,)),
        two=np.float32(2),
        axis=np.array([1]),
        c=40.0 + floats(4, 5),
        flat=np.array([-1, 20]),
        w=floats(20, 6),
        v=floats(6, 3),
    )
    before = run(graph, 20.0 + normal(50, 5))
    to_float16(graph)
    narrow = {node.op_type for node in graph.graph if node.outputs[0].dtype == ir.DataType.FLOAT16}
    assert narrow == {"Cast", "MatMul", "Tanh", "Gemm"}
    assert np.abs(run(graph, 20.0 + normal(50, 5)) - before).max() < 2e-3


def test_a_float16_value_that_is_read_in_both_types_has_both():
    graph = graph_of(
        "y = Gemm(latent, w)  a = Relu(y)  b = Exp(y)  z = Gemm(a, v)  image = Mul(b, z)",
        5,
        (4,),
        w=floats(5, 4),
        v=floats(4, 4),
    )
    before = run(graph, normal(9, 5))
    to_float16(graph)
    assert np.allclose(run(graph, normal(9, 5)), before, rtol=5e-3, atol=5e-3)


def test_the_large_batch_form_is_a_branch_for_free_batches_and_the_only_form_for_large_fixed_ones(plain):
    free = optimise(plain, Options(optimize="large-batch"))
    assert (free.large_batch_rows, has_branches(free.model)) == (16, True)
    fixed = optimise(plain, Options(optimize="large-batch", batch=(32,)))
    assert not has_branches(fixed.model)
    assert (free.rows_per_call, fixed.rows_per_call, optimise(plain).rows_per_call) == (32, 0, 0)
    assert fixed.passes[-2:] == ["to_toom_cook", "fix_batch"]
    assert [side.dim_value for side in fixed.model.graph.output[0].type.tensor_type.shape.dim] == [32, 1, 16, 16]
    for options in (
        Options(optimize="large-batch", batch=(4,)),
        Options(optimize="large-batch", branches=False),
        Options(optimize="default"),
    ):
        assert not {"to_toom_cook", "add_large_batch_branch"} & {*optimise(plain, options).passes}
    assert np.abs(_images(free.model) - _images(plain)).max() < 1e-5
    assert np.abs(_images(fixed.model, 32) - _images(plain, 32)).max() < 1e-5


def test_none_leaves_the_graph_as_it_is(plain):
    assert optimise(plain, Options(optimize="none")).model is plain


@pytest.mark.parametrize(
    ("factors", "rows"),
    [({8: 0.7, 16: 1.01, 32: 1.4}, 32), ({8: 2.0, 16: 1.2, 32: 1.5}, 8), ({8: 2.0, 16: 2.0, 32: 0.9}, 0)],
)
def test_auto_takes_the_size_from_which_every_larger_one_pays(plain, monkeypatch, factors, rows):
    """Times are made up here: what is tested is the choice, not this machine."""

    def made_up(models, batch, **settings):
        noise = 1.0 + 0.001 * np.random.default_rng(0).standard_normal((15, 2))
        return np.array([factors[batch], 1.0]) * noise

    monkeypatch.setattr(optimise_module, "thread_seconds", made_up)
    assert optimise(plain, Options(optimize="auto")).large_batch_rows == rows


def test_a_median_s_interval_covers_it_in_about_95_of_100_repetitions():
    draws = np.random.default_rng(0).standard_exponential((2000, 25))
    covered = np.mean([not estimate(row).excludes(np.log(2.0)) for row in draws])
    assert 0.94 < covered < 0.99
    assert not estimate(draws[0, :5]).excludes(1e9)
    both = np.stack([draws[0], 2.0 * draws[0]], axis=1)
    assert speedup(both, graph=0, baseline=1).median == 2.0


def test_every_rewrite_is_accounted_for(plain):
    optimised = optimise(plain, Options(optimize="large-batch"))
    rows = explain(optimised, (1, 20), seconds=0.05)
    assert [row.name for row in rows] == 2 * ["as exported", *optimised.passes]
    assert [row.batch for row in rows] == [1] * (len(rows) // 2) + [20] * (len(rows) // 2)
    assert rows[-1].cost.flops < rows[-2].cost.flops
    assert rows[0].gain is rows[0].total_gain is None
    assert all(row.microseconds.median > 0 for row in rows)


@pytest.fixture(scope="module")
def branched(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("branched") / "model.onnx"
    return path, export(checkpoint, path, options=Options(optimize="large-batch"))


def test_what_was_done_stands_in_the_manifest_and_is_verified(checkpoint, branched):
    artifact, manifest = branched
    assert manifest.compilation["passes"][-1] == "add_large_batch_branch"
    assert (manifest.compilation["precision"], manifest.compilation["large_batch_rows"]) == ("float32", 16)
    assert manifest.rows_per_call == 32
    verified, figures = verify(artifact, checkpoint)
    assert verified == manifest
    assert all(figure.is_kept for figure in figures)
    assert 0.0 < next(figure.value for figure in figures if figure.name == "row_difference") < 1e-6


def test_an_artifact_for_certain_batch_sizes_gives_the_samples_of_one_for_any(plain, tmp_path):
    loaded = []
    for batch, limit in (((), 0), ((16,), 0), ((4, 16), 0), ((), 3)):
        graph = optimise(plain, Options(batch=batch)).model
        manifest = Manifest(
            family="kaem",
            name="small",
            noise_dim=3,
            latent_dim=3,
            image_shape=(1, 16, 16),
            graph_fingerprint=graph_fingerprint(graph),
            compilation={"batch_sizes": list(batch), "rows_per_call": limit},
        )
        path = tmp_path / f"{len(loaded)}.onnx"
        path.write_bytes(attach_manifest(graph, manifest))
        loaded += [kaem.load(path, workers=2)]
    assert [sampler.manifest.batch_sizes for sampler in loaded] == [(), (16,), (4, 16), ()]
    for num in (1, 3, 4, 5, 16, 17, 50):
        images = [sampler.sample(num, seed=3) for sampler in loaded]
        assert len(images[0]) == num
        assert np.array_equal(images[0], images[1])
        assert np.array_equal(images[0], images[2])
        assert np.array_equal(images[0], images[3])
    for sampler in loaded:
        sampler.close()


@pytest.mark.parametrize(
    ("stated", "match"),
    [({"precision": "int8"}, "says its generator computes in int8"), ({"large_batch_rows": 0}, "large-batch form")],
)
def test_a_manifest_that_claims_the_bounds_of_another_graph_is_caught(checkpoint, branched, tmp_path, stated, match):
    artifact = tmp_path / "model.onnx"
    model = onnx.load(branched[0])
    manifest = json.loads(model.metadata_props[0].value)
    manifest["compilation"] |= stated
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    artifact.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=match):
        verify(artifact, checkpoint)


def test_manifests_from_before_there_were_options_are_read(branched):
    content = json.loads(onnx.load(branched[0]).metadata_props[0].value)
    del content["compilation"]
    del content["manifest_fingerprint"]
    content["format_version"] = 1
    assert read_manifest({MANIFEST_KEY: json.dumps(content)}, source="old.onnx").batch_sizes == ()
    for wrong in ([3, 2], ["4"], [0], 7):
        content["compilation"] = {"batch_sizes": wrong}
        with pytest.raises(ArtifactError, match="batch_sizes"):
            read_manifest({MANIFEST_KEY: seal(content)}, source="wrong.onnx")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"batch": (0,)}, "outside 1"),
        ({"batch": (8, 4)}, "not ascending"),
        ({"precision": "int8", "optimize": "none"}, "needs the exact rewrites"),
        ({"precision": "float16", "optimize": "large-batch"}, "float32 alone"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        Options(**settings)


def test_batch_sizes_are_read_as_written():
    assert (parse_batch(""), parse_batch("64"), parse_batch("1, 8,64")) == ((), (64,), (1, 8, 64))
    with pytest.raises(ConfigError, match="64x"):
        parse_batch("64x")


def test_the_prior_is_what_the_latents_depend_on(plain):
    model = ir.from_proto(plain)
    prior = prior_nodes(model)
    assert prior[-1].outputs[0].name == "latent"
    assert not {"ConvTranspose", "Sigmoid"} & {node.op_type for node in prior}
