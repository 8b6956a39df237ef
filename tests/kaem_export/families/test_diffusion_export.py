"""An exported diffusion model: its loop makes the images of diffusers' samplers, and of theory where that is known."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from baselines import session_of, write_baseline_checkpoint
from onnx import helper, numpy_helper
from onnxscript import build_graph as build_ir_graph
from scipy.special import ndtri

import kaem
from kaem.artifact import MANIFEST_KEY, seal
from kaem.errors import ConfigError, VerificationError
from kaem.noise import uniforms
from kaem_export.certificate import verify
from kaem_export.compile import export
from kaem_export.families.diffusion import diffusion_graph, sampler_schedule, sampler_settings
from kaem_export.families.diffusion_certificate import stream_uniforms
from kaem_export.families.family import Sampling
from kaem_export.graph import graph_fingerprint
from kaem_export.onnx_builder import OPSET, add_constant
from kaem_train.config import DiffusionConfig
from kaem_train.families.diffusion import sampling_schedule

SHAPE = (1, 4, 4)
PIXELS = 16


def _alpha_bar(betas):
    """abar_t of the papers: Ho et al. section 4, Nichol & Dhariwal eq. 17."""
    if betas == "linear":
        return np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))

    def f(t):
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(1000)
    return np.cumprod(1.0 - np.minimum(1.0 - f(t + 1) / f(t), 0.999))


def _exact(betas, mean, std):
    """E[eps | x_t] = a_t x_t - b_t where pixels are N(mean, std^2) in [-1, 1]: a_t, b_t (T,)."""
    kept = _alpha_bar(betas)
    slope = np.sqrt(1.0 - kept) / (kept * std**2 + 1.0 - kept)
    return slope, slope * np.sqrt(kept) * mean


def _network(slope, offset):
    """The denoiser a_t x_t - b_t in place of a UNet."""
    noisy = ir.val("image", ir.DataType.FLOAT, ["N", *SHAPE])
    timestep = ir.val("timestep", ir.DataType.INT64, ())

    def write(op, x, t):
        slopes, offsets = (
            op.Gather(add_constant(op, value.astype(np.float32), name), t)
            for name, value in (("slopes", slope), ("offsets", offset))
        )
        return op.Sub(op.Mul(x, slopes), offsets)

    noise = ir.val("noise", ir.DataType.FLOAT, ["N", *SHAPE])
    return build_ir_graph(write, [noisy, timestep], [noise], opset_imports={"": OPSET})


def _sample(settings, num, mean=0.3, std=0.2, seed=0):
    schedule = sampler_schedule(settings)
    graph = diffusion_graph(_network(*_exact(settings.betas, mean, std)), SHAPE, schedule)[0]
    uniform = uniforms(seed, 0, num, PIXELS * (7 if schedule.is_random else 1))
    return session_of(graph).run(["image", "latent"], {"uniform": uniform}), uniform


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "eta", "steps"), [("ddim", 0.0, 50), ("ddim", 1.0, 100), ("ddpm", 0.0, 250)])
def test_images_are_those_of_the_library_for_the_same_noise(sampler, eta, steps, betas, monkeypatch):
    settings = DiffusionConfig(sampler=sampler, eta=eta, sampling_steps=steps, betas=betas)
    (images, latent), uniform = _sample(settings, 50)
    streams = stream_uniforms(uniform[:, PIXELS:])

    def noise(*_, **__):
        return torch.from_numpy(ndtri(next(streams))).float().reshape(50, *SHAPE)

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", noise)
    slope, offset = (torch.from_numpy(part).float() for part in _exact(betas, 0.3, 0.2))
    options = {"eta": eta} if sampler == "ddim" else {}
    library = sampling_schedule(settings)
    x = torch.from_numpy(latent).reshape(50, *SHAPE)
    for t in library.timesteps:
        x = library.step(slope[t] * x - offset[t], t, x, **options).prev_sample
    expected = ((x + 1) / 2).clamp(0, 1).numpy()
    assert expected.std() > 0.05
    assert np.abs(images - expected).max() < 2e-4


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.7)])
def test_all_steps_of_a_random_sampler_recover_the_moments_of_gaussian_pixels(sampler, eta, betas):
    settings = DiffusionConfig(sampler=sampler, sampling_steps=1000, eta=eta, betas=betas)
    (images, _), _ = _sample(settings, 400)
    assert float(images.mean()) == pytest.approx(0.65, abs=0.005)
    assert float(images.std()) == pytest.approx(0.1, rel=0.04)
    flat = images.reshape(400, -1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(PIXELS)).max() < 5 / math.sqrt(400)
    assert np.abs(np.corrcoef(flat) - np.eye(400)).max() < 6 / math.sqrt(PIXELS)


def test_few_steps_of_ddim_make_exactly_the_error_that_its_equation_makes():
    """Song et al. 2021, eq. 12, on Gaussian pixels: every step scales the deviation from the mean."""
    kept, std, scale = _alpha_bar("linear"), 0.2, 1.0
    timesteps = [*range(999, 0, -100)]
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        now, then = kept[timestep], 1.0 if following is None else kept[following]
        variance = now * std**2 + 1.0 - now
        scale *= (
            math.sqrt(then / now) * (1.0 - (1.0 - now) / variance) + math.sqrt((1.0 - then) * (1.0 - now)) / variance
        )
    (images, _), _ = _sample(DiffusionConfig(sampling_steps=10), 2000)
    assert float(images.std()) == pytest.approx(scale / 2, rel=0.02)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_plain_and_signed_uniforms_give_one_image(sampler):
    settings = DiffusionConfig(sampler=sampler, sampling_steps=10)
    schedule = sampler_schedule(settings)
    graph = diffusion_graph(_network(*_exact("linear", 0.3, 0.2)), SHAPE, schedule)[0]
    plain = np.random.default_rng(0).integers(1, 4096, (5, PIXELS * (7 if schedule.is_random else 1))) / 4096
    session, plain = session_of(graph), plain.astype(np.float32)
    signed = np.where(plain >= 0.5, plain - 1, plain)
    assert np.array_equal(*(session.run(["image"], {"uniform": each})[0] for each in (plain, signed)))


def test_another_sampler_than_the_checkpoints_takes_its_own_number_of_steps():
    trained = DiffusionConfig(sampling_steps=20)
    for sampling, expected in (
        (Sampling(), ("ddim", 20)),
        (Sampling(steps=10), ("ddim", 10)),
        (Sampling(sampler="ddpm"), ("ddpm", 1000)),
        (Sampling(sampler="ddpm", steps=100), ("ddpm", 100)),
    ):
        found = sampler_settings(trained, sampling)
        assert (found.sampler, found.sampling_steps) == expected
    switched = sampler_settings(DiffusionConfig(sampler="ddpm", sampling_steps=1000), Sampling(sampler="ddim"))
    assert (switched.sampler, switched.sampling_steps) == ("ddim", 50)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small UNet with random weights as DDPM of 20 steps and as DDIM of 5."""
    folder = tmp_path_factory.mktemp("diffusion")
    checkpoint = write_baseline_checkpoint(folder / "ckpt.pt", "ddpm", "diffusion.sampler=ddpm")
    ddpm = export(checkpoint, folder / "ddpm.onnx")
    ddim = export(checkpoint, folder / "ddim.onnx", sampling=Sampling(sampler="ddim", steps=5), image_type="uint8")
    return checkpoint, {"ddpm": (folder / "ddpm.onnx", ddpm), "ddim": (folder / "ddim.onnx", ddim)}


@pytest.mark.parametrize(
    ("family", "steps", "noise_dim", "bound"), [("ddpm", 20, 7 * 64, 5e-4), ("ddim", 5, 64, 5e-4 + 0.5 / 255)]
)
def test_the_manifest_tells_the_sampler_and_a_kept_certificate(exported, family, steps, noise_dim, bound):
    artifact, manifest = exported[1][family]
    assert (manifest.family, manifest.name) == (family, f"digits-{family}-{steps}")
    assert (manifest.noise_dim, manifest.latent_dim, manifest.prior["steps"]) == (noise_dim, 64, steps)
    figures = {figure.name: figure for figure in manifest.certificate}
    assert {"u_error", "score", "tail_error", "image_parity", "row_difference"} < set(figures)
    assert figures["image_parity"].bound == pytest.approx(bound)
    assert all(figure.is_kept for figure in figures.values())
    assert verify(artifact, exported[0]) == (manifest, manifest.certificate)


@pytest.mark.parametrize("family", ["ddpm", "ddim"])
def test_images_are_those_of_the_index_alone(exported, family):
    with kaem.load(exported[1][family][0], workers=2) as sampler:
        whole = sampler.sample(20, seed=3).astype(np.float32)
        assert whole.std() > 0.05
        assert np.abs(whole[0] - whole[1]).max() > 0.1
        for start, num in ((0, 1), (7, 1), (5, 9), (19, 1)):
            assert np.array_equal(sampler.sample(num, seed=3, start=start), whole[start : start + num])


def _altered(artifact, target, *, graph=lambda model: None, manifest=lambda content: None):
    model = onnx.load(artifact)
    graph(model)
    content = json.loads(model.metadata_props[0].value)
    manifest(content)
    content["graph_fingerprint"] = graph_fingerprint(model)
    helper.set_model_props(model, {MANIFEST_KEY: seal(content)})
    target.write_bytes(model.SerializeToString())
    return target


@pytest.mark.parametrize(("name", "change"), [("sigma", 1.1), ("const_1403580_i64", 2), ("of_noise", 1.05)])
def test_a_changed_step_breaks_the_parity(exported, tmp_path, name, change):
    def bend(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value * np.asarray(change).astype(value.dtype)), name))

    bent = _altered(exported[1]["ddpm"][0], tmp_path / "bent.onnx", graph=bend)
    _, figures = verify(bent, exported[0])
    assert [figure.name for figure in figures if not figure.is_kept] == ["image_parity"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "ddpm"}, "'eta': 1.0"),
        ({"family": "vae"}, "family is vae"),
        ({"steps": 3}, "what cannot be: sampling_steps = 3"),
        ({"eta": 0.5}, "prior"),
    ],
)
def test_a_manifest_that_lies_of_its_sampler_is_caught(exported, tmp_path, change, said):
    def lie(content):
        (content if "family" in change else content["prior"]).update(change)

    with pytest.raises(VerificationError, match=said):
        verify(_altered(exported[1]["ddim"][0], tmp_path / "liar.onnx", manifest=lie), exported[0])


def test_claiming_fewer_steps_than_the_graph_takes_breaks_the_parity(exported, tmp_path):
    def claim(said):
        said["prior"]["steps"], said["name"] = 4, "digits-ddim-4"

    liar = _altered(exported[1]["ddim"][0], tmp_path / "m.onnx", manifest=claim)
    _, figures = verify(liar, exported[0])
    assert [figure.name for figure in figures if not figure.is_kept] == ["image_parity"]


def test_steps_that_do_not_divide_the_levels_are_refused_and_leave_no_file(exported, tmp_path):
    with pytest.raises(ConfigError, match="sampling_steps = 7 does not divide"):
        export(exported[0], tmp_path / "model.onnx", sampling=Sampling(steps=7))
    assert list(tmp_path.iterdir()) == []


def test_images_too_large_for_step_noise_are_refused_before_any_work(tmp_path):
    checkpoint = write_baseline_checkpoint(
        tmp_path / "ckpt.pt", "ddpm", "diffusion.sampler=ddpm", "data.image_shape=[3, 256, 256]", "data.source=files"
    )
    with pytest.raises(ConfigError, match=r"1,376,256 uniforms.*--sampler ddim"):
        export(checkpoint, tmp_path / "model.onnx")
