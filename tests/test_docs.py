"""Documentation that cannot rot: its commands parse, its code runs, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import server_process
from typer.main import get_command

from cli.main import app
from kaem_train.config.settings import load_config, preset_names

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md"),
    ROOT / "scripts" / "demo.sh",
]


def _commands():
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            # A command at the start of a line, or after `step` or indentation; what follows `&`, `>` or `#` is shell.
            found = re.match(r"\s*(?:step )?kaem ([a-z].*)", line)
            if found and not line.lstrip().startswith("`"):
                yield pytest.param(re.split(r"\s[&>#]", found[1])[0], id=f"{page.name}: kaem {found[1]}")


@pytest.mark.parametrize("text", list(_commands()))
def test_every_command_in_the_documentation_parses(text):
    name, *words = shlex.split(text)
    command = get_command(app).commands[name]
    if hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    given = command.make_context(name, words).params
    if name == "train" and given["config"] in preset_names():
        load_config(given["config"], given["assignments"] or ())


@pytest.mark.parametrize("page", ["README.md", "docs/artifact.md", "docs/client.md", "docs/protocols.md"])
def test_python_in_the_documentation_runs(page, artifact_path, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    shutil.copy(artifact_path, tmp_path / "model.onnx")
    with server_process(artifact_path, "--port", "0", "--name", "digits") as server:
        for block in blocks:
            code = block.replace("127.0.0.1:50051", server.target.removeprefix("grpc://"))
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_command_reference_is_what_the_commands_say(tmp_path):
    words = ["utils", "docs", "--name", "kaem", "--title", "Command reference", "--output", str(tmp_path / "cli.md")]
    typer = str(Path(sys.executable).with_name("typer"))
    subprocess.run([typer, "cli.main", *words], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "cli.md").read_text() == (ROOT / "docs" / "cli.md").read_text(), "run: make docs"
