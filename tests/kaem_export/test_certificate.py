from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import scipy.stats
import torch
from models import VARIANTS, write_random_checkpoint
from onnx import helper, numpy_helper
from threadpoolctl import threadpool_limits

import kaem
from kaem.artifact import MANIFEST_KEY, seal
from kaem.engines.cpu import LocalSampler
from kaem.errors import ArtifactError, RequestError, VerificationError
from kaem.noise import uniforms
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.graph import graph_fingerprint
from kaem_export.proof.oracle import LatentOracle
from kaem_export.proof.rows import row_figures
from kaem_train.checkpoint import load_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = write_random_checkpoint(folder / "ckpt.pt")
    artifact = folder / "model.onnx"
    export(checkpoint, artifact)
    return checkpoint, artifact


@pytest.fixture(scope="module")
def exported_experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    checkpoint = write_random_checkpoint(folder / "ckpt.pt", *VARIANTS["experts in a frame"])
    artifact = folder / "model.onnx"
    export(checkpoint, artifact)
    return checkpoint, artifact


def _rewrite(artifact, target, change):
    """Copy an artifact with its graph changed and its manifest's digest made to fit again."""
    model = onnx.load(artifact)
    change(model)
    manifest = json.loads(model.metadata_props[0].value)
    manifest["graph_fingerprint"] = graph_fingerprint(model)
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    target.write_bytes(model.SerializeToString())
    return target


def _initializer(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_exports_with_a_kept_certificate(variant, tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "ckpt.pt", *VARIANTS[variant])
    manifest = export(checkpoint, tmp_path / "model.onnx")
    figures = {figure.name: figure for figure in manifest.certificate}
    of_tables = {"score", "score_999", "tail_error", "far_tail_error", "latent_distance"}
    if variant == "shared uniforms":
        of_tables |= {"sum_error"}
    rows = {"image_parity", "row_difference", "thread_difference", "noise_mismatches"}
    assert set(figures) == {"u_error", "cdf_agreement"} | of_tables | rows
    assert all(figure.is_kept for figure in figures.values())
    assert figures["u_error"].value < 5e-6
    assert manifest.prior["score"] <= 1.25
    assert (
        list(tmp_path.iterdir()) == [tmp_path / "model.onnx", tmp_path / "ckpt.pt"]
        or len(list(tmp_path.iterdir())) == 2
    )


def test_a_million_latents_pass_a_kolmogorov_smirnov_test_against_the_oracle(exported):
    checkpoint, artifact = exported
    config, model = load_model(checkpoint)
    oracle = LatentOracle(model.state_dict(), config.prior)
    with kaem.load(artifact) as sampler:
        latents = sampler.latents(uniforms(5, 0, 1_000_000, sampler.manifest.noise_dim))
    for q in range(latents.shape[1]):
        assert scipy.stats.kstest(latents[:, q].astype(np.float64), lambda z, q=q: oracle.cdf(q, z)).pvalue > 1e-3


def test_a_million_latents_of_framed_experts_are_normal_when_the_oracle_undoes_them(exported_experts):
    # Rosenblatt: given the expert, every coordinate's CDF value is uniform and independent of the others.
    checkpoint, artifact = exported_experts
    config, model = load_model(checkpoint)
    oracle = LatentOracle(model.state_dict(), config.prior)
    noise = uniforms(5, 0, 1_000_000, 4)
    with kaem.load(artifact) as sampler:
        assert sampler.manifest.noise_dim == 4
        assert sampler.manifest.latent_dim == 3
        univariate = oracle.univariate(sampler.latents(noise).astype(np.float64))
    expert = np.searchsorted(np.cumsum(oracle.weights) - 0.5, noise[:, 3], side="right")
    assert scipy.stats.chisquare(np.bincount(expert), oracle.weights * len(noise)).pvalue > 1e-3
    for k, q in np.ndindex(len(oracle.weights), 3):
        assert scipy.stats.kstest(univariate[expert == k, q], lambda z, row=k * 3 + q: oracle.cdf(row, z)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("name", "change"), [("leaves", 1.01), ("second", 1.01), ("thresholds", 1.001), ("frame_matrix", 1.01)]
)
def test_changed_tables_of_experts_break_the_u_error(exported_experts, tmp_path, name, change):
    def alter(model):
        tensor = _initializer(model, name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(change), name))

    _, figures = verify(_rewrite(exported_experts[1], tmp_path / "bent.onnx", alter), exported_experts[0])
    assert not {figure.name: figure for figure in figures}["u_error"].is_kept


def test_every_expert_is_proved_in_its_own_frame(tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "ckpt.pt", *VARIANTS["experts in own frames"])
    artifact = tmp_path / "model.onnx"
    export(checkpoint, artifact)

    def swap(model):  # the frames of two experts change places: every one is valid, none is where it belongs
        tensor = _initializer(model, "frame_matrix")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[[1, 0, 2, 3]], "frame_matrix"))

    _, figures = verify(_rewrite(artifact, tmp_path / "swapped.onnx", swap), checkpoint)
    assert not {figure.name: figure for figure in figures}["u_error"].is_kept


@pytest.mark.parametrize(("variant", "noise_dim"), [("mixture in a frame", 6), ("gaussian independent", 12)])
def test_kept_components_are_certified(variant, noise_dim, tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "ckpt.pt", *VARIANTS[variant])
    manifest = export(checkpoint, tmp_path / "model.onnx", keep_components=True)
    assert manifest.noise_dim == noise_dim
    assert manifest.head["kind"] in ("summands", "components")
    assert all(figure.is_kept for figure in manifest.certificate)
    assert verify(tmp_path / "model.onnx", checkpoint)[1] == manifest.certificate


def test_a_looser_tolerance_gives_smaller_tables_and_is_kept(exported, tmp_path):
    exact = verify(exported[1], exported[0])[0].prior
    loose = export(exported[0], tmp_path / "loose.onnx", tolerance=1e-4)
    assert loose.prior["table_bytes"] < 0.6 * exact["table_bytes"]
    assert all(figure.is_kept for figure in loose.certificate)
    assert 1e-7 < loose.certificate[0].value < 1.25e-4


@pytest.mark.parametrize("tolerance", [0.0, -1e-6, 0.5, 1e-12, float("nan"), float("inf")])
def test_a_tolerance_that_makes_no_sense_is_refused(exported, tmp_path, tolerance):
    with pytest.raises(RequestError, match="tolerance is"):
        export(exported[0], tmp_path / "model.onnx", tolerance=tolerance)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bound", [None, 0.0, 1.0, "small"])
def test_a_manifest_without_a_usable_bound_is_refused(exported, tmp_path, bound):
    model = onnx.load(exported[1])
    manifest = json.loads(model.metadata_props[0].value)
    manifest["prior"]["u_error_bound"] = bound
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    (tmp_path / "loose.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="no usable bound"):
        verify(tmp_path / "loose.onnx", exported[0])


def test_verify_measures_what_the_manifest_says(exported):
    manifest, figures = verify(exported[1], exported[0])
    assert figures == manifest.certificate


def test_exporting_twice_gives_equal_bytes(exported, tmp_path):
    export(exported[0], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported[1].read_bytes()


def test_the_number_of_threads_changes_no_byte(tmp_path):
    path = write_random_checkpoint(tmp_path / "ckpt.pt", *VARIANTS["gaussian independent"])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with threadpool_limits(threads):
                export(path, tmp_path / f"{threads}.onnx")
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_a_bent_quantile_table_breaks_the_u_error(exported, tmp_path):
    def bend(model):
        table = _initializer(model, "leaves")
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * np.float32(1.01), "leaves"))

    _, figures = verify(_rewrite(exported[1], tmp_path / "bent.onnx", bend), exported[0])
    assert not {figure.name: figure for figure in figures}["u_error"].is_kept


def test_a_changed_generator_weight_breaks_the_parity(exported, tmp_path):
    def change(model):
        weights = next(t for t in model.graph.initializer if t.name.startswith("generator_") and len(t.dims) == 4)
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + np.float32(0.01), weights.name))

    _, figures = verify(_rewrite(exported[1], tmp_path / "changed.onnx", change), exported[0])
    assert not {figure.name: figure for figure in figures}["image_parity"].is_kept


def test_a_graph_that_mixes_rows_breaks_the_row_difference(exported, tmp_path):
    def mix(model):
        # Every image gets a trace of its batch's mean.
        for node in model.graph.node:
            node.output[:] = ["image_pure" if name == "image" else name for name in node.output]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), "trace"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
        model.graph.node.append(helper.make_node("ReduceMean", ["image_pure", "batch_axis"], ["mean"]))
        model.graph.node.append(helper.make_node("Mul", ["mean", "trace"], ["share"]))
        model.graph.node.append(helper.make_node("Add", ["image_pure", "share"], ["image"]))

    _, figures = verify(_rewrite(exported[1], tmp_path / "mixed.onnx", mix), exported[0])
    assert not {figure.name: figure for figure in figures}["row_difference"].is_kept


def test_latents_that_are_not_numbers_break_the_certificate_wherever_they_hide(exported, tmp_path):
    def spoil(model):
        table = numpy_helper.to_array(_initializer(model, "leaves")).copy()
        table[-30, 3:] = np.nan  # one leaf of the last coordinate
        _initializer(model, "leaves").CopyFrom(numpy_helper.from_array(table, "leaves"))

    _, figures = verify(_rewrite(exported[1], tmp_path / "nan.onnx", spoil), exported[0])
    assert not {figure.name: figure for figure in figures}["u_error"].is_kept


@pytest.mark.parametrize(
    "change",
    [
        {"config": {}},
        {"family": "vae"},
        {"certificate": []},
        {"certificate": [{"name": "u_error", "value": 0.0, "bound": 1e-30, "meaning": ""}]},
    ],
)
def test_a_manifest_that_lies_is_caught(exported, tmp_path, change):
    model = onnx.load(exported[1])
    manifest = {**json.loads(model.metadata_props[0].value), **change}
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    (tmp_path / "liar.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="says"):
        verify(tmp_path / "liar.onnx", exported[0])


def test_a_loosened_bound_is_caught(exported, tmp_path):
    model = onnx.load(exported[1])
    manifest = json.loads(model.metadata_props[0].value)
    manifest["prior"]["u_error_bound"] = 1e-3
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    (tmp_path / "loose.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="of u_error"):
        verify(tmp_path / "loose.onnx", exported[0])


def test_a_graph_changed_behind_its_manifest_is_refused(exported, tmp_path):
    model = onnx.load(exported[1])
    _initializer(model, "const_0.5_f32").CopyFrom(numpy_helper.from_array(np.float32(0.4), "const_0.5_f32"))
    (tmp_path / "tampered.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="changed after its export"):
        verify(tmp_path / "tampered.onnx", exported[0])


def test_another_checkpoint_is_refused(exported, tmp_path):
    other = write_random_checkpoint(tmp_path / "other.pt", seed=1)
    with pytest.raises(VerificationError, match="was not exported from"):
        verify(exported[1], other)


def test_a_truncated_artifact_is_refused(exported, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(exported[1].read_bytes()[:-1000])
    with pytest.raises(VerificationError, match=r"cut\.onnx"):
        verify(tmp_path / "cut.onnx", exported[0])


def test_a_file_that_is_not_there_says_nothing_of_the_artifact(exported, tmp_path):
    (tmp_path / "rubbish.pt").write_bytes(b"rubbish")
    for artifact, checkpoint in (
        (tmp_path / "none.onnx", exported[0]),
        (tmp_path, exported[0]),
        (exported[1], tmp_path / "none.pt"),
        (exported[1], tmp_path / "rubbish.pt"),
    ):
        with pytest.raises(ArtifactError):
            verify(artifact, checkpoint)


def test_an_export_that_cannot_be_written_leaves_nothing(exported, tmp_path):
    with pytest.raises(RequestError, match="no folder"):
        export(exported[0], tmp_path / "missing" / "model.onnx")
    with pytest.raises(RequestError, match="is a folder"):
        export(exported[0], tmp_path)
    assert list(tmp_path.iterdir()) == []
    weights = exported[0].read_bytes()
    with pytest.raises(RequestError, match="would replace what it is made from"):
        export(exported[0], exported[0])
    assert exported[0].read_bytes() == weights


@pytest.mark.parametrize("batches", [(1, 2), (1, 2, 3), (1, 2, 3, 5)])
def test_few_rows_are_compared_too(exported, batches):
    _, artifact = exported
    with LocalSampler(artifact, workers=1) as sampler:
        moved, threaded = row_figures(sampler, artifact, batches)
    assert (moved.value, threaded.value) == (0.0, 0.0)
