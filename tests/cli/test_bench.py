"""`kaem bench` as a user runs it: figures, files, comparisons, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import server_process

from kaem.bench.record import Report, write_report

KAEM = str(Path(sys.executable).with_name("kaem"))
QUICK = ("--launches", "1", "--seconds", "0.05", "--threads", "1")


def bench(*words, cwd=None):
    command = [KAEM, "bench", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def server(artifact_path):
    with server_process(artifact_path, "--port", "0") as process:
        yield process.target


@pytest.fixture(scope="module")
def reports(artifact_path, server, tmp_path_factory):
    """A model and the server of that model, written in every form."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("reports")
    files = ("--json", folder / "r.json", "--markdown", folder / "r.md", "--html", folder / "r.html")
    done = bench(artifact_path, server, "--scenario", "single,batch", "--batch", "2,5", *QUICK, *files)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_model_and_a_server_are_shown_side_by_side(reports):
    _, said = reports
    for word in (
        "One image at a time",
        "Batches",
        "p50 ms",
        "cpu ms",
        "server, one caller",
        "too few launches",
        "total s",
        "): provider CPUExecutionProvider, ",
        "Command: kaem bench ",
    ):
        assert word in said


def test_the_json_holds_every_row_the_machine_and_the_exact_command(reports, artifact_path, server):
    content = json.loads((reports[0] / "r.json").read_text())
    found = [(row["source"], row["scenario"], row["batch"]) for row in content["local"]]
    rows = [("single", 1), ("batch", 2), ("batch", 5)]
    assert found == [(source, *row) for source in (str(artifact_path), server) for row in rows]
    assert {"processor", "governor", "load before", "load after", "onnxruntime"} <= set(content["machine"])
    assert content["entrants"][0]["settings"]["provider"] == "CPUExecutionProvider"
    assert content["command"] == "kaem bench " + " ".join(content["arguments"])
    assert content["arguments"][4:6] == ["--batch", "2,5"] or "--batch" in content["arguments"]


def test_markdown_and_html_are_written(reports):
    folder, _ = reports
    assert "| model | engine | batch |" in (folder / "r.md").read_text()
    assert "<svg" in (folder / "r.html").read_text()


def test_an_earlier_report_is_measured_again_and_compared(reports, tmp_path):
    again = bench("--compare", reports[0] / "r.json", "--json", tmp_path / "new.json")
    assert again.returncode == 0, again.stderr
    assert "Then and now" in again.stdout
    old, new = (json.loads(path.read_text()) for path in (reports[0] / "r.json", tmp_path / "new.json"))
    assert old["command"] == new["command"]


def test_a_supported_regression_ends_with_1(reports, tmp_path):
    content = json.loads((reports[0] / "r.json").read_text())
    for row in content["local"]:
        row["launch_p50_ms"] = [1.0] * 9
    (tmp_path / "old.json").write_text(json.dumps(content))
    for row in content["local"]:
        row["launch_p50_ms"] = [1.2] * 9
    (tmp_path / "new.json").write_text(json.dumps(content))
    worse = bench("--compare", "old.json", "new.json", cwd=tmp_path)
    assert worse.returncode == 1
    assert "slower: " in worse.stdout
    assert bench("--compare", "new.json", "old.json", cwd=tmp_path).returncode == 0


def test_a_server_is_loaded_at_every_rate_and_searched(server):
    words = ("--rate", "40,80", "--duration", "1s", "--slo", "p50=0.001ms", "--mix", "interactive:0.5,8:0.5")
    done = bench(server, "--scenario", "server", *words, "--json", "-")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert [row["rate"] for row in content["server"] if row["kind"] == "all"][:2] == [40.0, 80.0]
    assert ", numerics sha256:" in content["machine"][f"served by {server}"]
    whole = content["server"][0]
    assert whole["arrivals"] == whole["completed"] + whole["rejected"] + whole["timed_out"] + whole["failed"]
    assert content["searches"][0]["highest_met"] is None
    assert "became of the requests" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model is named"),
        (["none.onnx"], "no model file at none.onnx"),
        (["MODEL", "--quality", "none.json"], "no evaluation at none.json"),
        (["MODEL", "--quality", "old.json"], "no evaluation that says whose"),
        (["MODEL", "--longest", "soon"], "cannot read the longest call"),
        (["MODEL", "--engine", "diffusers"], "none of the engines runs"),
        (["MODEL", "MODEL"], "named twice"),
        (["MODEL", "--batch", "1,x"], "cannot read batch sizes"),
        (["MODEL", "--batch", "0"], "batch sizes"),
        (["MODEL", "--threads", "0"], "numbers of threads"),
        (["MODEL", "--engine", "jax"], "unknown engine 'jax'"),
        (["MODEL", "--scenario", "fast"], "cannot read scenario"),
        (["MODEL", "--scenario", "batch,server"], "cannot read scenario"),
        (["MODEL", "--scenario", "server", "--rate", "5"], "needs a server"),
        (["MODEL", "--rate", "5"], "--rate: only of the scenario server"),
        (["MODEL", "--deadline", "3s", "--mix", "bulk"], "--deadline, --mix: only of the scenario server"),
        (["grpc://h:1", "--scenario", "server", "--rate", "5", "--quality", "x.json"], "--quality: not of the"),
        (["--compare", "empty_report.json", "--batch", "8"], "so --batch would change nothing"),
        (["MODEL", "--margin", "0.1"], "--margin is of a comparison"),
        (["MODEL", "--compare", "empty_report.json", "--margin", "nan"], "margin is nan"),
        (["MODEL", "--threads", "10000"], "at most 1,024"),
        (["MODEL", "--batch", "100000000000"], "at most 1,048,576"),
        (["MODEL", "--seed", "-1"], "seed is -1"),
        (["grpc://h:1", "--scenario", "server", "--rate", "5", "--seed", "-1"], "seed is -1"),
        (["grpc://h:1", "--scenario", "server", "--rate", "5,1e9"], "more than 2,000,000 requests"),
        (["grpc://h:1", "--scenario", "server", "--rate", "5", "--mix", "9" * 5000], "in the mix"),
        (["MODEL", "--json", "."], "is a folder"),
        (["MODEL", "--launches", "0"], "launches is 0"),
        (["MODEL", "--seconds", "nan"], "seconds is nan"),
        (["MODEL", "--json", "none/r.json"], "no folder none"),
        (["ckpt.pt"], "only torch runs"),
        (["old.json"], "is a report"),
        (["MODEL", "--compare", "none.json"], "no report at none.json"),
        (["MODEL", "--compare", "ckpt.pt"], "ckpt.pt"),
        (["grpc://h:1", "--scenario", "server"], "needs rates or an objective"),
        (["grpc://h:1", "--scenario", "server", "--rate", "x"], "cannot read rates"),
        (["grpc://h:1", "--scenario", "server", "--rate", "5", "--duration", "long"], "cannot read duration"),
        (["grpc://h:1", "--scenario", "server", "--slo", "99"], "cannot read objective"),
        (["grpc://h:1", "--scenario", "server", "--rate", "5", "--mix", "huge:1"], "cannot read 'huge:1'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gives_one_line_and_exit_2(artifact_path, tmp_path, monkeypatch, capsys, words, said):
    from cli.main import main

    (tmp_path / "ckpt.pt").write_bytes(b"rubbish")
    (tmp_path / "old.json").write_text("{}")
    write_report(tmp_path / "empty_report.json", Report(command="kaem bench x", arguments=("x",), machine={}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kaem", "bench", *(str(artifact_path) if w == "MODEL" else w for w in words)])
    monkeypatch.setattr(sys, "stdout", open("out.txt", "w"))  # noqa: PTH123, SIM115  (main closes it)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pt", "empty_report.json", "old.json", "out.txt"]
