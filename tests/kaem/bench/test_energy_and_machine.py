"""Promises of what is read from the machine, on made-up counters and on this one."""

from __future__ import annotations

import os

from kaem.bench.energy import open_counters
from kaem.bench.environment import describe_machine, processor_ticks, stolen_share


def write_domain(folder, name, energy, limit=1000000):
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")


def test_energy_is_counted_by_package_and_across_a_wrap(tmp_path):
    write_domain(tmp_path / "intel-rapl:0", "package-0", 900000)
    write_domain(tmp_path / "intel-rapl:0:0", "core", 5)
    counter, *others = [one for one in open_counters(tmp_path) if not one.name.startswith("gpu")]
    assert counter.name == "package-0"
    assert not others
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("950000")
    assert counter.joules() == 0.05
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("150000")
    assert counter.joules() == 0.2


def test_a_machine_without_counters_has_none(tmp_path):
    assert [one for one in open_counters(tmp_path) if not one.name.startswith("gpu")] == []


def test_a_machine_is_described_by_what_decides_a_figure():
    machine = describe_machine()
    assert {"date", "processor", "cores", "governor", "load before", "memory", "python", "onnxruntime"} <= set(machine)
    assert machine["cores"].startswith(str(len(os.sched_getaffinity(0))))
    assert all(machine.values())


def test_stolen_time_is_a_share_of_all_time():
    assert stolen_share((10, 1000), (30, 1200)) == 0.1
    before = processor_ticks()
    assert 0 <= stolen_share(before, processor_ticks()) <= 1
