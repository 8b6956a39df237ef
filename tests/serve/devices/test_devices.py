"""Names of devices."""

from __future__ import annotations

import os

import pytest

from kaem.errors import ConfigError
from serve.devices.devices import Device, parse_devices, workers_of
from serve.settings import ServeSettings


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"device": "cpu,cuda:0"}, "cpu and cuda do not compute the same bits"),
        ({"device": "cuda,cuda:0"}, "names cuda:0 twice"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"device": ""}, "'' is no device"),
        ({"device": "cuda:0,"}, "'' is no device"),
        ({"device": "cuda:-1"}, "'cuda:-1' is no device"),
        ({"device": "cpu:0"}, "'cpu:0' is no device"),
        ({"device": ",".join(["cpu"] * 65)}, "at most 64"),
        ({"device": "cuda:0", "provider": "tensorrt"}, "device alone says it all"),
    ],
)
def test_devices_that_make_no_sense_are_refused_before_anything_is_started(settings, what):
    with pytest.raises(ConfigError) as caught:
        ServeSettings(**settings)
    assert what in str(caught.value)


def test_names_of_devices():
    assert [str(device) for device in parse_devices("cuda, cuda:12")] == ["cuda:0", "cuda:12"]
    assert [str(device) for device in parse_devices("cpu,cpu")] == ["cpu:0", "cpu:1"]
    assert parse_devices("tensorrt:3") == (Device("tensorrt", 3),)


def test_processes_on_a_cpu_share_its_cores_unless_told_otherwise():
    cores = len(os.sched_getaffinity(0))
    assert workers_of(parse_devices("cpu"), None) == cores
    assert workers_of(parse_devices(",".join(["cpu"] * (cores + 1))), None) == 1
    assert workers_of(parse_devices("cpu,cpu"), 3) == 3
    assert workers_of(parse_devices("cuda:0,cuda:1"), None) is None
