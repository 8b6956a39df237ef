"""From uniforms to latents, every kind of prior, without a generator."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from baselines import session_of
from heads import head_of_prior, tabulate
from models import VARIANTS, random_model

from kaem.noise import uniforms
from kaem_export.priors.layouts import choose_layout
from kaem_export.tables.collapse import collapse

_ENDS = ("low", "high", "grid_low", "grid_high")


def _head(prior, *, keep_components=False):
    """Return uniforms -> latents, in ONNX Runtime, and D."""
    session = session_of(head_of_prior(prior, keep_components=keep_components))
    return (lambda uniform: session.run(None, {"uniform": uniform})[0]), session.get_inputs()[0].shape[1]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("gaussian mixture", 6),
        ("gaussian independent", 12),
        ("shared uniforms", 4),
        ("learnable gaussian independent", 12),
        ("learnable gaussian mixture", 6),
    ],
)
@pytest.mark.parametrize("amplitude", [1.5, 0.0])
def test_kept_components_follow_the_law_of_the_collapsed_latents(variant, expected, amplitude):
    _, model = random_model(*VARIANTS[variant], "prior.low=-20", "prior.high=20", amplitude=amplitude)
    head, noise = _head(model.prior, keep_components=True)
    assert noise == expected
    latents = head(uniforms(6, 0, 20_000, noise)).astype(np.float64)
    laws = collapse(model.prior)
    for q in range(3):
        assert scipy.stats.kstest(latents[:, q], lambda z, q=q: laws.evaluate(q, z)[0]).pvalue > 1e-3


def test_offset_and_scale_of_gaussians_are_folded_into_the_frame():
    overrides = ("prior.low=-20", "prior.high=20", "prior.num_components=1", "prior.frame=global")
    _, model = random_model(*VARIANTS["learnable gaussian mixture"], *overrides, amplitude=0.0)
    assert choose_layout(model.prior).laws.num_laws == 1
    nodes = head_of_prior(model.prior).graph.node
    assert nodes[-1].op_type == "Gemm"
    assert len(nodes) <= 37
    head, _ = _head(model.prior)
    v = uniforms(2, 0, 2000, 3)
    mean, std = (value.detach().double().numpy()[:, 0] for value in model.prior.reference.moments())
    u = mean + std * scipy.stats.norm.ppf(np.mod(v.astype(np.float64), 1))
    frame = model.prior.frame
    expected = frame.offset.detach().numpy() + u @ frame.matrix.detach().numpy().T
    assert np.abs(head(v) - expected).max() < 1e-4


# What stands for 1 is 8, 1/4, -2, and where no power of two is in the domain 7 and -3.5.
@pytest.mark.parametrize("domain", [(-8.0, 8.0), (-0.3, 0.4), (-3.0, 0.1), (5.0, 7.0), (-3.5, -2.5)])
# Functions of their own, one that all share, picked by its steps, and one of very many experts.
@pytest.mark.parametrize(("amplitude", "experts"), [(1.5, 6), (0.0, 6), (0.0, 60), (0.0, 120)])
def test_experts_in_own_frames_give_offset_plus_matrix_times_quantiles(domain, amplitude, experts):
    overrides = [f"prior.{end}={value}" for end, value in zip(_ENDS, 2 * domain, strict=True)]
    overrides.append(f"prior.num_components={experts}")
    _, model = random_model(*VARIANTS["experts in own frames"], *overrides, amplitude=amplitude)
    prior = model.prior
    layout, tables = tabulate(prior)
    frame = layout.frame
    assert (tables.num_functions == 1) == (amplitude == 0.0)
    if amplitude == 0.0:  # very many experts do not make the search wide for all
        first = next(held for held in head_of_prior(prior).graph.initializer if held.name == "first")
        assert first.dims[0] <= 15
    head, noise = _head(prior)
    uniform = uniforms(4, 0, 20_000, noise)
    expert = np.searchsorted(layout.thresholds, uniform[:, -1], side="right")
    assert len(set(expert)) == prior.num_components
    u = np.empty((len(uniform), noise - 1))
    for k in range(prior.num_components):
        rows = expert == k
        u[rows] = tables.reading(layout.columns[k]).look_up(uniform[rows, :-1])
    if layout.own_affine is not None:
        u = layout.own_affine.offset[expert] + layout.own_affine.scale[expert] * u
    expected = frame.offset[expert] + np.einsum("nij,nj->ni", frame.matrix[expert].astype(np.float64), u)
    assert np.abs(head(uniform) - expected).max() < 1e-6 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize(
    "variant", ["gaussian mixture", "experts in own frames", "experts in a frame", "shared uniforms"]
)
@pytest.mark.parametrize("keep_components", [False, True])
def test_rows_do_not_depend_on_their_batch(variant, keep_components):
    head, noise = _head(random_model(*VARIANTS[variant])[1].prior, keep_components=keep_components)
    v = uniforms(3, 0, 67, noise)
    whole = head(v)
    for first, size in ((0, 1), (5, 2), (13, 31), (66, 1)):
        assert np.array_equal(head(v[first : first + size]), whole[first : first + size])
