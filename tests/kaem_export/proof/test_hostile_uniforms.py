"""A row that is no uniform noise harms no other row, in any kind of graph."""

from __future__ import annotations

import numpy as np
import pytest
from baselines import session_of
from exported_graphs import INT8, KINDS, LARGE_BATCH, LOOPS, with_bytes

_HOSTILE = {
    "NaN": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "1e30": 1e30,
    "-1e30": -1e30,
    "denormal": 1e-42,
    "negative denormal": -1e-45,
    "1": 1.0,
    "-0.75": -0.75,
}
_ALL, _LAST, _FIRST = 3, 11, 12
"""Rows of which all uniforms are hostile, the last, the first."""

_GRAPHS = {**KINDS, **LOOPS, **LARGE_BATCH, **INT8}


@pytest.mark.parametrize("kind", _GRAPHS)
def test_a_hostile_row_harms_no_other_and_is_read_as_the_nearest_uniform(kind):
    graph = _GRAPHS[kind]()
    rows = 33 if kind in LARGE_BATCH else 19
    others = np.delete(np.arange(rows), [_ALL, _LAST, _FIRST])
    for model in (graph, with_bytes(graph)):
        session = session_of(model)
        dim = session.get_inputs()[0].shape[1]
        uniform = np.random.default_rng(0).random((rows, dim), dtype=np.float32) - np.float32(0.5)

        def run(value, session=session, uniform=uniform):
            spoilt = uniform.copy()
            spoilt[_ALL], spoilt[_LAST, -1], spoilt[_FIRST, 0] = value, value, value
            return session.run(None, {"uniform": spoilt})

        untouched = session.run(None, {"uniform": uniform})
        nearest = {side: run(value) for side, value in ((1, 1 - 2.0**-24), (-1, -0.5))}
        for name, value in _HOSTILE.items():
            found = run(np.float32(value))
            for before, after in zip(untouched, found, strict=True):
                assert np.array_equal(before[others], after[others]), name
            if np.isnan(value):
                continue
            assert all(np.isfinite(part.astype(np.float64)).all() for part in found), name
            if not -0.5 <= value < 1:
                for near, after in zip(nearest[int(np.sign(value))], found, strict=True):
                    assert np.array_equal(near, after), name


@pytest.mark.parametrize("kind", ["mixture", "independent", "shared uniforms", "experts in own frames", "VAE", "DDIM"])
def test_a_nan_stays_one_in_the_latents_of_its_row(kind):
    session = session_of(_GRAPHS[kind]())
    uniform = np.full((5, session.get_inputs()[0].shape[1]), 0.25, np.float32)
    uniform[2, 0] = np.nan
    (latents,) = session.run(["latent"], {"uniform": uniform})
    assert np.isnan(latents[2]).any()
    assert np.isfinite(latents[[0, 1, 3, 4]]).all()


@pytest.mark.parametrize("kind", ["mixture", "experts", "experts in own frames", "components of a mixture", "VAE"])
def test_the_clip_leaves_every_valid_uniform_as_it_is(kind):
    graph = _GRAPHS[kind]()
    without = type(graph)()
    without.CopyFrom(graph)
    clip = next(node for node in without.graph.node if node.op_type == "Clip" and "uniform" in node.input)
    for node in without.graph.node:
        node.input[:] = ["uniform" if name == clip.output[0] else name for name in node.input]
    without.graph.node.remove(clip)
    dim = session_of(graph).get_inputs()[0].shape[1]
    ends = [-0.5, -0.0, 0.0, 1e-45, -1e-45, 2.0**-33, 0.5, 1 - 2.0**-24, np.nextafter(np.float32(0.5), 0)]
    uniform = np.random.default_rng(1).choice(np.float32(ends), (64, dim))
    for with_clip, plain in zip(
        *(session_of(model).run(None, {"uniform": uniform}) for model in (graph, without)), strict=True
    ):
        assert np.array_equal(with_clip, plain)
