"""A run whose latents do not fit its domain widens it and says so, is refused in one line, or ends with the truth."""

import math

import pytest
import torch

from kaem.errors import ConfigError
from kaem_train.checkpoint import load_model, read_checkpoint
from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset
from kaem_train.training.events import Progress, Widened
from kaem_train.training.progress import describe_widening
from kaem_train.training.trainer import Trainer, train

NARROW = ("prior.low=-1.2", "prior.high=1.2", "prior.grid_low=-1.2", "prior.grid_high=1.2")
KINDS = {
    "experts in a frame": ("prior.variant=experts", "prior.frame=global"),
    "experts in own frames": ("prior.variant=experts", "prior.frame=own"),
    "mixture": (),
    "learnable": ("prior.reference=learnable_gaussian",),
    "independent": ("prior.variant=independent",),
}


@pytest.fixture(scope="module")
def digits():
    return load_dataset(load_config("digits").data)


@pytest.mark.parametrize("kind", ["amortized", "weighted_bound", "refined"])
def test_an_encoder_is_refused_a_domain_that_cuts_off_the_reference(tmp_path, tiny, digits, kind):
    with pytest.raises(ConfigError, match=r"domain \[-1.2, 1.2\] leaves 0.23 of the gaussian reference outside"):
        train(tiny(f"posterior.kind={kind}", *NARROW), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", ["mixture", "independent", "experts"])
@pytest.mark.parametrize("kind", ["importance", "langevin", "tempering"])
def test_latents_that_stay_inside_may_have_any_domain(tmp_path, tiny, digits, kind, variant):
    # The paper's own domain: samples and chains never leave it, and the density ends there.
    overrides = ("posterior.num_steps=3", "posterior.num_temperatures=2", f"prior.variant={variant}", *NARROW)
    outcome = train(tiny(f"posterior.kind={kind}", *overrides), digits, tmp_path)
    assert math.isfinite(outcome.bound)
    prior = load_model(outcome.checkpoint)[1].prior
    assert (prior.low, prior.high) == (-1.2, 1.2)
    z = prior.sample(500, torch.Generator().manual_seed(0))
    assert not prior.is_outside(z).any()
    assert prior.log_density(z).isfinite().all()
    assert prior.log_density(z + 2.5).isinf().all()


@pytest.mark.parametrize("name", KINDS)
def test_a_run_whose_latents_leave_the_domain_widens_it_and_shows_their_share(tmp_path, tiny, digits, name):
    overrides = ("posterior.prior_from=0.0", "training.log_every=1", "prior.low=-5", "prior.high=5", *KINDS[name])
    events = []
    trainer = Trainer(tiny(*overrides), digits, listeners=(events.append,))
    trainer.update(None)
    with torch.no_grad():
        last = [layer for layer in trainer.posterior.network.modules() if isinstance(layer, torch.nn.Linear)][-1]
        last.bias[: len(last.bias) // 2] += 14.0
    trainer.update(None)
    widened = [event for event in events if isinstance(event, Widened)][-1]
    shares = [event.metrics["outside"] for event in events if isinstance(event, Progress)]
    assert shares[0] == 0.0
    assert shares[1] == widened.outside > 0.9
    prior = trainer.model.prior
    assert widened.after == (prior.low, prior.high)
    assert widened.after[1] > widened.before[1]
    assert f"of the encoded latents outside the domain [{widened.before[0]:.4g}" in describe_widening(widened)
    trainer.hold_latents()
    trainer.save(tmp_path / "ckpt.pt")
    again = Trainer(tiny(*overrides), digits)
    again.restore(read_checkpoint(tmp_path / "ckpt.pt"))
    assert (again.model.prior.low, again.model.prior.high) == (prior.low, prior.high)


def test_refits_under_importance_sampling_do_not_widen_the_paper_s_domain(tmp_path, digits):
    config = load_config(
        "paper-mnist-none",
        (
            *("data.source=digits", "data.image_shape=[1, 8, 8]", "data.num_train=1000", "data.num_holdout=297"),
            *("prior.num_latents=5", "prior.num_components=3", "generator.hidden=[6]", "prior.refit_interval=3"),
            *("training.updates=40", "training.batch_size=20"),
        ),
    )
    outcome = train(config, load_dataset(config.data), tmp_path)
    prior = load_model(outcome.checkpoint)[1].prior
    assert (prior.low, prior.high) == pytest.approx((-1.2, 1.2))
    assert torch.allclose(prior.bank.grid[[0, -1]], torch.tensor([-1.2, 1.2]))
