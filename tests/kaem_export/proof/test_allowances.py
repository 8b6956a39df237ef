"""One allowance for what float32 makes of a quantile, and whose tolerance counts."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import scipy.stats
import torch
from heads import tabulate
from models import VARIANTS, random_model, write_random_checkpoint, write_untrained
from onnx import helper, numpy_helper

from kaem.artifact import MANIFEST_KEY, Figure, Manifest, seal
from kaem.errors import VerificationError
from kaem_export.certificate import verify
from kaem_export.compile import export, require_kept
from kaem_export.graph import graph_fingerprint
from kaem_export.proof.oracle import LatentOracle
from kaem_export.proof.rows import probe_uniforms
from kaem_export.tables.fit_tables import SCORE_BOUND, TAILS, run_lookup

_CHEBYSHEV = (*VARIANTS["lognormal mixture"], "prior.basis=chebyshev", "prior.grid_size=8")


def _saved(model, manifest, target):
    manifest = {**manifest, "graph_fingerprint": graph_fingerprint(model)}
    helper.set_model_props(model, {MANIFEST_KEY: seal(manifest)})
    target.write_bytes(model.SerializeToString())
    return target


def _manifest(model):
    return json.loads(model.metadata_props[0].value)


def _scaled(artifact, target, factor, **changes):
    """Copy an artifact with latents times `factor`, sealed anew, with other fields in its prior's section."""
    model = onnx.load(artifact)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "leaves")
    leaves = numpy_helper.to_array(tensor).copy()
    leaves[:, 3:] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(leaves, "leaves"))
    manifest = _manifest(model)
    manifest["prior"] |= changes
    for figure in manifest["certificate"]:
        if figure["name"] == "u_error":
            figure["bound"] = manifest["prior"]["u_error_bound"]
    return _saved(model, manifest, target)


# Densities that end steeply: the rounding of v - v0 is coarse beside a u near 0.
@pytest.mark.parametrize("seed", range(5))
def test_tables_keep_both_tails_where_a_density_ends_steeply(seed):
    config, model = random_model(*_CHEBYSHEV, seed=seed)
    tables, oracle = tabulate(model.prior)[1], LatentOracle(model.state_dict(), config.prior)
    v = probe_uniforms(3, 20_000)
    v = np.where(v < 0.5, v, v - np.float32(1)).astype(np.float32)
    z = run_lookup(tables, v)
    for q in range(3):
        exact, own = z[:, q].astype(np.float64), v[:, q].astype(np.float64)
        error = np.abs(np.where(own < 0, oracle.survival(q, exact) + own, oracle.cdf(q, exact) - own))
        floats = SCORE_BOUND * oracle.density(q, exact) * np.spacing(np.abs(z[:, q])).astype(np.float64)
        for _, least, bound in TAILS:
            is_tail = np.abs(own) >= least
            assert (error <= floats + bound * np.abs(own))[is_tail].all()


def test_a_chebyshev_mixture_with_a_lognormal_reference_can_be_exported(tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "ckpt.pt", *_CHEBYSHEV, seed=1)
    assert all(figure.is_kept for figure in export(checkpoint, tmp_path / "model.onnx").certificate)


@pytest.mark.parametrize(("std", "reach"), [(0.136, 6.5), (0.4, 3.0), (0.2, 7.9)])
def test_narrow_gaussian_experts_far_from_zero_can_be_exported(tmp_path, std, reach):
    config, model = random_model("prior.variant=experts", "prior.low=-8", "prior.high=8", amplitude=0.0)
    with torch.no_grad():
        model.prior.log_stds.fill_(float(np.log(std)))
        model.prior.means.copy_(torch.linspace(-reach, reach, 12).reshape(3, 4))
    checkpoint = write_untrained(tmp_path / "ckpt.pt", config, model)
    manifest = export(checkpoint, tmp_path / "model.onnx")
    u_error = manifest.certificate[0]
    assert u_error.is_kept
    assert u_error.bound < 1e-3


def test_a_broken_figure_is_told_from_its_bound_and_comes_with_a_hint():
    manifest = Manifest(
        family="kaem",
        name="x",
        noise_dim=1,
        latent_dim=1,
        image_shape=(1, 1, 1),
        certificate=(Figure(name="far_tail_error", value=0.0100004, bound=0.01),),
    )
    with pytest.raises(VerificationError, match=r"far_tail_error is 0\.0100004, bound 0\.01 ") as raised:
        require_kept(manifest)
    assert "prior.low" in raised.value.hint
    assert Figure(name="x", value=0.5, bound=1.0).words == ("0.5", "1")


def test_tails_of_a_sum_are_those_of_irwin_and_hall():
    is_upper = True
    config, model = random_model(*VARIANTS["uniform sum of three"], "prior.num_components=2", amplitude=0.0)
    state = {
        name: np.zeros_like(value) if name.endswith("base_weight") else value.detach().numpy()
        for name, value in model.state_dict().items()
    }
    x = np.geomspace(2e-4, 0.4, 24)  # one tail takes seconds: components that jump have long Fourier series
    found = LatentOracle(state, config.prior).tail_of_sum(0, 2.0 - x if is_upper else x, is_upper=is_upper)
    assert np.allclose(found, x**2 / 2, rtol=2e-4)


def test_tails_of_a_sum_of_gaussians_are_gaussian():
    config, model = random_model("prior.variant=independent", "prior.num_components=4", amplitude=0.0)
    state = {
        name: np.zeros_like(value) if name.endswith("base_weight") else value.detach().numpy()
        for name, value in model.state_dict().items()
    }
    z = np.linspace(3.0, 11.0, 17)
    found = LatentOracle(state, config.prior).tail_of_sum(0, z, is_upper=True)
    assert np.allclose(found, scipy.stats.norm(scale=2.0).sf(z), rtol=1e-4)


@pytest.fixture(scope="module", params=["collapsed", "shared", "kept mixture"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("allowances")
    variant = {"collapsed": (), "shared": VARIANTS["shared uniforms"], "kept mixture": ()}[request.param]
    checkpoint = write_random_checkpoint(folder / "ckpt.pt", *variant)
    export(checkpoint, folder / "model.onnx", keep_components=request.param == "kept mixture")
    return checkpoint, folder / "model.onnx"


def test_tails_are_measured_whether_components_are_collapsed_shared_or_kept(exported):
    names = {figure.name for figure in verify(exported[1], exported[0])[1]}
    assert {"u_error", "score", "score_999", "tail_error", "far_tail_error", "cdf_agreement"} <= names


def test_a_wrong_law_is_not_excused_by_the_tolerance_that_it_states_itself(exported, tmp_path):
    wrong = _scaled(exported[1], tmp_path / "wrong.onnx", 1.008, tolerance=0.0099, u_error_bound=0.0148)
    figures = {figure.name: figure for figure in verify(wrong, exported[0])[1]}
    assert not figures["u_error"].is_kept
    assert not figures["score"].is_kept


def test_a_loose_artifact_is_judged_by_what_the_caller_allows(exported, tmp_path):
    loose = tmp_path / "loose.onnx"
    manifest = export(exported[0], loose, tolerance=1e-4)
    assert not all(figure.is_kept for figure in verify(loose, exported[0])[1])
    assert not all(figure.is_kept for figure in verify(loose, exported[0], tolerance=1e-6)[1])
    for allowed in (1e-4, 1e-2):
        assert verify(loose, exported[0], tolerance=allowed)[1] == manifest.certificate


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["prior"].update(table_leaves=7), "says table_leaves is 7"),
        (lambda m: m["prior"].update(score=3.0), "says prior.score is 3.0"),
        (lambda m: m["compilation"].update(passes=["magic"]), "passes that kaem does not have: magic"),
        (lambda m: m["compilation"].update(rows_per_call=5), "rows_per_call is 5"),
        (lambda m: m["prior"].update(u_error_bound=2e-3), "of u_error"),
    ],
)
def test_a_descriptive_field_that_is_not_so_is_named(exported, tmp_path, change, said):
    model = onnx.load(exported[1])
    manifest = _manifest(model)
    change(manifest)
    with pytest.raises(VerificationError, match=said):
        verify(_saved(model, manifest, tmp_path / "liar.onnx"), exported[0])
