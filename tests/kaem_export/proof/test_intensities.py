"""Images of an artifact lie in [0, 1]: by the generator's last operator, or by a Clip, and the certificate says so."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import floats, graph_of
from models import write_random_checkpoint

import kaem
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.proof.intensities import clip_intensities
from kaem_train.checkpoint import read_checkpoint, write_checkpoint

CODE = """
import torch
from torch import nn

class Straight(nn.Module):
    end = nn.Identity()

    def __init__(self, num_latents, image_shape):
        super().__init__()
        self.image_shape = image_shape
        self.line = nn.Linear(num_latents, image_shape[0] * image_shape[1] * image_shape[2])
        nn.init.normal_(self.line.weight, std=0.02)
        nn.init.constant_(self.line.bias, 0.5)

    def forward(self, latent):
        return self.end(self.line(latent)).unflatten(1, self.image_shape)

class Bent(Straight):
    end = nn.Sigmoid()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "intensity_decoders.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield "intensity_decoders"
    sys.modules.pop("intensity_decoders", None)


def _checkpoint(path, name):
    settings = ("generator.kind=module", f"generator.module={name}", "generator.channels=[]", "generator.dense=0")
    return write_random_checkpoint(path, *settings)


@pytest.mark.parametrize("image_type", ["float32", "uint8"])
def test_a_generator_that_leaves_0_1_is_clipped_and_the_certificate_says_how_much(own, tmp_path, image_type):
    name = f"{own}:Straight"
    checkpoint = _checkpoint(tmp_path / "c.pt", name)
    _widen(checkpoint)
    manifest = export(checkpoint, tmp_path / "m.onnx", image_type=image_type, allow_modules=[name])
    (figure,) = [figure for figure in manifest.certificate if figure.name == "image_range"]
    assert (figure.value, figure.bound) == (0.0, 0.0)
    assert "the generator reaches [-" in figure.meaning
    with kaem.load(tmp_path / "m.onnx", workers=1) as sampler:
        images = sampler.sample(500, seed=1)
    assert images.min() == 0
    assert images.max() == (1 if image_type == "float32" else 255)
    verify(tmp_path / "m.onnx", checkpoint, allow_modules=[name])


def _widen(path):
    checkpoint = read_checkpoint(path)
    checkpoint.model_state["generator.line.weight"] *= 20.0
    write_checkpoint(path, checkpoint)


def test_a_generator_that_ends_in_a_sigmoid_gets_no_clip(own, tmp_path):
    name = f"{own}:Bent"
    manifest = export(_checkpoint(tmp_path / "c.pt", name), tmp_path / "m.onnx", allow_modules=[name])
    assert "Clip" not in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node if "image" in node.output}
    (figure,) = [figure for figure in manifest.certificate if figure.name == "image_range"]
    assert (figure.value, "clips" in figure.meaning) == (0.0, False)


@pytest.mark.parametrize(
    ("nodes", "is_changed"),
    [
        ("y = Gemm(latent, w)  image = Sigmoid(y)", False),
        ("y = Gemm(latent, w)  s = Sigmoid(y)  image = Reshape(s, sides)", False),
        ("y = Gemm(latent, w)  image = Clip(y, zero, one)", False),
        ("y = Gemm(latent, w)  image = Clip(y, zero, two)", True),
        ("y = Gemm(latent, w)  image = Clip(y, zero)", True),
        ("image = Gemm(latent, w)", True),
        ("y = Gemm(latent, w)  s = Sigmoid(y)  image = Mul(s, two)", True),
    ],
)
def test_numbers_inside_keep_their_bits_and_others_become_the_ends(nodes, is_changed):
    import onnx_ir as ir

    constants = {"zero": np.float32(0), "one": np.float32(1), "two": np.float32(2), "sides": np.array([-1, 6])}
    model = graph_of(nodes, 4, (6,), w=floats(4, 6), **constants)
    rows = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    before = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(["image"], {"latent": rows})[0]
    count = len(model.graph)
    after = ir.to_proto(clip_intensities(model))
    onnx.checker.check_model(after, full_check=True)
    images = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"latent": rows})[0]
    assert (len(after.graph.node) > count) == is_changed
    assert np.array_equal(images, np.clip(before, 0, 1))
