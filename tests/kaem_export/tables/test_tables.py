"""Quantile tables of the whole zoo, on the float32 graph that artifacts are made of."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
import pytest
import scipy.stats
from heads import written_nodes
from hypothesis import given, settings
from hypothesis import strategies as st
from table_figures import in_every_leaf, squared_tilt
from zoo import NUM, ZOO

from kaem.errors import ConfigError
from kaem.noise import uniforms
from kaem_export.onnx_builder import start_graph, to_model
from kaem_export.tables import tree
from kaem_export.tables.chebyshev_cdf import POINTS
from kaem_export.tables.fit_tables import bake, run_lookup, score
from kaem_export.tables.lookup import look_up, sign_uniforms
from kaem_export.tables.normal import draw_normals

DEPTH = np.geomspace(2.0**-33, 0.5, 4000, dtype=np.float32)


@cache
def _baked(name):
    laws = ZOO[name].laws()
    return laws, bake(laws).tables


def _noise(count):
    """Signed uniforms (N, 1): random ones, and both tails down to 2^-33 evenly over log |v|."""
    return np.concatenate([uniforms(5, 0, count, 1), DEPTH[:, None], -DEPTH[:, None]])


def _scores(name, v):
    laws, tables = _baked(name)
    v = np.broadcast_to(v, (len(v), len(laws))).astype(np.float32)
    v = np.where(np.abs(v) < 2.0**-33, np.float32(2.0**-33), v)
    z = run_lookup(tables, v)
    values = laws.parts[0].evaluate(np.arange(len(laws)), z.astype(np.float64))
    return v, z, *score(*values, v, z)


@pytest.mark.parametrize("name", ZOO)
def test_uniforms_are_right_to_24_bits_or_latents_to_one_float(name):
    _, tables = _baked(name)
    draws = _noise(1_000_000 // (len(ZOO) * NUM))
    scores = np.concatenate([_scores(name, v)[2].reshape(-1) for v in (draws, in_every_leaf(tables, 16))])
    assert np.quantile(scores, 0.999) <= 1.0
    assert scores.max() <= 1.25


@pytest.mark.parametrize("name", ZOO)
def test_tails_keep_their_relative_precision(name):
    tails = np.concatenate([DEPTH, -DEPTH])[:, None]
    v, _, _, u_error, rounding = _scores(name, tails[np.abs(tails[:, 0]) >= 1e-8])
    relative = np.maximum(u_error - rounding, 0) / np.abs(v)
    assert relative[np.abs(v) >= 1e-6].max() <= 1e-3
    assert relative.max() <= 1e-2


@pytest.mark.parametrize("name", ZOO)
def test_quantiles_ascend_to_one_float_and_stay_in_the_domain(name):
    laws, tables = _baked(name)
    v = np.unique(np.concatenate([_noise(20_000)[:, 0], *_neighbours(tables)]))
    z = run_lookup(tables, np.repeat(v[:, None], len(laws), axis=1))
    low, high = laws.support
    assert z.min() >= low
    assert z.max() <= high
    for half in (v < 0, v > 0):
        down = -np.diff(z[half], axis=0)
        assert np.all(down <= np.spacing(np.abs(z[half][1:])))


def _neighbours(tables):
    """The floats around every separator."""
    starts = tables.leaves[:, 0]
    return [np.nextafter(starts[starts != 0], np.float32(-1)), starts[starts != 0]]


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_is_the_numpy_lookup_bit_for_bit_whatever_the_batch(name):
    _, tables = _baked(name)
    v = np.broadcast_to(_noise(3000), (11_000, NUM))[:, : len(tables.columns)]
    z = run_lookup(tables, np.ascontiguousarray(v))
    assert np.array_equal(z, tables.look_up(v))
    assert np.array_equal(run_lookup(tables, np.ascontiguousarray(v[37:38])), z[37:38])
    assert np.array_equal(run_lookup(tables, np.ascontiguousarray(v[5:18])), z[5:18])


@pytest.mark.parametrize("name", ZOO)
def test_no_test_of_the_samples_can_see_the_table(name):
    """The best possible test of n samples has the noncentrality n times the integral of (F(T(u))' - 1)^2."""
    laws, tables = _baked(name)
    tilt = squared_tilt(laws, tables)
    assert tilt.max() <= 2e-7
    if name in {"near flat", "rbf20 f 2", "rbf20 f 8", "gaussian", "lognormal", "relu kink"}:
        assert tilt.max() <= 1e-9


def test_sizes_are_small():
    for name in ZOO:
        most = 12_000 if name == "fourier flat" else 7_000  # 100 extremes, each with about three leaves
        assert _baked(name)[1].num_bytes / len(_baked(name)[0]) < most, name


def test_more_leaves_than_float32_can_number_are_refused(monkeypatch):
    monkeypatch.setattr(tree, "_MOST_ROWS", 100)
    with pytest.raises(ConfigError, match=r"4 quantile functions need .* leaves, but a graph can number 100"):
        bake(ZOO["rbf20 f 8"].laws())


def test_the_lookup_has_36_nodes_two_gathers_and_plain_types():
    _, tables = _baked("rbf20 f 8")
    nodes = written_nodes(lambda op, uniform: look_up(op, tables, sign_uniforms(op, uniform)), tables.columns.size)
    assert len(nodes) <= 36
    assert sum(node.op_type == "Gather" for node in nodes) == 2
    assert not {node.op_type for node in nodes} & {"Loop", "If", "NonZero", "BitwiseAnd", "BitShift", "Scan"}
    assert all(node.domain == "" for node in nodes)


UNIFORM = st.floats(-0.5, 0.5, width=32)


@given(
    st.sampled_from(["rbf20 f 8", "near flat", "gaussian"]),
    st.lists(UNIFORM, min_size=1),
    st.lists(UNIFORM, max_size=40).map(sorted),
)
@settings(max_examples=60, deadline=None)
def test_steps_beside_quantile_functions_count_thresholds_and_change_no_function(name, values, thresholds):
    _, tables = _baked(name)
    thresholds = np.array(thresholds, np.float32)
    v = np.array([*values, *thresholds], np.float32)[:, None].repeat(tables.num_functions + 1, axis=1)
    more = tables.with_steps(thresholds, np.float32(0.5)).reading(np.arange(tables.num_functions + 1))
    found = more.look_up(v)
    assert np.all(found[:, -1] == np.float32(0.5))
    assert np.array_equal(more.leaf(v)[:, -1], np.searchsorted(thresholds, v[:, -1], side="right"))
    assert np.array_equal(found[:, :-1], tables.reading(np.arange(tables.num_functions)).look_up(v[:, :-1]))


@given(st.sampled_from(["rbf20 f 8", "gaps e^-40", "gaussian"]), st.lists(st.floats(-0.5, 0.5, width=32), min_size=1))
@settings(max_examples=60, deadline=None)
def test_the_tree_finds_the_leaf_that_a_search_through_all_finds(name, values):
    _, tables = _baked(name)
    v = np.repeat(np.array(values, np.float32)[:, None], len(tables.columns), axis=1)
    for function, leaf in enumerate(tables.leaf(v).T):
        first = tables.block[function] * tables.fan_out
        last = tables.block[function + 1] * tables.fan_out if function + 1 < tables.num_functions else None
        used = np.flatnonzero(tables.leaves[first:last, 3:].any(axis=1)) + first
        starts = tables.leaves[used, 0]
        expected = used[np.maximum(np.searchsorted(starts, v[:, function], side="right") - 1, 0)]
        assert np.array_equal(leaf, expected)


@given(st.floats(-0.5, 0.5, width=32), st.floats(-0.5, 0.5, width=32))
@settings(max_examples=200, deadline=None)
def test_of_two_uniforms_the_larger_has_the_larger_quantile(first, second):
    _, tables = _baked("rbf50 f 10")
    low, high = sorted(np.minimum(np.float32([first, second]) % 1, np.float32(1 - 2**-24)))
    signed = np.array([[x - 1 if x >= 0.5 else x] * len(tables.columns) for x in (low, high)], np.float32)
    z = tables.look_up(signed)
    assert np.all(z[1] - z[0] >= -np.spacing(np.abs(z[0])))


def test_a_million_draws_of_the_zoo_pass_every_test_of_their_law():
    for name in ("rbf20 f 8", "gaps e^-40", "morlet 5"):
        laws, tables = _baked(name)
        z = run_lookup(tables, np.repeat(uniforms(9, 0, 300_000, 1), len(laws), axis=1))
        u = laws.parts[0].evaluate(np.arange(len(laws)), z.astype(np.float64))[0]
        assert scipy.stats.kstest(u[:, 0], "uniform").pvalue > 1e-3
        assert scipy.stats.chisquare(np.bincount((u[:, 0] * 4096).astype(int), minlength=4096)).pvalue > 1e-3


def test_standard_normals_are_drawn_in_both_conventions():
    builder, uniform = start_graph("uniform", 3)
    model = to_model(builder, draws=draw_normals(builder.op, uniform).quantiles)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    v = np.broadcast_to(_noise(20_000), (28_000, 3))
    (draws,) = session.run(None, {"uniform": np.ascontiguousarray(v)})
    expected = np.where(v < 0, -scipy.stats.norm.ppf(-v.astype(float)), scipy.stats.norm.ppf(v.astype(float)))
    density = scipy.stats.norm.pdf(expected)
    assert np.abs((draws - expected) * density).max() < 1e-7
    assert np.abs(draws - expected).max() < 1e-2  # at 2^-33
    plain = np.array([[0.75, 0.5, 0.25]], np.float32)
    (both,) = session.run(None, {"uniform": np.concatenate([plain, np.float32([[-0.25, -0.5, 0.25]])])})
    assert np.array_equal(both[0], both[1])
    assert session.run(None, {"uniform": np.zeros((1, 3), np.float32)})[0].min() >= -6.8


def test_nodes_of_a_cell_lie_inside_it():
    assert np.all(np.diff(POINTS) > 0)
    assert np.abs(POINTS).max() < 1
