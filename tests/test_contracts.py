"""Promises about the house itself: what imports what, and what loads what."""

from __future__ import annotations

import graphlib
import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]

BLOCKED = ("torch", "onnx", "onnxscript", "scipy", "sklearn", "tensorboard", "kaem_train", "kaem_export")

IMPORT_ALL = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
names = []
for package in ("kaem", "serve"):
    module = importlib.import_module(package)
    names.append(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        importlib.import_module(found.name)
        names.append(found.name)
print(len(names))
"""


def test_imports_flow_one_way():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_no_module_imports_itself_by_way_of_others():
    graph = grimp.build_graph("kaem", "kaem_train", "kaem_export", "serve", "cli", exclude_type_checking_imports=True)

    def is_at_the_top(importer, imported):
        path = ROOT / importer.replace(".", "/")
        lines = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text().splitlines()
        details = graph.get_import_details(importer=importer, imported=imported)
        return any(lines[detail["line_number"] - 1].startswith(("from", "import")) for detail in details)

    imports = {
        name: [found for found in graph.find_modules_directly_imported_by(name) if is_at_the_top(name, found)]
        for name in graph.modules
    }
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_every_module_of_kaem_and_serve_imports_where_torch_is_blocked():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(blocked=BLOCKED)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["fit-prior"],
        ["export"],
        ["verify"],
        ["serve"],
        ["sample"],
        ["bench"],
        ["info"],
        ["eval"],
        ["admin"],
        ["admin", "load"],
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys, json\n"
        f"sys.argv = ['kaem', *{command!r}, '--help']\n"
        "from cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "grpc", "scipy", "sklearn", "PIL", "kaem_train", "kaem_export"}
    assert not loaded & heavy


def test_importing_kaem_loads_neither_runtime_nor_grpc():
    code = "import sys, kaem; print([n for n in ('onnxruntime', 'grpc', 'torch', 'PIL', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_extras_never_pull_torch_or_two_runtimes_into_a_serving_box():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = " ".join(project["dependencies"])
    assert "torch" not in base
    assert "onnxruntime" not in base
    assert "torch" not in " ".join(project["optional-dependencies"]["cpu"])
    pins = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in pins
    assert "+cpu\n" not in pins
    assert "index" not in pins.replace("joblib", "")
