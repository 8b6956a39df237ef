"""What the comparison with peers claims follows from its intervals, and its picture is a file of its own."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import pytest
from peers_goals import answer, goals, goals_table
from peers_plan import PLANS
from peers_timing import RUNS

from kaem.bench.record import Entrant, LocalRow, Quality, Report
from kaem.bench.statistics import median_estimate

MODELS = {  # family, distance, milliseconds at batch 1 and at batch 64
    "kaem": ("kaem", 0.3, 0.20, 3.2),
    "vae": ("vae", 11.0, 0.20, 3.2),
    "kaem-16-8": ("kaem", 1.0, 0.12, 0.8),
    "kaem-8-8": ("kaem", 12.0, 0.10, 0.1),
    "latent-ebm": ("latent_ebm", 20.0, 0.90, 4.7),
    "ddim-50": ("ddim", 8.0, 100.0, None),
}


def report(spread=0.001):
    entrants, rows = [], []
    for name, (family, distance, one, many) in MODELS.items():
        quality = Quality(
            figure="frechet_infinity",
            value=distance,
            standard_error=0.01,
            network="classifier",
            num_generated=9,
            num_real=9,
            weights=name,
            sampling=family,
        )
        entrants.append(
            Entrant(
                source=f"{name}.onnx",
                engine="onnxruntime",
                threads=1,
                settings={},
                cold_s=(),
                peak_bytes=1,
                family=family,
                updates=3000,
                quality=quality,
            )
        )
        for batch, typical in ((1, one), (64, many)):
            if typical is None:
                continue
            # Each model has an order of its own, so that the spread does not cancel between two.
            turn = len(entrants) % 9
            times = [typical * (1 + spread * ((step * (turn + 1)) % 9 - 4)) for step in range(9)]
            rows.append(
                LocalRow(
                    scenario="batch",
                    source=f"{name}.onnx",
                    engine="onnxruntime",
                    threads=1,
                    batch=batch,
                    calls=9,
                    turns=9,
                    is_precise=True,
                    warm_calls=1,
                    is_warm=True,
                    p50_ms=median_estimate(times),
                    p90_ms=None,
                    p99_ms=None,
                    cpu_ms=median_estimate(times),
                    images_per_s=median_estimate([1e3 * batch / time for time in times]),
                    joules_per_image=None,
                    launch_p50_ms=tuple(times),
                    launch_cpu_ms=tuple(times),
                    quantiles_ms=(typical,) * 13,
                )
            )
    return Report(command="", arguments=(), machine={}, entrants=tuple(entrants), local=tuple(rows))


def test_goals_are_met_or_missed_only_where_the_whole_interval_says_so():
    found = {goal.what: goal for goal in goals(report(), report())}
    verdicts = {what: goal.verdict for what, goal in found.items()}
    equal = "The fastest KAEM decoder at the VAE's distance or below, over the VAE"
    assert verdicts == {
        f"{equal}, batch 64": "met",
        f"{equal}, batch 1": "no goal",
        "KAEM over DDIM-50, each at its best batch (64 and 1)": "met",
        "KAEM over the latent EBM, batch 64": "missed",
        "KAEM over the latent EBM, batch 1": "met",
        "KAEM over the VAE with the same decoder, batch 1": "met",
        "KAEM over the VAE with the same decoder, batch 64": "met",
    }
    # kaem-8-8 is faster still, and worse than the VAE: it does not count.
    assert found[f"{equal}, batch 64"].found.value == pytest.approx(4.0, rel=0.01)
    assert found[f"{equal}, batch 64"].note.startswith("kaem-16-8: 1.00")
    assert found["KAEM over DDIM-50, each at its best batch (64 and 1)"].found.value == pytest.approx(2000, rel=0.01)
    noisy = {goal.what: goal.verdict for goal in goals(report(spread=0.1), report(spread=0.1))}
    assert noisy["KAEM over the VAE with the same decoder, batch 64"] == "not decided"


def test_a_comparison_without_its_models_says_so():
    bare = dataclasses.replace(report(), entrants=(), local=())
    found = goals(bare, bare)
    assert {goal.verdict for goal in found} == {"not measured"}
    assert answer(found) == "No KAEM decoder reached the VAE's distance."
    assert all(row[2] == "-" for row in goals_table(found).rows)


def test_the_picture_is_a_whole_file_that_knows_both_modes():
    pytest.importorskip("matplotlib")
    from peers_report import standalone

    from kaem.bench.report.plots import frontier_svg

    text = standalone(frontier_svg(report()))
    root = ElementTree.fromstring(text)  # noqa: S314  (our own)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"kaem-16-8", "ddim-50", "Frechet distance"} <= words


def test_every_run_measures_models_of_its_plan():
    for name, plan in PLANS.items():
        known = [sampler.name for peer in plan.peers for sampler in peer.samplers]
        assert len(set(known)) == len(known)
        assert {model for run in RUNS[name] for model in run.models} <= set(known)
