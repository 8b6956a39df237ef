"""The final refit replaces the prior only where it is better, and never touches what training goes on with."""

import dataclasses

import pytest
import torch

from kaem.errors import ConfigError, DataError
from kaem_train.checkpoint import load_model, read_checkpoint
from kaem_train.config import RefitConfig
from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset
from kaem_train.families.kaem import Kaem
from kaem_train.fitting.density import mean_log_density
from kaem_train.fitting.judge_split import divide
from kaem_train.fitting.mixtures import fit_full_mixture
from kaem_train.fitting.refit import refit_prior
from kaem_train.model.prior.own_frames import OwnFramesPrior
from kaem_train.rng import noise_stream
from kaem_train.training.events import Refitted, SamplesDrawn
from kaem_train.training.progress import describe_refit
from kaem_train.training.requirements import check_trainable
from kaem_train.training.trainer import Trainer, train

WRECKED = ("posterior.prior_from=0.0", "training.prior_learning_rate=0.3")
"""A prior that has run away from the latents, so that any refit is better."""

REFIT = ("refit.kind=experts", "refit.num_experts=[2, 4]", "refit.correction_steps=4", "refit.num_images=400")


@pytest.fixture(scope="module")
def digits():
    return load_dataset(load_config("digits").data)


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


class _KnownLatents:
    """A posterior whose latents of an image are one of its pixels and its neighbours, exactly."""

    infers = True

    def latents(self, _model, images, _rng):
        return images.flatten(1)[:, :3]


def _model(tiny, *overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Kaem(tiny(*overrides)).eval()


def _clustered_images(num):
    rng = _rng(1)
    centres = torch.tensor([[-4.0, 0.0, 3.0], [4.0, 2.0, -3.0]])
    latents = centres[torch.randint(2, (num,), generator=rng)] + 0.3 * torch.randn(num, 3, generator=rng)
    return torch.cat([latents, torch.zeros(num, 61)], 1).reshape(num, 1, 8, 8)


def test_clusters_that_the_trained_prior_misses_are_refitted(tiny):
    model = _model(tiny)
    images = _clustered_images(600)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = refit_prior(
        model, _KnownLatents(), images, RefitConfig(kind="experts", num_experts=(1, 2), correction_steps=20), _rng()
    )
    assert found.num_experts == 2
    assert found.score > found.trained_score + 10.0
    assert found.score >= found.scores[2] - 1e-3 > found.scores[1]
    assert found.finished.prior.num_components == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    prior = OwnFramesPrior(found.finished.prior)
    names = {name: f"prior.{name}" for name in prior.state_dict()}
    prior.load_state_dict({name: found.finished.model_state[full] for name, full in names.items()})
    fresh = _clustered_images(900)[600:].flatten(1)[:, :3]
    assert mean_log_density(prior, fresh) == pytest.approx(found.score, abs=0.3)


def test_a_prior_that_is_right_already_is_kept(tiny):
    model = _model(tiny, "prior.variant=experts", "prior.num_components=1")
    with torch.no_grad():
        model.prior.bank.coefficients.zero_()
        model.prior.means.zero_()
    images = torch.randn(300, 1, 8, 8, generator=_rng(2))
    found = refit_prior(
        model, _KnownLatents(), images, RefitConfig(kind="experts", num_experts=(4, 8), correction_steps=5), _rng()
    )
    assert found.finished is None
    assert found.score < found.trained_score == pytest.approx(-4.26, abs=0.5)


def test_without_correction_steps_the_experts_are_the_gaussian_mixture(tiny):
    settings = RefitConfig(kind="experts", num_experts=(2,), correction_steps=0)
    found = refit_prior(_model(tiny), _KnownLatents(), _clustered_images(400), settings, _rng())
    assert found.score == pytest.approx(found.scores[2], abs=1e-3)
    assert not found.finished.model_state["prior.bank.coefficients"].any()


def test_too_few_images_leave_candidates_out_and_say_so(tiny):
    model, settings = _model(tiny), RefitConfig(kind="experts", num_experts=(2, 50), correction_steps=0)
    found = refit_prior(model, _KnownLatents(), _clustered_images(60), settings, _rng())
    assert (found.num_experts, found.skipped) == (2, "54 images are too few for 50 experts")
    found = refit_prior(model, _KnownLatents(), _clustered_images(15), settings, _rng())
    assert (found.finished, found.num_experts) == (None, None)
    assert found.skipped == "13 images are too few for 2, 50 experts"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [(("prior.variant=independent",), "are summed"), (("posterior.kind=importance",), "from the prior itself")],
)
def test_models_without_latents_to_refit_are_left_alone(tmp_path, tiny, digits, overrides, reason):
    seen = []
    outcome = train(tiny(*REFIT, *overrides), digits, tmp_path, listeners=[seen.append])
    (event,) = [event for event in seen if isinstance(event, Refitted)]
    assert reason in event.refit.skipped
    assert reason in describe_refit(event.refit)
    assert read_checkpoint(outcome.checkpoint).finished is None


@pytest.mark.parametrize("posterior", [(), ("posterior.kind=refined",)], ids=["amortized", "refined"])
def test_a_run_ends_with_the_better_prior_and_its_training_state_untouched(tmp_path, tiny, digits, posterior):
    seen = []
    plain = train(tiny(*WRECKED, *posterior), digits, tmp_path / "plain")
    config = tiny(*REFIT, *WRECKED, *posterior, "refit.num_set_aside=0")  # the same images as without a refit
    outcome = train(config, digits, tmp_path / "refitted", listeners=[seen.append])
    (event,) = [event for event in seen if isinstance(event, Refitted)]
    assert event.refit.finished is not None
    assert event.refit.score > event.refit.trained_score
    assert f"final refit kept: log p(z) {event.refit.num_experts} experts" in describe_refit(event.refit)
    trained, written = read_checkpoint(plain.checkpoint), read_checkpoint(outcome.checkpoint)
    for name, value in trained.model_state.items():
        assert torch.equal(value, written.model_state[name]), name
    found, model = load_model(outcome.checkpoint)
    drawn = [event for event in seen if isinstance(event, SamplesDrawn)]
    assert [event.step for event in drawn] == [12, 12]
    noise = noise_stream(config.training.seed, 0, "sample grid")
    assert torch.equal(drawn[-1].images, model.sample(64, noise))  # the last picture is of the finished model
    assert not torch.equal(drawn[-1].images, drawn[0].images)
    assert (found.prior.frame, found.prior.num_components) == ("own", event.refit.num_experts)
    assert torch.isfinite(model.sample(4, _rng())).all()
    assert outcome.bound > plain.bound
    again = train(config, digits, tmp_path / "refitted", resume=True)
    assert again == outcome
    _assert_same(read_checkpoint(outcome.checkpoint).finished, written.finished)


@pytest.mark.parametrize(
    "posterior",
    [
        ("posterior.kind=langevin", "posterior.num_steps=2"),
        ("posterior.kind=tempering", "posterior.num_steps=2", "posterior.num_temperatures=2"),
    ],
    ids=["langevin", "tempering"],
)
def test_latents_of_chains_are_refitted_too(tmp_path, tiny, digits, posterior):
    few = dataclasses.replace(digits, train=digits.train.subset(torch.arange(100)))
    seen = []
    outcome = train(tiny(*REFIT, *posterior), few, tmp_path, listeners=[seen.append])
    (event,) = [event for event in seen if isinstance(event, Refitted)]
    assert set(event.refit.scores) == {2, 4}
    assert (event.refit.finished is not None) == (event.refit.score > event.refit.trained_score)
    assert (read_checkpoint(outcome.checkpoint).finished is not None) == (event.refit.finished is not None)
    load_model(outcome.checkpoint)


def _assert_same(left, right):
    assert left.prior == right.prior
    assert all(torch.equal(value, right.model_state[name]) for name, value in left.model_state.items())


def test_a_run_stopped_before_its_end_is_not_refitted_until_it_is_resumed(tmp_path, tiny, digits):
    config = tiny(*REFIT, *WRECKED)
    whole = train(config, digits, tmp_path / "whole")
    part = Trainer(config, digits)
    (tmp_path / "part").mkdir()
    for _ in range(5):
        part.update(tmp_path / "part" / "ckpt.pt")
    part.save(tmp_path / "part" / "ckpt.pt")
    assert read_checkpoint(tmp_path / "part" / "ckpt.pt").finished is None
    rest = train(config, digits, tmp_path / "part", resume=True)
    assert rest.bound == whole.bound
    _assert_same(read_checkpoint(rest.checkpoint).finished, read_checkpoint(whole.checkpoint).finished)


def test_resuming_with_another_refit_names_it(tmp_path, tiny, digits):
    train(tiny(*REFIT), digits, tmp_path)
    with pytest.raises(ConfigError, match=r"refit\.correction_steps: 4, now 5"):
        train(tiny(*REFIT, "refit.correction_steps=5"), digits, tmp_path, resume=True)


def test_refitting_leaves_the_global_noise_alone(tiny, digits):
    trainer = Trainer(tiny(*REFIT), digits)
    before = torch.random.get_rng_state()
    trainer.refit()
    trainer.held_out_bound()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": ()}, "num_experts"),
        ({"num_experts": (0,)}, "num_experts"),
        ({"num_images": 5}, "num_images"),
        ({"correction_steps": -1}, "correction_steps"),
        ({"num_set_aside": -1}, "num_set_aside"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        RefitConfig(**change)


def test_several_draws_of_an_image_do_not_count_as_several_images():
    points = torch.randn(40, 3, generator=_rng(4), dtype=torch.float64)
    points[:15] += 20.0
    once = fit_full_mixture(points, 2, seed=0)
    repeated = fit_full_mixture(points.repeat(5, 1), 2, seed=0, draws=5)
    order, other = (mixture.weights.argsort() for mixture in (once, repeated))
    assert torch.allclose(once.covariances[order], repeated.covariances[other], atol=1e-3)


def test_images_that_judge_are_not_in_what_the_run_learns_from(tiny, digits):
    config = tiny(*REFIT, "refit.num_set_aside=60")
    division = divide(config, digits)
    assert (len(division.dataset.train), division.num_judges) == (1440, 60)
    rows, judges = division.dataset.train.rows, division.judges.rows
    assert sorted([*rows, *judges]) == sorted(digits.train.rows)  # a partition: nothing lost, nothing on both sides
    assert (division.dataset.fingerprint, division.dataset.holdout) == (digits.fingerprint, digits.holdout)
    trainer = Trainer(config, digits)
    assert list(trainer.dataset.train.rows) == list(rows)


def test_which_images_judge_follows_from_the_seed(tiny, digits):
    first, again, other = (divide(tiny(*REFIT, f"training.seed={seed}"), digits).judges.rows for seed in (0, 0, 1))
    assert list(first) == list(again)
    assert len(set(first) & set(other)) < len(first) / 2


@pytest.mark.parametrize(
    ("overrides", "num"),
    [
        ((), 0),  # no refit, so nothing to judge
        ((*REFIT, "refit.num_set_aside=0"), 0),
        (REFIT, 75),  # one in twenty of 1,500
        ((*REFIT, "refit.num_set_aside=7"), 7),
    ],
)
def test_no_more_images_are_set_aside_than_is_asked_and_one_in_twenty(tiny, digits, overrides, num):
    assert divide(tiny(*overrides), digits).num_judges == num


def test_a_prior_that_knows_its_own_training_images_by_heart_is_judged_on_others(tiny):
    model = _model(tiny, "prior.variant=experts", "prior.num_components=1")
    images = torch.randn(400, 1, 8, 8, generator=_rng(5))
    latents = images.flatten(1)[:, :3]

    def recite(z):  # likelier than any smooth density where it was trained, unlikelier elsewhere
        return torch.where(((z[:, None] - latents).abs().amax(2).amin(1) < 1e-4), 5.0, -20.0)

    model.prior.log_density = recite
    settings = RefitConfig(kind="experts", num_experts=(1,), correction_steps=0)
    seen = refit_prior(model, _KnownLatents(), images, settings, _rng())
    judged = refit_prior(model, _KnownLatents(), images, settings, _rng(), torch.randn(50, 1, 8, 8, generator=_rng(6)))
    assert (seen.finished, seen.trained_score) == (None, 5.0)
    assert judged.finished is not None
    assert judged.trained_score == -20.0
    assert judged.score == pytest.approx(-4.26, abs=0.5)


def test_checkpoints_from_before_images_were_set_aside_were_trained_on_all(tmp_path, tiny, digits):
    config = tiny(*REFIT, *WRECKED, "refit.num_set_aside=0")
    train(config, digits, tmp_path)
    path = tmp_path / "ckpt.pt"
    content = torch.load(path, weights_only=True)
    del content["config"]["refit"]["num_set_aside"]
    torch.save(content, path)
    assert read_checkpoint(path).config == config
    train(config, digits, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"refit\.num_set_aside: 0, now 1000"):
        train(tiny(*REFIT, *WRECKED), digits, tmp_path, resume=True)


def test_too_few_images_are_counted_without_those_that_judge(tiny, digits):
    config = tiny(*REFIT, "refit.num_set_aside=75", "training.batch_size=1450")
    with pytest.raises(DataError, match="1425 training images do not fill one batch of 1450"):
        check_trainable(config, digits)
