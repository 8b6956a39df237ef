"""Latents that no density fits well: each is fitted in spite of it, or named, and no figure is silently wrong."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from models import write_random_checkpoint

from kaem.errors import ConfigError, DataError
from kaem_train.checkpoint import read_checkpoint, write_checkpoint
from kaem_train.config import PriorConfig
from kaem_train.data import Dataset, Images
from kaem_train.fitting.fit_prior import PriorName, choose_prior_configs, fit_prior
from kaem_train.fitting.judge_split import Division
from kaem_train.fitting.latent_rows import find_outliers, make_row_keys, split_rows
from kaem_train.fitting.latents import leave_out_outliers, read_latents
from kaem_train.model.prior.factorised import build_prior
from kaem_train.posterior.start import start_prior

PRIORS = PriorName.__args__
NORMAL_QUARTILES = scipy.stats.norm.ppf([0.25, 0.75])


def _normal(rows=600, columns=6, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def _read(folder, array, **options):
    np.save(folder / "z.npy", array)
    return read_latents(folder / "z.npy", holdout=0.2, seed=0, **options)


def _fit(latents, name, *assignments, steps=20):
    configs = choose_prior_configs(name, latents.fitted.shape[1], latents.num_distinct, assignments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fit_prior(latents, configs, steps=steps)


def _quartiles(fit):
    first = fit.prior.sample(8000, torch.Generator().manual_seed(0)).reshape(8000, -1)[:, 0]
    return np.quantile(first.double().numpy(), [0.25, 0.75])


def _with_outliers(array, rows, value):
    array = array.copy()
    array[rows] *= value
    return array


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize(("rows", "outliers", "factor"), [(600, 3, 1e4), (600, 3, 100.0), (10_000, 1, 1e5)])
def test_a_few_outliers_leave_the_prior_of_all_others_where_it_was(tmp_path, name, rows, outliers, factor):
    clean = _normal(rows, 4)
    latents = _read(tmp_path, _with_outliers(clean, slice(0, outliers), factor))
    assert latents.num_outliers == outliers
    fit = _fit(latents, name)
    assert _quartiles(fit) == pytest.approx(NORMAL_QUARTILES, abs=0.15)
    # The entropy of N(0, I); the mean of at least 60 log densities has deviation sqrt(Q / 2 / 60) = 0.18.
    assert fit.scores.prior == pytest.approx(-2.0 * (1.0 + math.log(2.0 * math.pi)), abs=0.6)


def test_outliers_are_fitted_where_they_are_to_be_kept(tmp_path):
    array = _with_outliers(_normal(), slice(0, 3), 1e4)
    latents = _read(tmp_path, array, keep_outliers=True)
    assert latents.num_outliers == 0
    assert sum(len(part) for part in (latents.fitted, latents.choosing, latents.scored)) == 600


@pytest.mark.parametrize("law", ["norm", "laplace", "uniform", "bernoulli", "cauchy", "two clusters"])
def test_rows_that_belong_to_the_law_are_no_outliers(law):
    if law == "two clusters":  # one of 2 in 100: a small mode, not a slip
        array = _normal(2000, 3)
        array[:40] += 500.0
    else:
        options = {"p": 0.02} if law == "bernoulli" else {}
        array = getattr(scipy.stats, law)(**options).rvs((2000, 3), random_state=1).astype(float)
    assert not find_outliers([torch.from_numpy(array)])[0].any()


def test_outliers_are_found_among_latents_that_are_mostly_one_number():
    array = np.maximum(_normal(2000, 5, seed=3) - 0.5, 0.0)
    array[7, 2] = 1e6
    found = find_outliers([torch.from_numpy(array[:1500]), torch.from_numpy(array[1500:])])
    assert torch.cat(found).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("columns", [1, 2])
def test_one_or_two_latents_reach_the_entropy_of_a_normal(tmp_path, name, columns):
    scores = _fit(_read(tmp_path, _normal(2000, columns)), name).scores
    # 200 scored log densities have a mean of deviation sqrt(Q / 2 / 200).
    entropy = columns * 0.5 * (1.0 + math.log(2.0 * math.pi))
    assert scores.full_gaussian == pytest.approx(-entropy, abs=0.05 * 4 * math.sqrt(columns))
    assert scores.prior == pytest.approx(scores.full_gaussian, abs=0.06)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((600, 6), 0.3), "600 latents that are all the same"),
        (np.repeat(_normal(20), 30, 0), "600 latents of which only 20 differ"),
        (np.repeat(_normal(2, 1), 300, 0), "600 latents of which only 2 differ"),
        (np.random.default_rng(0).integers(0, 2, (600, 6)).astype(float), "of which only 64 differ"),
        (_normal() * [1, 1, 0, 1, 1, 1] + 2.0, "latent 2 has the same value in every row"),
        (
            np.where(np.arange(600)[:, None] == 5, [1e6, 0, 0], [1, 0, 0]) + _normal(600, 3) * [0, 1, 1],
            "latent 0 has the same value in all but 1 of 600",
        ),
        (_normal() * 1e-38, "latent 0 has deviation 1e-38, outside"),
        (_normal() * 1e36, "latent 0 has deviation .*e.36, outside"),
    ],
    ids=["equal", "20 distinct", "2 distinct", "bits", "constant", "constant but for one", "tiny", "huge"],
)
def test_latents_without_a_density_are_refused_by_their_true_cause(tmp_path, array, message):
    with pytest.raises(DataError, match=message):
        _read(tmp_path, array)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_any_scale_that_float32_can_compute_with_gives_the_same_prior(tmp_path, scale):
    array = _normal()
    one, other = (_fit(_read(tmp_path, array * factor), "own-frames").scores for factor in (1.0, scale))
    assert other.prior + 6.0 * math.log(scale) == pytest.approx(one.prior, abs=1e-2)


@pytest.mark.parametrize("name", ["own-frames", "experts"])
def test_more_experts_than_latents_that_differ_are_refused(tmp_path, name):
    latents = _read(tmp_path, np.repeat(_normal(150), 4, 0))
    assert 110 <= latents.num_distinct <= 130
    with pytest.raises(ConfigError, match=f"{latents.num_distinct} different latents cannot start"):
        _fit(latents, name, "prior.num_components=140")


@pytest.mark.parametrize("name", PRIORS)
def test_repeated_rows_are_scored_as_if_they_were_not(tmp_path, name):
    fit = _fit(_read(tmp_path, np.repeat(_normal(300), 3, 0)), name)
    # Held-out copies of fitted rows would promise more than the entropy of the law.
    assert fit.scores.prior < -3.0 * (1.0 + math.log(2.0 * math.pi)) + 0.6
    assert fit.config.num_components < 16


def test_equal_rows_are_all_in_one_part_and_every_row_in_some():
    rows = np.repeat(_normal(40, 3), np.random.default_rng(1).integers(1, 9, 40), 0)
    rows[rows == rows[0, 0]] = 0.0
    rows[1, 0] = -0.0
    parts = split_rows(make_row_keys(rows), 20, seed=0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(rows)))
    seen = [{tuple(row + 0.0) for row in rows[part].astype(np.float32)} for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert all(len(part) >= 10 for part in parts)


def test_a_row_that_is_most_of_all_rows_is_fitted_and_leaves_enough_to_hold_out(tmp_path):
    array = np.concatenate([_normal(150, 3), np.repeat(_normal(1, 3), 450, 0)])
    for seed in range(5):
        parts = split_rows(make_row_keys(array), 60, seed=seed)
        assert [len(part) for part in parts] == [480, 60, 60]
        assert np.count_nonzero(parts[0] >= 150) == 450


def test_a_held_out_part_of_outliers_alone_is_refused(tmp_path):
    parts = [torch.from_numpy(_normal(rows, 2)).float() for rows in (198, 1, 1)]
    parts[2] *= 1e6
    with pytest.raises(DataError, match="are outliers"):
        leave_out_outliers(*parts)


def test_keys_tell_rows_apart():
    corners = np.stack(np.meshgrid(*[[0.0, 1.0, 2.0, -1.0, 0.5]] * 6), -1).reshape(-1, 6)
    assert len(np.unique(make_row_keys(corners))) == len(corners)
    assert len(np.unique(make_row_keys(_normal(50_000, 1)))) == len(np.unique(_normal(50_000, 1).astype(np.float32)))


@pytest.mark.parametrize("name", ["own-frames", "strict", "independent"])
def test_latents_in_a_plane_are_fitted_and_their_scores_explained(tmp_path, name):
    array = _normal(600, 3) @ np.random.default_rng(1).normal(size=(3, 6))
    fit = _fit(_read(tmp_path, array), name)
    assert math.isfinite(fit.scores.prior)
    assert any("in 3 of their 6 directions only" in warning for warning in fit.warnings)


def test_a_prior_that_is_worse_than_a_simple_one_says_so(tmp_path):
    # Correlated by .999: a density per latent as it is loses log sqrt(1 / (1 - .999^2)) = 3.1 nats on one Gaussian.
    array = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.999], [0.999, 1]], 2000)
    latents = _read(tmp_path, array)
    (warning,) = _fit(latents, "independent").warnings
    loss = float(warning.split("by ")[1].split()[0])
    assert "worse than one Gaussian" in warning
    assert loss == pytest.approx(-0.5 * math.log(1.0 - 0.999**2), abs=0.2)
    assert not any("one Gaussian" in warning for warning in _fit(latents, "strict").warnings)


@pytest.mark.parametrize("name", PRIORS)
def test_heavy_tails_are_fitted_or_refused_and_never_nan(tmp_path, name):
    latents = _read(tmp_path, np.random.default_rng(0).standard_t(2, (600, 3)))
    if name == "independent":
        with pytest.raises(DataError, match="outside the domain"):
            _fit(latents, name)
        return
    fit = _fit(latents, name)
    assert not math.isnan(fit.scores.prior)
    assert fit.scores.prior > max(fit.scores.full_gaussian, fit.scores.standard_normal) or fit.warnings


def test_experts_without_a_cluster_of_their_own_start_finite():
    prior = build_prior(PriorConfig(variant="experts", num_latents=2, num_components=8, low=-8.0, high=8.0))
    points = torch.tensor([[-3.0, 0.0], [3.0, 1.0]]).repeat_interleave(50, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start_prior(prior, points, torch.zeros_like(points), torch.Generator().manual_seed(0))
    assert all(bool(value.isfinite().all()) for value in prior.state_dict().values())
    samples = prior.sample(2000, torch.Generator().manual_seed(0))
    assert samples[:, 0].abs().mean() == pytest.approx(3.0, abs=0.3)


def test_no_checkpoint_is_written_of_a_model_that_is_not_finite(tmp_path):
    path = write_random_checkpoint(tmp_path / "ckpt.pt")
    checkpoint = read_checkpoint(path)
    before = path.read_bytes()
    name = next(name for name in checkpoint.model_state if name.startswith("prior."))
    checkpoint.model_state[name].flatten()[0] = math.nan
    with pytest.raises(Exception, match=f"{name} of the model is not finite"):
        write_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("num_distinct", "words"), [(1, "are all the same"), (2, "are copies of 2"), (60, "")], ids=["one", "two", "many"]
)
def test_training_images_that_are_copies_of_a_few_are_said_to_be(num_distinct, words):
    pixels = np.random.default_rng(0).integers(0, 256, (num_distinct, 1, 8, 8), np.uint8)
    images = Images.whole(np.repeat(pixels, 60, 0))
    division = Division(dataset=Dataset(train=images, holdout=images, fingerprint="sha256:0"))
    assert words in division.warning
    assert bool(words) == bool(division.warning)
