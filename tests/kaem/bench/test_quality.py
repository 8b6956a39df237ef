"""A figure of quality stands beside the model that it was measured on, and beside no other."""

from __future__ import annotations

import dataclasses
import json
from zipfile import ZipFile

import pytest
from artifacts import write_small_artifact

import kaem
from kaem.artifact import Manifest
from kaem.bench.quality import attach, read_evaluation, subject_of
from kaem.bench.record import Entrant, LocalRow, Quality, Report
from kaem.bench.report.frontier import frontier_points
from kaem.bench.statistics import Estimate
from kaem.errors import ArtifactError, RequestError

MANIFEST = Manifest(
    family="ddim",
    name="small",
    noise_dim=5,
    latent_dim=5,
    image_shape=(1, 8, 8),
    prior={"steps": 10, "eta": 0.0},
    checkpoint_fingerprint="sha256:1",
    updates=7,
)
EVALUATION = {
    "model": "model.onnx",
    "model_fingerprint": "sha256:file",
    "weights_fingerprint": "sha256:1",
    "sampling": "ddim, 10 steps, eta 0",
    "updates": 7,
    "network": {"name": "classifier", "fingerprint": "sha256:n"},
    "data_fingerprint": "sha256:d",
    "real": "test",
    "num_real": 100,
    "num_generated": 60,
    "figures": {"frechet_infinity": {"value": 2.5, "standard_error": 0.1}},
}


def written(path, **changes):
    path.write_text(json.dumps({**EVALUATION, **changes}))
    return read_evaluation(path)


@pytest.fixture(scope="module")
def ddim(tmp_path_factory):
    return str(write_small_artifact(tmp_path_factory.mktemp("ddim") / "ddim.onnx", manifest=MANIFEST))


def test_a_figure_goes_to_the_model_of_its_weights_and_sampler(ddim, artifact_path, tmp_path):
    subjects = [subject_of(str(artifact_path)), subject_of(ddim)]
    assert (subjects[1].family, subjects[1].updates) == ("ddim", 7)
    found = attach([written(tmp_path / "e.json")], subjects)
    assert list(found) == [ddim]
    assert (found[ddim].value, found[ddim].standard_error, found[ddim].num_generated) == (2.5, 0.1, 60)


def test_a_checkpoint_is_known_by_its_file(tmp_path):
    with ZipFile(tmp_path / "ckpt.pt", "w") as archive:  # as torch.save makes it
        archive.writestr("archive/data.pkl", b"weights")
    subject = subject_of(str(tmp_path / "ckpt.pt"))
    one = written(tmp_path / "e.json", weights_fingerprint="sha256:x", model_fingerprint=subject.keys[0])
    assert list(attach([one], [subject])) == [subject.source]


@pytest.mark.parametrize("changes", [{"weights_fingerprint": "sha256:2"}, {"sampling": "ddim, 50 steps, eta 0"}])
def test_a_figure_of_other_weights_or_another_sampler_is_refused(ddim, tmp_path, changes):
    with pytest.raises(RequestError, match="none of the models measured"):
        attach([written(tmp_path / "e.json", **changes)], [subject_of(ddim)])


def test_figures_of_untrained_weights_are_refused(tmp_path):
    with pytest.raises(RequestError, match="untrained"):
        written(tmp_path / "e.json", updates=0)


@pytest.mark.parametrize(
    "changes", [{"num_real": 50}, {"data_fingerprint": "x"}, {"network": {"name": "n", "fingerprint": "o"}}]
)
def test_figures_that_do_not_compare_are_refused(ddim, artifact_path, tmp_path, changes):
    with kaem.load(artifact_path, workers=1) as sampler:
        manifest = sampler.manifest
    other = {"weights_fingerprint": manifest.checkpoint_fingerprint, "sampling": manifest.sampling, **changes}
    both = [written(tmp_path / "a.json"), written(tmp_path / "b.json", **other)]
    with pytest.raises(RequestError, match="do not compare"):
        attach(both, [subject_of(ddim), subject_of(str(artifact_path))])


def test_two_figures_of_one_model_are_refused(ddim, tmp_path):
    both = [written(tmp_path / name) for name in ("a.json", "b.json")]
    with pytest.raises(RequestError, match="two evaluations"):
        attach(both, [subject_of(ddim)])


def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path):
    with pytest.raises(ArtifactError, match="no evaluation at"):
        read_evaluation(tmp_path / "none.json")
    (tmp_path / "old.json").write_text(json.dumps({k: v for k, v in EVALUATION.items() if k != "sampling"}))
    (tmp_path / "text.json").write_text("no json")
    for name in ("old.json", "text.json"):
        with pytest.raises(ArtifactError, match=name):
            read_evaluation(tmp_path / name)


def _entrant(source, distance):
    quality = Quality(
        figure="frechet_infinity",
        value=distance,
        standard_error=None,
        network="classifier",
        num_generated=9,
        num_real=9,
        weights="w",
        sampling="kaem",
    )
    return Entrant(
        source=source, engine="onnxruntime", threads=2, settings={}, cold_s=(), peak_bytes=1, quality=quality
    )


def _row(source, batch, speed):
    return LocalRow(
        scenario="batch",
        source=source,
        engine="onnxruntime",
        threads=2,
        batch=batch,
        calls=1,
        turns=1,
        is_precise=True,
        warm_calls=1,
        is_warm=True,
        p50_ms=Estimate(1.0),
        p90_ms=None,
        p99_ms=None,
        cpu_ms=Estimate(1.0),
        images_per_s=Estimate(speed),
        joules_per_image=None,
        launch_p50_ms=(1.0,),
        launch_cpu_ms=(1.0,),
        quantiles_ms=(),
    )


def test_the_frontier_holds_what_nothing_is_better_and_faster_than():
    entrants = [_entrant("good", 1.0), _entrant("fast", 3.0), _entrant("worse", 3.5), _entrant("tie", 3.0)]
    speeds = {"good": 10.0, "fast": 40.0, "worse": 30.0, "tie": 20.0}
    rows = [_row(name, batch, speed * batch) for name, speed in speeds.items() for batch in (1, 2)]
    bare = dataclasses.replace(_entrant("unknown", 0.0), quality=None)
    report = Report(
        command="", arguments=(), machine={}, entrants=(*entrants, bare), local=(*rows, _row("unknown", 1, 1e9))
    )
    points = {point.entrant.source: point for point in frontier_points(report)}
    assert {name for name, point in points.items() if point.is_best} == {"good", "fast"}
    assert points["good"].images_per_s == 10.0  # 20 images/s at batch 2, on two threads
    assert "unknown" not in points
