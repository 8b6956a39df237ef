"""A run can be stopped at any update and resumed bit for bit, and it never loses its last good checkpoint."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kaem.errors import ArtifactError, ConfigError, DataError, KaemError
from kaem_train.checkpoint import read_checkpoint
from kaem_train.data import load_dataset
from kaem_train.training import trainer as trainer_module
from kaem_train.training.events import Progress, SamplesDrawn, Saved
from kaem_train.training.interrupt import StopRequest
from kaem_train.training.trainer import Trainer, train

RUNS = {
    "vae": ("family=vae",),
    "latent ebm": ("family=latent_ebm", "latent_ebm.prior_steps=4", "latent_ebm.posterior_steps=3"),
    "latent ebm, kan": (
        "family=latent_ebm",
        "latent_ebm.prior_steps=4",
        "generator.kind=kan",
        "generator.hidden=[6]",
        "generator.refit_interval=4",
    ),
    "ddpm": ("family=ddpm", "diffusion.channels=[8, 8]", "diffusion.sampling_steps=4"),
    "amortized": ("posterior.prior_from=0.5",),
    "sampled prior term": ("posterior.prior_from=0.0", "prior.base=silu"),
    "independent": ("prior.variant=independent", "posterior.prior_from=0.5"),
    "learnable reference": ("prior.reference=learnable_gaussian", "posterior.prior_from=0.5"),
    "shared uniforms": ("prior.variant=independent", "prior.u_sharing=per_p", "posterior.kind=importance"),
    "lognormal, penalised": (
        *("prior.reference=lognormal", "prior.low=0.001", "prior.high=8", "prior.grid_low=0.001", "prior.grid_high=8"),
        *("posterior.kind=langevin", "posterior.num_steps=3", "training.weight_penalty=0.1"),
    ),
    "experts in a frame": ("prior.variant=experts", "prior.frame=global", "posterior.prior_from=0.5"),
    "experts in own frames": ("prior.variant=experts", "prior.frame=own", "posterior.prior_from=0.5"),
    "mixture in a frame": ("prior.frame=global", "posterior.prior_from=0.5"),
    "importance": ("posterior.kind=importance", "posterior.resample_below=0.5"),
    "weighted bound": ("posterior.kind=weighted_bound", "posterior.prior_from=0.5"),
    "refined": ("posterior.kind=refined", "posterior.prior_from=0.5", "posterior.kernel=mala"),
    "ula": ("posterior.kind=langevin", "posterior.num_steps=3"),
    "mala, contrastive": (
        "posterior.kind=langevin",
        "posterior.kernel=mala",
        "posterior.num_steps=3",
        "prior.variant=independent",
        "training.prior_gradient=contrastive",
    ),
    "tempering": ("posterior.kind=tempering", "posterior.num_steps=4", "posterior.num_temperatures=2"),
    "tempering, steppingstone": (
        "posterior.kind=tempering",
        "posterior.thermodynamic=steppingstone",
        "posterior.kernel=mala",
        "posterior.num_steps=3",
        "posterior.num_temperatures=3",
    ),
    "flipped": ("data.augment_flip=true",),
    "experts importance": ("prior.variant=experts", "posterior.kind=importance"),
    "kan": ("generator.kind=kan", "generator.hidden=[6]", "generator.refit_interval=4"),
    "kan langevin": (
        "generator.kind=kan",
        "generator.hidden=[6]",
        "generator.refit_interval=4",
        "posterior.kind=langevin",
        "posterior.num_steps=3",
    ),
    "refits of the prior's grid": (
        "generator.kind=kan",
        "generator.hidden=[6]",
        "generator.basis=bspline",
        "generator.refit_interval=4",
        "prior.basis=bspline",
        "prior.refit_interval=3",
        "prior.grid_update_ratio=0.5",
    ),
    "wavelets, importance": (
        "prior.basis=morlet",
        "prior.grid_size=3",
        "prior.reference=none",
        "prior.low=-1.2",
        "prior.high=1.2",
        "prior.grid_low=-1.2",
        "prior.grid_high=1.2",
        "prior.refit_interval=3",
        "posterior.kind=importance",
    ),
    "kan importance": ("generator.kind=kan", "posterior.kind=importance", "prior.variant=independent"),
}


@pytest.fixture(scope="module")
def digits():
    from kaem_train.config.settings import load_config

    return load_dataset(load_config("digits").data)


def _assert_equal(left, right, where=""):
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            _assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            _assert_equal(a, b, f"{where}[{index}]")
    else:
        assert left == right, where


def _stop_after(monkeypatch, updates):
    """Make the run see a stop request once that many updates are done, as Ctrl-C would."""

    class Stopping(StopRequest):
        looks = 0

        @property
        def is_made(self):
            self.looks += 1
            return self.looks > updates

    class Context:
        def __enter__(self):
            return Stopping()

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(trainer_module, "stop_request", Context)


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, tiny, digits, monkeypatch, name):
    config = tiny(*RUNS[name])
    whole = train(config, digits, tmp_path / "whole")
    assert whole.is_finished
    for stop in (5, 4):  # stops at updates 5 and 9: before and after the prior is switched on
        with monkeypatch.context() as patch:
            _stop_after(patch, stop)
            stopped = train(config, digits, tmp_path / "parts", resume=(stop == 4))
        assert not stopped.is_finished
        torch.manual_seed(stop)  # the global generator plays no part
        torch.rand(stop)
    resumed = train(config, digits, tmp_path / "parts", resume=True)
    assert resumed.bound == whole.bound
    left, right = (read_checkpoint(tmp_path / run / "ckpt.pt") for run in ("whole", "parts"))
    for field in dataclasses.fields(left):
        _assert_equal(getattr(left, field.name), getattr(right, field.name), field.name)


def test_watching_a_run_does_not_change_it(tmp_path, tiny, digits):
    config = tiny("training.samples_every=3")
    seen = []
    train(config, digits, tmp_path / "watched", listeners=[seen.append])
    train(config, digits, tmp_path / "alone")
    left, right = (read_checkpoint(tmp_path / run / "ckpt.pt") for run in ("watched", "alone"))
    _assert_equal(left.model_state, right.model_state)
    assert [event.step for event in seen if isinstance(event, Progress)] == [5, 10, 12]
    assert [event.step for event in seen if isinstance(event, SamplesDrawn)] == [3, 6, 9, 12]
    assert [event.step for event in seen if isinstance(event, Saved)] == [12]
    last = [event for event in seen if isinstance(event, Progress)][-1]
    assert {"loss", "reconstruction", "kl", "sigma"} <= last.metrics.keys()


def test_a_metric_that_some_updates_lack_is_averaged_over_those_that_have_it(tiny, digits, monkeypatch):
    seen = []
    trained = Trainer(tiny(), digits, listeners=(seen.append,))
    original = trained.posterior.terms

    def terms(model, images, step, rng):
        found = original(model, images, step, rng)
        rare = {"rare": torch.tensor(3.0)} if step == 1 else {}
        return dataclasses.replace(found, metrics={**found.metrics, **rare})

    monkeypatch.setattr(trained.posterior, "terms", terms)
    for _ in range(5):
        trained.update(None)
    assert seen[0].metrics["rare"] == 3.0


def test_another_seed_gives_another_model(tmp_path, tiny, digits):
    for seed in (0, 1):
        train(tiny(f"training.seed={seed}"), digits, tmp_path / str(seed))
    left, right = (read_checkpoint(tmp_path / run / "ckpt.pt").model_state for run in ("0", "1"))
    assert not torch.equal(left["generator.layers.0.weight"], right["generator.layers.0.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_update_and_saves(tmp_path, number):
    code = f"""
from pathlib import Path
from kaem_train.data import load_dataset
from kaem_train.config.settings import load_config
from kaem_train.training.trainer import train
config = load_config("digits", ["training.updates=1000000", "training.log_every=1"])
outcome = train(config, load_dataset(config.data), Path({str(tmp_path)!r}), listeners=[
    lambda event: print("running", flush=True) if getattr(event, "step", 0) == 3 else None])
print("stopped", outcome.is_finished, outcome.step)
"""
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout.readline() == "running\n"
    time.sleep(0.2)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    word, finished, step = output.split()
    assert (word, finished, process.returncode) == ("stopped", "False", 0)
    assert read_checkpoint(tmp_path / "ckpt.pt").step == int(step)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, tiny, digits):
    config = tiny("training.checkpoint_every=4")
    trained = Trainer(config, digits)
    path = tmp_path / "ckpt.pt"
    for _ in range(4):
        trained.update(path)
    trained.save(path)
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    broken = digits.train[:].clone()
    broken[:] = float("nan")
    trained.dataset = dataclasses.replace(digits, train=broken)
    with pytest.raises(KaemError, match=r"nan at update 5.*learning_rate.*the last good checkpoint is .*ckpt\.pt"):
        trained.update(path)
    _assert_equal(dict(trained.model.state_dict()), before)
    assert read_checkpoint(path).step == 4
    anew = Trainer(config, digits)
    anew.dataset = trained.dataset
    with pytest.raises(KaemError, match="no checkpoint was written yet"):
        anew.update(path)  # the file there is another run's


def test_resuming_with_another_setting_names_it(tmp_path, tiny, digits):
    train(tiny(), digits, tmp_path)
    with pytest.raises(ConfigError, match=r"training\.batch_size: 16, now 8"):
        train(tiny("training.batch_size=8"), digits, tmp_path, resume=True)
    with pytest.raises(ConfigError, match="name: digits, now other"):
        train(tiny("name=other"), digits, tmp_path, resume=True)


def test_resuming_with_other_data_is_refused(tmp_path, tiny, digits):
    train(tiny(), digits, tmp_path)
    other = dataclasses.replace(digits, fingerprint="sha256:1234567890abcdef")
    with pytest.raises(DataError, match="sha256:1234567890ab"):
        train(tiny(), other, tmp_path, resume=True)


def test_resuming_a_damaged_state_is_refused(tmp_path, tiny, digits):
    trained = Trainer(tiny(), digits)
    trained.save(tmp_path / "ckpt.pt")
    damaged = read_checkpoint(tmp_path / "ckpt.pt")
    damaged.posterior_state.popitem()
    with pytest.raises(ArtifactError, match="does not fit"):
        trained.restore(damaged)


def test_resuming_nothing_is_refused(tmp_path, tiny, digits):
    with pytest.raises(ArtifactError, match="no checkpoint"):
        train(tiny(), digits, tmp_path / "none", resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path, tiny, digits):
    first = train(tiny(), digits, tmp_path)
    again = train(tiny(), digits, tmp_path, resume=True)
    assert again == first


def test_too_few_images_for_a_batch_are_refused(tmp_path, tiny, digits):
    few = dataclasses.replace(digits, train=digits.train[:10])
    with pytest.raises(DataError, match=r"10 training images.*training\.batch_size"):
        train(tiny(), few, tmp_path)


def test_too_few_images_for_the_experts_are_refused_before_the_first_update(tmp_path, tiny, digits):
    few = dataclasses.replace(digits, train=digits.train[:20])
    with pytest.raises(DataError, match=r"20 training images.*21 experts.*prior\.num_components"):
        train(tiny("prior.variant=experts", "prior.num_components=21"), few, tmp_path)


def test_sigma_follows_the_reconstruction_error_only_if_asked(tiny, digits):
    fixed, learned = (
        Trainer(tiny("training.sigma=0.1", f"training.learn_sigma={flag}"), digits) for flag in ("false", "true")
    )
    for trained in (fixed, learned):
        trained.update(None)
    assert float(fixed.model.sigma) == pytest.approx(0.1)
    assert float(learned.model.sigma) > 0.1
