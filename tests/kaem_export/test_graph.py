from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import random_model

from kaem.noise import uniforms
from kaem_export.collapse import collapse
from kaem_export.graph import OPSET, build_graph
from kaem_export.quantile import LEVEL_SCALE, TABLE_CELLS, QuantileTables, quantile_tables


def _lookup(tables: QuantileTables, uniform):
    """The documented lookup once more, in float64 numpy."""
    v = uniform.astype(np.float64)
    v = np.where(v >= 0.5, v - 1, v)
    level = (np.abs(v) < 0.5 / LEVEL_SCALE).astype(int) + (np.abs(v) < 0.5 / LEVEL_SCALE**2)
    position = v * TABLE_CELLS * LEVEL_SCALE**level
    cell = np.floor(position).astype(int)
    q = np.arange(v.shape[1])[None]
    row = cell % TABLE_CELLS
    return tables.left[q, level, row] + (position - cell) * tables.width[q, level, row].astype(np.float64)


@pytest.fixture(scope="module")
def compiled():
    _, model = random_model()
    tables = quantile_tables(collapse(model.prior))
    return tables, model.float(), build_graph(tables, model.generator, "float32")


def _run(graph, uniform, *outputs):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {"uniform": uniform})


def test_latents_follow_the_documented_lookup_in_all_levels(compiled):
    tables, _, graph = compiled
    depth = np.geomspace(2.0**-33, 0.5, 5000, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    uniform = np.concatenate([uniforms(1, 0, 5000, 3), depth, -depth])
    (latent,) = _run(graph, uniform, "latent")
    assert np.allclose(latent, _lookup(tables, uniform), rtol=2e-7, atol=2e-7)


def test_plain_and_signed_uniforms_name_the_same_quantile(compiled):
    _, _, graph = compiled
    plain = (np.arange(1, 4096, dtype=np.float32) / 4096)[:, None] * np.ones((1, 3), np.float32)
    signed = np.where(plain >= 0.5, plain - 1, plain)
    (from_plain,), (from_signed,) = _run(graph, plain, "latent"), _run(graph, signed, "latent")
    assert np.array_equal(from_plain, from_signed)


def test_the_ends_of_both_conventions_stay_in_the_table(compiled):
    tables, _, graph = compiled
    ends = np.array([0.0, -0.0, 0.5, -0.5, 2.0**-33, -(2.0**-33), 1 - 2.0**-24], np.float32)
    (latent,) = _run(graph, np.repeat(ends[:, None], 3, axis=1), "latent")
    assert np.isfinite(latent).all()
    assert np.all(latent >= tables.left.min(axis=(1, 2)))
    assert np.all(latent <= (tables.left + tables.width).max(axis=(1, 2)))


def test_images_are_those_of_torch_on_the_same_latents(compiled):
    _, model, graph = compiled
    latent, image = _run(graph, uniforms(2, 0, 64, 3), "latent", "image")
    with torch.no_grad():
        expected = model.generator(torch.from_numpy(latent)).numpy()
    assert np.abs(image - expected).max() < 1e-6


def test_uint8_images_are_the_float_ones_rounded_to_nearest(compiled):
    tables, model, graph = compiled
    uniform = uniforms(3, 0, 64, 3)
    (image,) = _run(graph, uniform, "image")
    (rounded,) = _run(build_graph(tables, model.generator, "uint8"), uniform, "image")
    assert rounded.dtype == np.uint8
    assert np.array_equal(rounded, np.rint(image * np.float32(255)))


def test_the_same_input_gives_the_same_bytes(compiled):
    tables, model, graph = compiled
    again = build_graph(tables, model.generator, "float32")
    assert again.SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


def test_the_graph_is_plain_onnx_of_the_stated_opset_and_says_nothing_of_its_making(compiled):
    _, _, graph = compiled
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
    assert not graph.functions
    assert b".py" not in graph.SerializeToString()
    assert {value.name for value in graph.graph.output} == {"image", "latent"}
    onnx.checker.check_model(graph, full_check=True)
