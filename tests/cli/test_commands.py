"""The installed command, as a user runs it: real files, a real server, exit codes and streams."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import pytest
from command import run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import free_port, server_process
from models import write_random_checkpoint
from PIL import Image

KAEM = str(Path(sys.executable).with_name("kaem"))


def _run(*words, cwd=None):
    done = subprocess.run([KAEM, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _mistake(done):
    """Check that a command was refused; return the one line that says why."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint exported with the command line."""
    folder = tmp_path_factory.mktemp("models")
    write_random_checkpoint(folder / "ckpt.pt")
    done = _run("export", folder / "ckpt.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'model.onnx'}\n"
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with server_process(folder / "model.onnx", "--port", "0") as process:
        yield process.target


def test_export_shows_the_certificate_in_words_and_the_path_in_data(folder, tmp_path):
    done = run_here("export", folder / "ckpt.pt", "-o", tmp_path / "m.onnx", "--image-type", "uint8", "--explain")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'm.onnx'}\n"
    assert "u_error" in done.stderr
    assert "uint8" in done.stderr
    assert "fold_constants" in done.stderr


def test_verify_prints_a_table_and_exits_0(folder):
    done = _run("verify", folder / "model.onnx", "--checkpoint", folder / "ckpt.pt")
    assert done.returncode == 0
    for name in ("u_error", "score", "tail_error", "cdf_agreement", "image_parity", "row_difference", "kept"):
        assert name in done.stdout


def test_verify_judges_by_its_own_tolerance_and_says_how_to_allow_the_artifacts(folder, tmp_path):
    loose, checkpoint = tmp_path / "loose.onnx", folder / "ckpt.pt"
    assert run_here("export", checkpoint, "-o", loose, "--tolerance", "1e-3").returncode == 0
    refused = run_here("verify", loose, "--checkpoint", checkpoint)
    assert refused.returncode == 1
    assert "its manifest states a tolerance of 0.001, it was judged by 5.96e-08" in refused.stderr
    assert "broken: " in refused.stderr
    allowed = re.search(r"verify with (--tolerance \S+)", refused.stderr)
    done = run_here("verify", loose, "--checkpoint", checkpoint, *allowed[1].split())
    assert done.returncode == 0, done.stderr
    assert "judged by a tolerance of 0.001; the default is 5.96e-08" in done.stderr
    assert "keeps its certificate" in done.stderr
    less = run_here("verify", loose, "--checkpoint", checkpoint, "--tolerance", "1e-5")
    assert (less.returncode, "judged by 1e-05" in less.stderr) == (1, True)
    for wrong in ("nan", "-1", "0.5", "0"):
        _mistake(run_here("verify", loose, "--checkpoint", checkpoint, f"--tolerance={wrong}"))


def test_verify_exits_1_for_another_models_checkpoint(folder, tmp_path):
    other = write_random_checkpoint(tmp_path / "other.pt", seed=5)
    done = run_here("verify", folder / "model.onnx", "--checkpoint", other)
    assert done.returncode == 1
    assert "was not exported from" in done.stderr


def test_verify_exits_1_and_names_a_changed_graph(folder, tmp_path):
    content = bytearray((folder / "model.onnx").read_bytes())
    graph = onnx.load(folder / "model.onnx").graph
    raw = next(tensor.raw_data for tensor in graph.initializer if tensor.name == "leaves")
    content[content.index(raw)] ^= 1
    (tmp_path / "bent.onnx").write_bytes(content)
    done = run_here("verify", tmp_path / "bent.onnx", "--checkpoint", folder / "ckpt.pt")
    assert done.returncode == 1
    assert "changed after its export" in done.stderr


@pytest.mark.parametrize("what", ["cut", "tools", "rubbish"])
def test_verify_exits_1_for_a_file_that_is_damaged(folder, tmp_path, what):
    content = (folder / "model.onnx").read_bytes()
    damaged = {
        "cut": content[:-500],
        "tools": content.replace(b'"tools":{"kaem":"0', b'"tools":{"kaem":"9'),
        "rubbish": b"rubbish",
    }
    (tmp_path / "damaged.onnx").write_bytes(damaged[what])
    done = _run("verify", tmp_path / "damaged.onnx", "--checkpoint", folder / "ckpt.pt")
    assert done.returncode == 1
    assert "damaged.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_and_a_server_give_byte_equal_outputs(folder, server, tmp_path):
    for name, source in (("local", folder / "model.onnx"), ("remote", server)):
        outputs = [word for suffix in ("png", "npy") for word in ("-o", tmp_path / f"{name}.{suffix}")]
        done = _run("sample", source, "-n", 300, "--seed", 7, "--start", 11, *outputs)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(tmp_path / f"{name}.png"), str(tmp_path / f"{name}.npy")]
    for suffix in ("png", "npy"):
        assert (tmp_path / f"local.{suffix}").read_bytes() == (tmp_path / f"remote.{suffix}").read_bytes()
    images = np.load(tmp_path / "local.npy")
    assert images.shape == (300, 1, 8, 8)
    assert images.dtype == np.float32
    with Image.open(tmp_path / "local.png") as sheet:
        assert sheet.size == (16 * 44 + 4, 16 * 44 + 4)


def test_the_default_output_is_samples_png_here(folder, tmp_path):
    assert _run("sample", folder / "model.onnx", "-n", 4, cwd=tmp_path).stdout == "samples.png\n"
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]


def test_info_shows_the_manifest_of_a_file_and_of_a_server(folder, server):
    local, remote = _run("info", folder / "model.onnx", "--json"), _run("info", server, "--json")
    assert json.loads(local.stdout) == json.loads(remote.stdout)
    assert json.loads(local.stdout)["image_shape"] == [1, 8, 8]
    said = _run("info", folder / "model.onnx").stdout
    assert "certificate" in said
    assert "latent  0" in said


def test_info_without_a_model_describes_the_installation():
    assert "runtime: onnxruntime" in _run("info").stdout


def test_version():
    assert _run("--version").stdout == "kaem 0.1.0\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "none.onnx"], "no model file at none.onnx"),
        (["sample", "MODEL", "-n", "0"], "num is 0"),
        (["sample", "MODEL", "-n", "-3"], "num is -3"),
        (["sample", "MODEL", "--seed", "-1"], "seed is -1"),
        (["sample", "MODEL", "--seed", str(2**64)], "seed is 18446744073709551616"),
        (["sample", "MODEL", "--start", str(2**64 - 1)], "passes 2^64"),
        (["sample", "MODEL", "-o", "a.gif"], "unknown suffix '.gif'"),
        (["sample", "MODEL", "-o", "none/a.png"], "no folder none"),
        (["sample", "MODEL", "--columns", "0"], "columns is 0"),
        (["sample", "MODEL", "--scale", "100000"], "more than 256 MiB"),
        (["sample", "127.0.0.1:50051"], "neither a file nor a server's address"),
        (["sample", "MODEL", "--workers", "0"], "workers is 0"),
        (["sample", "MODEL", "--provider", "tpu"], "unknown provider 'tpu'"),
        (["sample", "grpc://nonsense"], "grpc://nonsense"),
        (["sample", "rubbish.onnx"], "rubbish.onnx is not a usable ONNX model"),
        (["sample", "foreign.onnx"], "not a kaem artifact"),
        (["sample", "ckpt.pt"], "ckpt.pt is a checkpoint, not an exported model"),
        (["sample", "package.pt2"], "package.pt2 is not a usable ONNX model"),
        (["info", "rubbish.onnx"], "rubbish.onnx"),
        (["export", "none.pt"], "no checkpoint at none.pt"),
        (["export", "rubbish.onnx"], "rubbish.onnx is not a kaem checkpoint"),
        (["export", "ckpt.pt", "-o", "none/m.onnx"], "no folder none"),
        (["export", "ckpt.pt", "-o", "ckpt.pt"], "ckpt.pt would replace what it is made from"),
        (["export", "ckpt.pt", "--target", "aotinductor", "-o", "ckpt.pt"], "would replace what it is made from"),
        (["export", "ckpt.pt", "--target", "triton", "-o", "ckpt.pt"], "ckpt.pt is a file"),
        (["export", "ckpt.pt", "--batch", "8,4"], "not ascending"),
        (["export", "ckpt.pt", "--batch", "many"], "not a list of whole numbers"),
        (["export", "ckpt.pt", "--precision", "int8", "--optimize", "none"], "needs the exact rewrites"),
        (["verify", "none.onnx", "--checkpoint", "ckpt.pt"], "no model file at none.onnx"),
        (["verify", "MODEL", "--checkpoint", "rubbish.onnx"], "rubbish.onnx is not a kaem checkpoint"),
        (["verify", "MODEL", "--checkpoint", "none.pt"], "no checkpoint at none.pt"),
        (["serve", "none.onnx"], "no model file at none.onnx"),
        (["serve", "MODEL", "--port", "70000"], "70000"),
        (["serve", "MODEL", "--host", "0.0.0.0"], "0.0.0.0"),
        (["train", "digist"], "digist"),
        (["train", "mnist"], "none are given"),
        (["train", "digits", "--set", "prior.num_latent=3"], "prior.num_latent"),
        (["train", "digits", "--set", "data.image_shape=[1, 28, 28]", "--set", "generator.channels=[8, 8]"], "28"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gives_one_line_exit_2_and_leaves_nothing(folder, tmp_path, words, said):
    (tmp_path / "rubbish.onnx").write_bytes(os.urandom(500))
    (tmp_path / "ckpt.pt").write_bytes((folder / "ckpt.pt").read_bytes())
    _write_foreign(tmp_path / "foreign.onnx")
    with ZipFile(tmp_path / "package.pt2", "w") as archive:
        archive.writestr("package/archive_format", "pt2")
    before = sorted(path.name for path in tmp_path.iterdir())
    words = [folder / "model.onnx" if word == "MODEL" else word for word in words]
    assert said in _mistake(run_here(*words, cwd=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


REFUSED_WITHOUT_TORCH = (
    ["train", "absent.npz"],
    ["train", "mnist", "--data", "absent.npz"],
    ["train", "digits", "--resume"],
    ["export", "absent.pt"],
    ["export", "rubbish.pt"],
    ["export", "CKPT", "-o", "absent/model.onnx"],
    ["verify", "MODEL", "--checkpoint", "absent.pt"],
    ["verify", "rubbish.onnx", "--checkpoint", "CKPT"],
    ["fit-prior", "--latents", "absent.npy", "--decoder", "absent.onnx"],
    ["eval", "absent.pt"],
    ["eval", "absent.onnx"],
    ["eval", "CKPT", "--sizes", "1,2"],
)


def test_what_is_not_there_is_answered_before_torch_is_loaded(folder, tmp_path):
    for name in ("rubbish.pt", "rubbish.onnx"):
        (tmp_path / name).write_bytes(b"rubbish")
    files = {"CKPT": str(folder / "ckpt.pt"), "MODEL": str(folder / "model.onnx")}
    commands = [[files.get(word, word) for word in words] for words in REFUSED_WITHOUT_TORCH]
    code = f"""
import sys
from command import run_here
for words in {commands!r}:
    done = run_here(*words)
    assert done.returncode == (1 if words[:2] == ["verify", "rubbish.onnx"] else 2), (words, done)
    assert done.stderr.startswith("error: "), (words, done)
    assert "torch" not in sys.modules, words
"""
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support" / "servers"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("torch", ["train", "digits"], "train"),
        ("onnx", ["export", "CKPT"], "export"),
        ("scipy", ["verify", "MODEL", "--checkpoint", "CKPT"], "export"),
    ],
)
def test_a_missing_extra_is_named(folder, tmp_path, module, words, extra):
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('gone', name={module!r})")
    files = {"CKPT": folder / "ckpt.pt", "MODEL": folder / "model.onnx"}
    words = [files.get(word, word) for word in words]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([KAEM, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: this command needs {module}, which is not installed",
        f"hint: run: pip install 'kaem[{extra}]'",
    ]


def test_a_port_in_use_is_named(folder, server):
    port = server.rpartition(":")[2]
    done = _run("serve", folder / "model.onnx", "--port", port)
    assert done.returncode == 1  # not a mistake of whoever started it: the port may be free in a moment
    assert done.stderr.count("error: ") == 1
    assert f"port {port} of 127.0.0.1 is in use" in " ".join(done.stderr.split())


def test_a_server_that_is_not_there_is_a_failure_with_a_hint():
    done = _run("sample", f"grpc://127.0.0.1:{free_port()}", "-n", "1")
    assert done.returncode == 1
    assert "no kaem server answered" in done.stderr
    assert "kaem serve" in done.stderr


def test_brackets_in_a_path_are_no_markup(folder, tmp_path):
    odd = tmp_path / "br[/x]"
    odd.mkdir(parents=True)
    for name in ("ckpt.pt", "model.onnx"):
        (odd / name).write_bytes((folder / name).read_bytes())
    assert run_here("verify", odd / "model.onnx", "--checkpoint", odd / "ckpt.pt").returncode == 0


def test_a_full_disk_is_one_line(folder):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [KAEM, "info", folder / "model.onnx"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: No space left on device"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_dies_half_way_leaves_no_files(folder, tmp_path, number):
    with server_process(folder / "model.onnx", "--port", "0") as process:
        command = [KAEM, "sample", process.target, "-n", str(2 * 10**6), "-o", tmp_path / "a.npy"]
        sampling = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not list(tmp_path.iterdir()):
            assert sampling.poll() is None
            time.sleep(0.01)  # leaves the core to those who are waited for
        sampling.send_signal(number)
        _, words = sampling.communicate(timeout=60)
    assert sampling.returncode != 0
    assert "Traceback" not in words
    assert list(tmp_path.iterdir()) == []


def _write_foreign(path):
    """A valid ONNX file that somebody else made."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())


@given(name=st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_no_name_tells_the_terminal_what_to_do(name):
    done = run_here("info", f"nowhere-{name}.onnx")
    assert done.returncode == 2
    for line in done.stderr.removesuffix("\n").split("\n"):
        assert line.startswith(("error: ", "hint: "))
        assert line.isprintable()
