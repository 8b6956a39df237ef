from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model, write_random_checkpoint
from onnx import helper, numpy_helper

from kaem import noise
from kaem.artifact import MANIFEST_KEY, read_manifest, seal
from kaem.errors import ArtifactError, VerificationError
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.graph import graph_fingerprint
from kaem_export.proof import oracle as oracle_module
from kaem_export.proof.oracle import LatentOracle
from kaem_export.proof.quadrature import Function, oracle_agreement
from kaem_export.proof.rows import noise_mismatches
from kaem_train.checkpoint import load_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = write_random_checkpoint(folder / "ckpt.pt")
    export(checkpoint, folder / "model.onnx")
    return checkpoint, folder / "model.onnx"


def _saved(model, manifest, target):
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    target.write_bytes(model.SerializeToString())
    return target


def _manifest(model):
    return json.loads(model.metadata_props[0].value)


def _with_leaves(artifact, target, change):
    """Copy an artifact with its leaves changed and its manifest's digest made to fit again."""
    model = onnx.load(artifact)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "leaves")
    leaves = numpy_helper.to_array(tensor).copy()
    change(leaves)
    tensor.CopyFrom(numpy_helper.from_array(leaves, "leaves"))
    return _saved(model, {**_manifest(model), "graph_fingerprint": graph_fingerprint(model)}, target)


def _with_manifest(artifact, target, change):
    model = onnx.load(artifact)
    manifest = _manifest(model)
    change(manifest)
    return _saved(model, manifest, target)


def _broken(artifact, checkpoint):
    return {figure.name for figure in verify(artifact, checkpoint)[1] if not figure.is_kept}


def _normal_oracle():
    """One whose every function is N(0, 1) on [-6, 6]: no energy at all."""
    config, model = random_model("prior.variant=independent", "prior.num_components=1", amplitude=0.0)
    return config, {name: np.zeros_like(v) if name.endswith("base_weight") else v for name, v in _arrays(model).items()}


def _arrays(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def test_the_oracle_is_right_to_eleven_digits_in_both_tails_of_a_normal_law():
    config, state = _normal_oracle()
    oracle, law = LatentOracle(state, config.prior), scipy.stats.truncnorm(-6, 6)
    z = np.linspace(-5.99, 5.99, 1001)
    for found, wanted in (
        (oracle.cdf(0, z), law.cdf(z)),
        (oracle.survival(0, z), law.sf(z)),
        (oracle.density(0, z), law.pdf(z)),
    ):
        assert np.allclose(found, wanted, rtol=1e-11, atol=1e-19)


def test_adaptive_quadrature_agrees_with_the_normal_law():
    config, state = _normal_oracle()
    z = np.array([-5.0, -1.0, 0.0, 0.3, 4.0])
    cdf, density = Function(1, config.prior).at(z, state)
    law = scipy.stats.truncnorm(-6, 6)
    assert np.allclose(cdf, law.cdf(z), rtol=1e-9)
    assert np.allclose(density, law.pdf(z), rtol=1e-12)


def test_the_density_of_a_sum_of_three_normal_laws_is_normal():
    config, model = random_model("prior.variant=independent", "prior.num_components=3", amplitude=0.0)
    state = {name: np.zeros_like(v) if name.endswith("base_weight") else v for name, v in _arrays(model).items()}
    z = np.linspace(-5.0, 5.0, 41)
    density = LatentOracle(state, config.prior).density(0, z)
    assert np.allclose(density, scipy.stats.norm(scale=np.sqrt(3)).pdf(z), atol=1e-5)


def test_a_coarse_oracle_does_not_agree_with_adaptive_quadrature(monkeypatch):
    config, model = random_model()
    assert oracle_agreement(_arrays(model), config.prior, "sha256:" + "0" * 64).value < 1e-9
    monkeypatch.setattr(oracle_module, "_DEGREE", 3)
    monkeypatch.setattr(oracle_module, "_PIECES", 4)
    assert not oracle_agreement(_arrays(model), config.prior, "sha256:" + "0" * 64).is_kept


def test_nine_rounds_of_philox_are_not_the_noise(monkeypatch):
    assert noise_mismatches().is_kept
    monkeypatch.setattr(noise, "_ROUNDS", 9)
    monkeypatch.setattr(noise, "_keys_of_seed", noise._keys_of_seed.__wrapped__)  # the keys it keeps are of ten
    assert noise_mismatches().value == 16.0


def test_a_leaf_off_by_two_scores_is_seen_where_the_u_error_allows_it(exported, tmp_path):
    config, model = load_model(exported[0])
    oracle = LatentOracle(model.state_dict(), config.prior)

    def shift(leaves):
        own = np.flatnonzero(leaves[:, 1:].any(axis=1))
        own = own[: np.argmax(np.diff(leaves[own, 0]) < 0) + 1]  # those of the first latent
        start = leaves[own, 0].astype(np.float64)
        z = oracle.quantile(0, np.mod(start, 1.0))
        step = oracle.density(0, z) * np.spacing(np.abs(z).astype(np.float32))
        step[(np.abs(start) < 0.05) | (np.abs(start) > 0.45)] = 1.0
        best = np.argmin(step)
        leaves[own[best], 3] += 1.25e-7 / oracle.density(0, z)[best]

    assert _broken(_with_leaves(exported[1], tmp_path / "off.onnx", shift), exported[0]) in (
        {"score"},
        {"score", "score_999"},
        {"score", "score_999", "cdf_agreement"},
    )


@pytest.mark.parametrize(
    ("low", "high", "shift", "figure"), [(1e-6, 1e-5, 5e-4, "tail_error"), (1e-9, 1e-7, 1e-2, "far_tail_error")]
)
def test_tails_off_by_less_than_the_u_error_sees_are_caught(exported, tmp_path, low, high, shift, figure):
    def move(leaves):
        leaves[(leaves[:, 0] > -high) & (leaves[:, 0] < -low), 3] += np.float32(shift)

    broken = _broken(_with_leaves(exported[1], tmp_path / "moved.onnx", move), exported[0])
    assert figure in broken
    assert "u_error" not in broken


def test_bent_tables_disagree_with_adaptive_quadrature(exported, tmp_path):
    def bend(leaves):
        leaves *= np.float32(1.001)

    assert {"u_error", "score", "cdf_agreement"} < _broken(
        _with_leaves(exported[1], tmp_path / "bent.onnx", bend), exported[0]
    )


@pytest.mark.parametrize("tensor", ["leaves", "second", "first", "generator"])
def test_one_bit_flipped_in_the_file_is_named(exported, tmp_path, tensor):
    content = bytearray(exported[1].read_bytes())
    model = onnx.load(exported[1])
    raw = next(t.raw_data for t in model.graph.initializer if t.name.startswith(tensor) and len(t.raw_data) > 64)
    content[content.index(raw) + len(raw) // 2 // 4 * 4] ^= 1  # the least bit of a float32
    (tmp_path / "flipped.onnx").write_bytes(content)
    with pytest.raises(VerificationError, match="changed after its export"):
        verify(tmp_path / "flipped.onnx", exported[0])


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (b'"format_version":3', b'"format_version":?'),
        (b'"format_version":3', b'"format_version":1'),
        (b'"noise_dim":3', b'"noise_dim":4'),
        (b'"graph_fingerprint":"sha256:', b'"graph_fingerprint":"sha255:'),
        (b'"manifest_fingerprint":"sha256:', b'"manifest_fingerprint":"sha255:'),
        (b'"manifest_fingerprint":"sha256:', b'"manifest_fingerprjnt":"sha256:'),
        (b'"tools":{"kaem":"0', b'"tools":{"kaem":"1'),
        (b'"densities":{"density"', b'"densities":{"densitz"'),
        (b'"meaning":"max', b'"meaning":"mix'),
    ],
)
def test_a_byte_changed_in_the_manifest_is_named(exported, tmp_path, text, other):
    content = exported[1].read_bytes()
    assert text in content
    (tmp_path / "changed.onnx").write_bytes(content.replace(text, other, 1))
    with pytest.raises(VerificationError, match=r"the manifest of .*changed\.onnx is damaged"):
        verify(tmp_path / "changed.onnx", exported[0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_byte_of_the_manifest_can_be_changed_unnoticed(exported, data):
    text = onnx.load(exported[1]).metadata_props[0].value.encode()
    place, mask = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(1, 127))
    changed = bytearray(text)
    changed[place] ^= mask
    with pytest.raises(ArtifactError):
        read_manifest({MANIFEST_KEY: changed.decode(errors="replace")}, source="x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(noise_dim=4), "its manifest says"),
        (lambda m: m.update(latent_dim=2), "its manifest says"),
        (lambda m: m.update(image_type="float16"), "image_type is"),
        (lambda m: m.update(graph_fingerprint="sha256:0"), "changed after its export"),
        (lambda m: m.update(checkpoint_fingerprint="sha256:0"), "was not exported from"),
    ],
)
def test_a_field_that_fits_no_longer_is_named(exported, tmp_path, change, said):
    with pytest.raises(VerificationError, match=said):
        verify(_with_manifest(exported[1], tmp_path / "changed.onnx", change), exported[0])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_an_artifact_cut_anywhere_is_refused(exported, tmp_path, share):
    content = exported[1].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(VerificationError, match=r"cut\.onnx"):
        verify(tmp_path / "cut.onnx", exported[0])


def _figure(manifest, name):
    return next(figure for figure in manifest["certificate"] if figure["name"] == name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: _figure(m, "score").update(value=0.01), "of score: 1.00e-02"),
        (lambda m: _figure(m, "tail_error").update(bound=0.5), "of tail_error: "),
        (lambda m: m["certificate"].remove(_figure(m, "cdf_agreement")), "of cdf_agreement: nothing"),
        (lambda m: m["certificate"].append({"name": "beauty", "value": 0, "bound": 1, "meaning": ""}), "of beauty"),
        (lambda m: m.update(family="vae"), "says family is vae"),
        (lambda m: m.update(name="masterpiece"), "says name is masterpiece"),
        (lambda m: m["prior"].update(num_components=5), "says prior is"),
        (lambda m: m["head"].update(kind="components"), "says noise_dim is 3, the checkpoint 6"),
        (
            lambda m: m["head"].update(kind="experts"),
            "says the kind of its head is 'experts', the checkpoint 'collapsed'",
        ),
        (lambda m: m["head"]["tensors"].pop("quantiles"), "says quantiles are None"),
        (lambda m: m.update(head={}), "made by an older kaem"),
        (lambda m: m["head"].update(tensors=[1]), "names no tensors of its head"),
        (lambda m: m["prior"].update(tolerance=1e-3), "no usable tolerance"),
        (lambda m: m["prior"].pop("tolerance"), "no usable tolerance"),
        (lambda m: m["compilation"].update(precision="float16"), "says its generator computes in float16"),
        (lambda m: m["compilation"].update(large_batch_rows=64), "do not agree on a large-batch form"),
    ],
)
def test_a_lie_in_the_manifest_is_named(exported, tmp_path, change, said):
    liar = _with_manifest(exported[1], tmp_path / "liar.onnx", change)
    with pytest.raises(VerificationError, match=said):
        verify(liar, exported[0])
