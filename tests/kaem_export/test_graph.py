from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.stats
import torch
from heads import graph_of_prior, tabulate
from models import VARIANTS, random_model

from kaem.errors import ArtifactError
from kaem.noise import uniforms
from kaem_export.graph import build_graph, trace_generator
from kaem_export.onnx_builder import OPSET


@pytest.fixture(scope="module")
def compiled():
    _, model = random_model()
    _, tables = tabulate(model.prior)
    return tables, model.float(), graph_of_prior(model.prior, model.generator)


def _run(graph, uniform, *outputs):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {"uniform": uniform})


def test_latents_are_those_of_the_lookup_in_numpy_bit_for_bit(compiled):
    tables, _, graph = compiled
    depth = np.geomspace(2.0**-33, 0.5, 5000, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    uniform = np.concatenate([uniforms(1, 0, 5000, 3), depth, -depth])
    (latent,) = _run(graph, uniform, "latent")
    signed = np.where(uniform >= 0.5, uniform - np.float32(1), uniform)
    assert np.array_equal(latent, tables.look_up(signed))


def test_plain_and_signed_uniforms_name_the_same_quantile(compiled):
    _, _, graph = compiled
    plain = (np.arange(1, 4096, dtype=np.float32) / 4096)[:, None] * np.ones((1, 3), np.float32)
    signed = np.where(plain >= 0.5, plain - 1, plain)
    (from_plain,), (from_signed,) = _run(graph, plain, "latent"), _run(graph, signed, "latent")
    assert np.array_equal(from_plain, from_signed)


def test_the_ends_of_both_conventions_stay_in_the_domain(compiled):
    _, _, graph = compiled
    ends = np.array([0.0, -0.0, 0.5, -0.5, 2.0**-33, -(2.0**-33), 1 - 2.0**-24], np.float32)
    (latent,) = _run(graph, np.repeat(ends[:, None], 3, axis=1), "latent")
    assert np.isfinite(latent).all()
    assert np.all(latent >= -6)
    assert np.all(latent <= 6)


def test_images_are_those_of_torch_on_the_same_latents(compiled):
    _, model, graph = compiled
    latent, image = _run(graph, uniforms(2, 0, 64, 3), "latent", "image")
    with torch.no_grad():
        expected = model.generator(torch.from_numpy(latent)).numpy()
    assert np.abs(image - expected).max() < 1e-6


def test_uint8_images_are_the_float_ones_rounded_to_nearest(compiled):
    _, model, graph = compiled
    uniform = uniforms(3, 0, 64, 3)
    (image,) = _run(graph, uniform, "image")
    (rounded,) = _run(graph_of_prior(model.prior, model.generator, "uint8"), uniform, "image")
    assert rounded.dtype == np.uint8
    assert np.array_equal(rounded, np.rint(image * np.float32(255)))


def test_the_same_input_gives_the_same_bytes(compiled):
    _, model, graph = compiled
    again = graph_of_prior(model.prior, model.generator)
    assert again.SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


def test_the_graph_is_plain_onnx_of_the_stated_opset_and_says_nothing_of_its_making(compiled):
    _, _, graph = compiled
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
    assert not graph.functions
    assert b".py" not in graph.SerializeToString()
    assert {value.name for value in graph.graph.output} == {"image", "latent"}
    onnx.checker.check_model(graph, full_check=True)


@pytest.fixture(scope="module")
def compiled_experts():
    _, model = random_model(*VARIANTS["experts in a frame"])
    layout, tables = tabulate(model.prior)
    state = {name: value.detach().float().numpy() for name, value in model.prior.frame.state_dict().items()}
    framed, _ = build_graph(layout, tables, model.float().generator, "float32")
    layout.frame = None
    plain, _ = build_graph(layout, tables, model.generator, "float32")
    return layout, tables, state, (plain, framed)


def test_a_frame_turns_the_latents_of_the_unframed_graph(compiled_experts):
    _, _, state, (plain, framed) = compiled_experts
    uniform = uniforms(7, 0, 500, 4)
    (u,), (z,) = _run(plain, uniform, "latent"), _run(framed, uniform, "latent")
    expected = state["offset"] + u.astype(np.float64) @ state["matrix"].T.astype(np.float64)
    assert np.abs(z - expected).max() < 5e-6


def test_experts_are_picked_as_often_as_their_weights(compiled_experts):
    layout, _, _, (plain, _) = compiled_experts
    # All other uniforms fixed: the latents name the expert.
    uniform = np.full((50_000, 4), 0.25, np.float32)
    uniform[:, 3] = uniforms(8, 0, 50_000, 1)[:, 0]
    (latent,) = _run(plain, uniform, "latent")
    by_choice = latent[np.argsort(uniform[:, 3])]
    _, first = np.unique(by_choice, axis=0, return_index=True)
    counts = np.diff(np.append(np.sort(first), len(latent)))
    assert scipy.stats.chisquare(counts, layout.weights * len(latent)).pvalue > 1e-3


def test_every_choice_is_an_expert_in_both_conventions_and_at_their_ends(compiled_experts):
    layout, _, _, (plain, _) = compiled_experts
    signed = np.array([-0.5, -0.25, -(2.0**-33), 0.0, 2.0**-33, 0.25, 0.5, *layout.thresholds], np.float32)
    uniform = np.full((len(signed), 4), 0.25, np.float32)
    uniform[:, 3] = signed
    (latent,) = _run(plain, uniform, "latent")
    assert np.isfinite(latent).all()
    uniform[:, 3] = np.where(signed < -(2.0**-25), signed + 1, np.maximum(signed, 0))
    (from_plain,) = _run(plain, uniform, "latent")
    is_equal = (latent == from_plain).all(axis=1)
    # -2^-33 and 0 lie on one side of every threshold here; -0.5 and +0.5 name one quantile.
    assert is_equal.all()
    assert np.array_equal(latent[0], latent[6])


def test_choosing_is_exact_at_a_threshold(compiled_experts):
    layout, _, _, (plain, _) = compiled_experts
    uniform = np.full((2, 4), 0.25, np.float32)
    for threshold in layout.thresholds:
        uniform[:, 3] = np.nextafter(threshold, np.float32(-1)), threshold
        (latent,) = _run(plain, uniform, "latent")
        assert not np.array_equal(latent[0], latent[1])


class _Generator(torch.nn.Module):
    """Images of a linear layer, their number taken in a way of the caller's."""

    def __init__(self, rows) -> None:
        super().__init__()
        self.layer, self.rows = torch.nn.Linear(4, 12), rows

    def forward(self, latent):
        return torch.sigmoid(self.layer(latent).reshape(self.rows(latent), 3, 2, 2))


@pytest.mark.parametrize("rows", [lambda x: x.shape[0], lambda x: x.size(0), lambda x: -1], ids=["shape", "size", "-1"])
def test_a_generator_may_take_its_number_of_rows_from_its_input(rows):
    graph = trace_generator(_Generator(rows), 4)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for num in (1, 5):
        assert session.run(None, {"latent": np.zeros((num, 4), np.float32)})[0].shape == (num, 3, 2, 2)


@pytest.mark.parametrize("rows", [len, lambda x: int(x.shape[0]), lambda x: 2], ids=["len", "int", "2"])
def test_a_generator_that_torch_traces_for_one_number_of_rows_is_refused(rows):
    with pytest.raises(
        ArtifactError, match="called with 2 rows, and as torch traces it it can compute no other"
    ) as caught:
        trace_generator(_Generator(rows), 4)
    assert "x.shape[0]" in (caught.value.hint or "")
