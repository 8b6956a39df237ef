"""Promises of the comparison of local contestants, each a real process on a real model."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from artifacts import write_changed, write_small_artifact

import kaem
from kaem.bench.scenarios.engines import EngineJob
from kaem.bench.scenarios.local import Effort, _differences, measure
from kaem.bench.scenarios.process import Contestant, Process
from kaem.errors import ArtifactError, BackendError, ConfigError, RequestError, VerificationError


def contestant(path, engine="onnxruntime", threads=1, **more):
    return Contestant(job=EngineJob(engine=engine, source=str(path), threads=threads, **more))


needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def measured(artifact_path):
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    contestants = [contestant(artifact_path), contestant(artifact_path, "openvino")]
    shares = []
    effort = Effort(seconds=0.1, launches=1)
    batches = {"single": (1,), "batch": (3,)}
    return measure(contestants, batches, effort, on_progress=lambda share, text: shares.append(share)), shares


def test_every_contestant_scenario_and_batch_gets_a_row_in_order(measured):
    (_, rows), _ = measured
    found = [(row.engine, row.scenario, row.batch) for row in rows]
    expected = [("single", 1), ("batch", 3)]
    assert found == [(engine, *rest) for engine in ("onnxruntime", "openvino") for rest in expected]
    for row in rows:
        assert len(row.launch_p50_ms) == 1
        assert row.p50_ms.value == np.median(row.launch_p50_ms)
        assert row.calls >= row.turns >= 1
        assert row.quantiles_ms == tuple(sorted(row.quantiles_ms))
        assert row.cpu_ms.value > 0


def test_a_percentile_without_calls_enough_is_not_given(measured):
    (_, rows), _ = measured
    assert all((row.p99_ms is None) == (row.calls < 500) for row in rows)
    assert all(row.p50_ms.low is None for row in rows)  # one launch supports no interval


def test_every_launch_is_a_start_from_nothing_that_adds_up(measured):
    (entrants, _), _ = measured
    for entrant in entrants:
        assert len(entrant.cold_s) == 1
        for times in entrant.cold_s:
            phases = sum(value for name, value in times.items() if name != "total")
            assert times["total"] == pytest.approx(phases, rel=1e-6)
        assert entrant.peak_bytes > 10 << 20


def test_engines_say_what_really_ran_and_how_far_their_images_differ(measured):
    (entrants, _), _ = measured
    own, other = entrants
    assert own.settings["provider"] == "CPUExecutionProvider"
    assert own.difference is None
    assert other.settings["precision"] == "f32"
    assert other.difference < 1e-5


def test_progress_rises_to_one(measured):
    _, shares = measured
    assert shares[-1] == 1.0
    assert all(0 <= share <= 1 for share in shares)


@needs_openvino
def test_importing_openvino_reports_nothing_to_anybody():
    code = (
        "import sys; from kaem.bench.scenarios.engines import require; require('openvino');"
        "print([n for n in sys.modules if n.startswith('openvino_telemetry.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_openvino
def test_openvino_makes_the_images_of_the_sampler_for_any_number_of_rows(artifact_path):
    with Process(contestant(artifact_path, "openvino")) as process, kaem.load(artifact_path, workers=1) as sampler:
        for num in (1, 300):  # one call of the engine, and two
            np.testing.assert_allclose(process.images(num, 7), sampler.sample(num, 7), atol=1e-5)


@needs_openvino
def test_openvino_runs_a_graph_of_a_fixed_batch_size_for_any_number_of_rows(artifact_path, tmp_path):
    model = onnx.load(artifact_path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    fixed = tmp_path / "model.onnx"
    write_changed(fixed, model)
    with Process(contestant(fixed, "openvino")) as process, kaem.load(artifact_path, workers=1) as sampler:
        for num in (1, 8, 19):
            np.testing.assert_allclose(process.images(num, 7), sampler.sample(num, 7), atol=1e-5)


def test_engines_that_make_different_images_are_not_compared(artifact_path, tmp_path):
    swapped = tmp_path / "model.onnx"
    swapped.write_bytes(artifact_path.read_bytes())
    with Process(contestant(swapped)) as first:
        write_small_artifact(swapped, seed=9)
        with Process(contestant(swapped)) as second, pytest.raises(VerificationError, match="differ by"):
            _differences([first, second], seed=0)


@pytest.mark.parametrize(
    ("job", "error", "said"),
    [
        ({"engine": "onnxruntime", "source": "none.onnx"}, ArtifactError, "no model file at none.onnx"),
        ({"engine": "tensorrt", "source": "none.onnx"}, BackendError, "engine tensorrt needs tensorrt"),
        ({"engine": "tensorflow", "source": "none.onnx"}, ConfigError, "unknown engine 'tensorflow'"),
    ],
    ids=lambda value: value.get("engine") if isinstance(value, dict) else "",
)
def test_what_is_wrong_in_a_contestants_process_is_raised_here(job, error, said):
    if job["engine"] == "tensorrt":
        try:
            import tensorrt  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("TensorRT is installed")
    with pytest.raises(error, match=said):
        Process(Contestant(job=EngineJob(threads=1, **job)))


def test_a_process_that_is_killed_is_named(artifact_path):
    with Process(contestant(artifact_path)) as process:
        os.kill(process._process.pid, 9)
        with pytest.raises(BackendError, match="was ended by signal 9"):
            process.ask("peak")


@pytest.mark.parametrize("batches", [{}, {"batch": ()}, {"batch": (4, 0)}])
def test_batch_sizes_that_make_no_sense_are_refused(artifact_path, batches):
    with pytest.raises(RequestError, match="batch sizes"):
        measure([contestant(artifact_path)], batches, Effort())


@pytest.mark.parametrize("effort", [{"seconds": 0}, {"seconds": float("nan")}, {"launches": 0}, {"precision": 0}])
def test_efforts_that_make_no_sense_are_refused(effort):
    with pytest.raises(RequestError):
        Effort(**effort)


def test_sizes_whose_calls_would_take_too_long_are_left_out_but_never_the_smallest(artifact_path):
    effort = Effort(seconds=0.02, launches=1, longest_s=1e-9)
    _, rows = measure([contestant(artifact_path)], {"batch": (8, 2)}, effort)
    assert [row.batch for row in rows] == [2]
