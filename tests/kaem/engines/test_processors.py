"""Threads follow the share of time that a cgroup has, in both versions of the interface."""

import os

import pytest

import kaem
from kaem.engines import processors
from kaem.engines.processors import cgroup_quota, count_processors


def _write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V1 = {"cpu/docker/a/cpu.cfs_quota_us": "150000\n", "cpu/docker/a/cpu.cfs_period_us": "100000\n"}
CASES = {
    "version 2": ("0::/pod/a\n", {"pod/a/cpu.max": "250000 100000\n"}, 2.5),
    "version 2, a limit above": (
        "0::/pod/a\n",
        {"pod/a/cpu.max": "max 100000\n", "pod/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 2, the namespace's root": ("0::/\n", {"cpu.max": "400000 100000\n"}, 4.0),
    "version 2, outside of the namespace": ("0::/../../a\n", {"cpu.max": "400000 100000\n"}, None),
    "version 2, no limit": ("0::/pod/a\n", {"pod/a/cpu.max": "max 100000\n"}, None),
    "version 1": ("5:cpuset:/docker/a\n4:cpu,cpuacct:/docker/a\n", V1, 1.5),
    "version 1, no limit": (
        "4:cpu:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "nonsense": ("hello\n::\n0::/\n", {"cpu.max": "much"}, None),
    "nothing": ("0::/\n", {}, None),
}


@pytest.mark.parametrize(("membership", "files", "expected"), CASES.values(), ids=CASES)
def test_a_cgroups_quota_is_read(tmp_path, membership, files, expected):
    _write(tmp_path / "root", files)
    (tmp_path / "cgroup").write_text(membership)
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "root") == expected


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert cgroup_quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (1.0, 1), (1.5, 2), (4.0, 4), (64.0, 8)])
def test_threads_are_as_many_as_can_compute_side_by_side(monkeypatch, artifact_path, quota, expected):
    monkeypatch.setattr(processors, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert count_processors() == expected
    with kaem.load(artifact_path) as sampler:
        assert sampler.workers == expected
