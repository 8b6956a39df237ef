from __future__ import annotations

import numpy as np
import pytest

import kaem
from kaem.benchmark import Measurement, describe_machine, measure
from kaem.errors import RequestError


def test_every_model_and_batch_size_is_measured_in_the_order_asked(artifact_path, rgb_artifact_path):
    shares = []
    with kaem.load(artifact_path) as grey, kaem.load(rgb_artifact_path) as colour:
        results = measure({"grey": grey, "colour": colour}, [1, 16], seconds=0.02, on_round=shares.append)
    assert [(result.model, result.batch) for result in results] == [
        ("grey", 1),
        ("grey", 16),
        ("colour", 1),
        ("colour", 16),
    ]
    assert all(result.calls >= 3 and min(result.latencies_ms) > 0 for result in results)
    assert shares[-1] == 1.0


def test_figures_follow_from_the_latencies():
    result = Measurement(model="m", batch=10, latencies_ms=tuple(float(ms) for ms in range(1, 101)))
    assert result.percentile_ms(50) == np.median(np.arange(1, 101))
    assert result.images_per_s == pytest.approx(10 * 100 / 5.05)


@pytest.mark.parametrize(("batches", "seconds"), [([], 1.0), ([0], 1.0), ([1, -2], 1.0), ([1], 0.0), ([1], -1.0)])
def test_impossible_settings_are_refused(artifact_path, batches, seconds):
    with kaem.load(artifact_path) as sampler, pytest.raises(RequestError):
        measure({"m": sampler}, batches, seconds=seconds)


def test_the_machine_is_described():
    machine = describe_machine()
    assert {"date", "processor", "cores", "python", "onnxruntime"} <= set(machine)
