"""`kaem fit-prior` as a user runs it, from the two files to samples; and the page that explains it, run as written."""

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from decoders import conv_decoder, dense_decoder, write_decoder
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

import kaem
from cli.main import app
from kaem.errors import KaemError
from kaem_train.checkpoint import read_checkpoint
from kaem_train.evaluation.models import open_model

_ENDS = [("z", 5), ("x", 1, 3, 4)]
KAEM = str(Path(sys.executable).with_name("kaem"))
GRID = ("--set", "prior.low=-4", "--set", "prior.high=4")
PAGE = Path(__file__).parents[2] / "docs" / "fit-prior.md"


def _invoke(*words):
    """Run a command in this process: importing torch anew for each takes longer than the command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, which a user sees on stderr
        return CliRunner().invoke(app, [str(word) for word in words])


def _done(*words):
    result = _invoke(*words)
    assert result.exit_code == 0, (words, result.exception, result.stderr)
    return result


def _refused(*words):
    result = _invoke(*words)
    assert isinstance(result.exception, KaemError), (words, result.exception)
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception)
    assert result.stdout == ""
    return result.exception


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Latents in two clusters, a dense decoder and a convolutional one that ends in tanh."""
    folder = tmp_path_factory.mktemp("autoencoder")
    random = np.random.default_rng(0)
    z = random.normal(size=(1500, 5)) + 3.0 * random.choice([-1.0, 1.0], (1500, 1))
    np.save(folder / "z.npy", z.astype(np.float32))
    write_decoder(folder / "dense.onnx", dense_decoder(5, (1, 6, 7), nn.Sigmoid()), torch.zeros(2, 5), dynamo=False)
    write_decoder(folder / "conv.onnx", conv_decoder(5, nn.Tanh()), torch.zeros(2, 5, 1, 1), dynamo=False)
    return folder


def test_latents_that_are_images_go_the_whole_way_with_their_decoder(tmp_path):
    z = np.random.default_rng(0).normal(size=(400, 3, 2, 2)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    network = conv_decoder(3, nn.Sigmoid())
    write_decoder(tmp_path / "conv.onnx", network, torch.zeros(2, 3, 2, 2), dynamo=False)
    fitted = _done(*_words(tmp_path, "conv.onnx", tmp_path / "ckpt.pt", "--set", "prior.num_components=1"))
    assert "latents 3 x 2 x 2, images 3 x 10 x 10, 0 to 1, opset 18" in fitted.stderr
    assert "1 component," in fitted.stderr
    _done("export", tmp_path / "ckpt.pt", "-o", tmp_path / "m.onnx")
    images = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"uniform": np.float32([[0.2] * 13] * 5)})
    with torch.no_grad():
        expected = network(torch.from_numpy(images[1]).unflatten(1, (3, 2, 2))).numpy()
    assert np.abs(images[0] - expected).max() < 1e-5


def _words(folder, decoder, out, *options):
    files = ("--latents", folder / "z.npy", "--decoder", folder / decoder, "-o", out)
    return ("fit-prior", *files, "--updates", 20, *options)


def test_a_quantised_decoder_goes_the_whole_way_and_its_precision_is_stated(folder, tmp_path):
    random = np.random.default_rng(0)
    values = {
        "weight": random.normal(size=(5, 12)).astype(np.float32),
        "shape": np.array([-1, 1, 3, 4]),
        "step": np.float32(0.05),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["z", "step", "zero"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["rounded"]),
        helper.make_node("MatMul", ["rounded", "weight"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["x"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *sides]) for name, *sides in _ENDS]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "q", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    (tmp_path / "z.npy").write_bytes((folder / "z.npy").read_bytes())
    (tmp_path / "q.onnx").write_bytes(model.SerializeToString())
    _done(*_words(tmp_path, "q.onnx", tmp_path / "ckpt.pt", "--set", "prior.num_components=1"))
    _done("export", tmp_path / "ckpt.pt", "-o", tmp_path / "m.onnx")
    _done("verify", tmp_path / "m.onnx", "--checkpoint", tmp_path / "ckpt.pt")
    with kaem.load(tmp_path / "m.onnx", workers=1) as sampler:
        assert sampler.manifest.compilation["precision"] == "int8"


def test_outliers_and_priors_that_are_worse_are_named(folder, tmp_path):
    random = np.random.default_rng(0)
    z = 0.4 * random.normal(size=(600, 5)) @ random.normal(size=(5, 5))
    z[:3] *= 1e4
    np.save(tmp_path / "z.npy", z)
    files = ("--latents", tmp_path / "z.npy", "--decoder", folder / "dense.onnx", "-o", tmp_path / "ckpt.pt")
    words = ("fit-prior", *files, "--updates", 5, "--prior", "independent")
    said = _done(*words).stderr
    assert "3 outliers are left out" in said
    assert "warning: the fitted prior is worse than one Gaussian" in said
    assert "outside the domain" in _refused(*words, "--keep-outliers", "--force").message


@pytest.mark.parametrize(
    ("decoder", "image_type", "network", "options"),
    [
        ("dense.onnx", "float32", dense_decoder(5, (1, 6, 7), nn.Sigmoid()), ()),
        ("conv.onnx", "uint8", conv_decoder(5, nn.Tanh()), ("--pixel-range", -1, 1, "--prior", "strict")),
    ],
)
def test_latents_and_decoder_become_a_model_that_samples(folder, tmp_path, decoder, image_type, network, options):
    fitted = _done(*_words(folder, decoder, tmp_path / "ckpt.pt", *options))
    assert fitted.stdout == f"{tmp_path / 'ckpt.pt'}\n"
    for words in ("1500 latents of 5 numbers", "N(0, I)", "one Gaussian", "fitted prior"):
        assert words in fitted.stderr
    _done("export", tmp_path / "ckpt.pt", "--image-type", image_type)
    verified = _done("verify", tmp_path / "model.onnx", "--checkpoint", tmp_path / "ckpt.pt")
    assert "decoder" in verified.stdout
    _done("sample", tmp_path / "model.onnx", "-n", 200, "-o", tmp_path / "samples.npy")
    images = np.load(tmp_path / "samples.npy")
    # The decoder that was given, run by torch on latents of the two clusters, gives images alike.
    z = torch.from_numpy(np.load(folder / "z.npy"))
    with torch.no_grad():
        expected = network.eval()(z if decoder == "dense.onnx" else z[:, :, None, None]).numpy()
    if decoder == "conv.onnx":
        expected, images = (expected + 1) / 2, images / 255
    assert images.shape[1:] == expected.shape[1:]
    assert np.abs(images.mean(0) - expected.mean(0)).max() < 0.08
    checkpoint = read_checkpoint(tmp_path / "ckpt.pt")
    assert (checkpoint.config.data.source, checkpoint.config.generator.kind) == ("latents", "onnx")
    assert checkpoint.config.name == Path(decoder).stem


def test_an_existing_checkpoint_is_replaced_only_by_force(folder, tmp_path):
    out = tmp_path / "ckpt.pt"
    out.write_bytes(b"precious")
    assert "--force" in _refused(*_words(folder, "dense.onnx", out)).hint
    words = _words(folder, "z.npy", out, "--force")
    broken = subprocess.run([KAEM, *map(str, words)], capture_output=True, text=True, check=False)
    assert broken.returncode == 2
    assert broken.stdout == ""
    assert [line.partition(":")[0] for line in broken.stderr.splitlines()] == ["error", "hint"]
    assert "is not an ONNX model" in broken.stderr
    assert out.read_bytes() == b"precious"
    _done(*_words(folder, "dense.onnx", out, "--force", "--set", "prior.num_components=2"))
    assert read_checkpoint(out).config.prior.num_components == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pixel-range", 1, -1), "does not ascend"),
        (("--pixel-range", "nan", 1), "does not ascend"),
        (("--holdout", 1.5), "holdout = 1.5 is outside"),
        (("--updates", -1), "neither is negative"),
        (("--seed", -1), "a seed is below"),
        (("--set", "training.updates=3"), "does not matter to a prior alone"),
        (("--set", "prior.num_components=5000"), "cannot start"),
        (("--set", "prior.reference=uniform"), "uniform"),
        (("--latents", "absent.npy"), "no latents at absent.npy"),
        (("--decoder", "absent.onnx"), "no decoder at absent.onnx"),
        (("--decoder", "own:Decoder"), "no decoder at own:Decoder"),
        (("-o", "absent/ckpt.pt", "--set", "prior.num_components=1"), "no folder absent"),
        (("--checkpoint", "ckpt.pt"), "--checkpoint already holds a decoder"),
        (("--data", "digits.npz"), "--data is for --checkpoint"),
        (("--set", "prior.refit_interval=100"), "prior.refit_interval has no meaning here"),
        (("--prior", "strict", "--set", "prior.reference=none", *GRID), "learned from encoded images"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    words = ("--latents", folder / "z.npy", "--decoder", folder / "dense.onnx", *options)
    assert message in _refused("fit-prior", *words).message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A checkpoint of a VAE that has hardly begun to learn."""
    folder = tmp_path_factory.mktemp("vae")
    sizes = ("generator.dense=8", "generator.channels=[4]", "prior.num_latents=3", "posterior.encoder_channels=[4]")
    words = [word for size in sizes for word in ("--set", size)]
    _done("train", "digits", "--family", "vae", "--updates", 20, *words, "-o", folder)
    return folder / "ckpt.pt"


@pytest.mark.parametrize("updates", [0, 10])
def test_a_checkpoint_gets_a_new_prior_and_keeps_its_networks(vae, tmp_path, updates):
    out = tmp_path / "after.pt"
    _done("fit-prior", "--checkpoint", vae, "-o", out, "--updates", updates, "--set", "prior.num_components=2")
    before, after = read_checkpoint(vae), read_checkpoint(out)
    assert (before.config.family, after.config.family, after.config.prior.frame) == ("vae", "kaem", "own")
    for name, value in before.model_state.items():
        assert name.startswith("prior.") or torch.equal(value, after.model_state[name])
    for name, value in before.posterior_state.items():
        assert torch.equal(value, after.posterior_state[name])
    if updates == 0:  # the experts are a Gaussian mixture: their univariate functions are 0
        assert not after.model_state["prior.bank.coefficients"].any()
    _done("export", out, "-o", tmp_path / "after.onnx")
    _done("verify", tmp_path / "after.onnx", "--checkpoint", out)


def test_a_checkpoint_without_latents_of_its_images_is_refused(vae, tmp_path):
    out = tmp_path / "after.pt"
    assert "no checkpoint" in _refused("fit-prior", "--checkpoint", tmp_path / "absent.pt", "-o", out).message
    assert "nothing to fit" in _refused("fit-prior", "-o", out).message
    other = tmp_path / "other.npz"
    np.savez(other, images_train=np.full((300, 8, 8), 200, np.uint8), images_test=np.full((5, 8, 8), 200, np.uint8))
    assert "fingerprint" in _refused("fit-prior", "--checkpoint", vae, "--data", other, "-o", out).message
    assert "holdout = 2" in _refused("fit-prior", "--checkpoint", vae, "--holdout", 2, "-o", out).message
    _done(
        "train",
        "digits",
        "--updates",
        2,
        "--set",
        "posterior.kind=importance",
        "--set",
        "prior.frame=none",
        "-o",
        tmp_path,
    )
    message = _refused("fit-prior", "--checkpoint", tmp_path / "ckpt.pt", "-o", out).message
    assert "not known one by one (posterior importance, prior experts)" in message
    assert not out.exists()


def test_a_decoder_without_an_encoder_has_samples_to_evaluate_and_no_likelihood(folder, tmp_path):
    _done(*_words(folder, "conv.onnx", tmp_path / "ckpt.pt", "--pixel-range", -1, 1, "--set", "prior.num_components=2"))
    opened = open_model(tmp_path / "ckpt.pt")
    assert (opened.posterior, opened.encoder) == (None, None)
    assert next(iter(opened.draw(3, seed=0))).shape[0] == 3


OWN_AUTOENCODER = """
import torch
from torch import nn
torch.manual_seed(0)
images = torch.rand(300, 1, 4, 4)
decoder = nn.Sequential(nn.Linear(3, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
to_moments = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
encoder = lambda images: to_moments(images).chunk(2, -1)
"""


@pytest.mark.slow
def test_the_page_about_it_runs_from_its_first_command_to_its_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pieces = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [language for language, _ in pieces] == ["python", "sh", "sh", "python", "sh"]
    for number, (language, code) in enumerate(pieces):
        if language == "sh":
            for line in code.strip().splitlines():
                assert line.startswith("kaem ")
                _done(*shlex.split(re.sub(r"--updates \d+", "--updates 20", line))[1:])
        elif "class Decoder" in code:
            (tmp_path / "own_decoder.py").write_text(code)
        else:
            before = OWN_AUTOENCODER if number == 0 else ""
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's exporter
                exec(before + code, {})  # noqa: S102  # the page's own code
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()
    assert "--allow-module own_decoder:Decoder" in _refused("export", "runs/own/ckpt.pt").hint
