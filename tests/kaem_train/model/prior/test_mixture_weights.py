"""The penalty acts on the logits of the mixture weights, and weights that are not trained stay equal."""

import pytest
import torch

from kaem_train.config import PriorConfig
from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset
from kaem_train.model.prior.factorised import build_prior, weight_penalty
from kaem_train.posterior.start import start_prior
from kaem_train.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits():
    return load_dataset(load_config("digits").data)


def _prior(variant="mixture", *, train_proportions=True):
    torch.manual_seed(0)
    return build_prior(
        PriorConfig(
            variant=variant,
            num_latents=2,
            num_components=3,
            low=-8.0,
            high=8.0,
            train_proportions=train_proportions,
        )
    )


@pytest.mark.parametrize("variant", ["mixture", "experts"])
def test_the_penalty_is_the_sum_of_absolute_logits_and_its_gradient_their_signs(variant):
    prior = _prior(variant)
    with torch.no_grad():
        prior.logits.copy_(torch.randn_like(prior.logits))
    penalty = weight_penalty(prior, 0.3)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(0.3 * float(prior.logits.detach().abs().sum()), rel=1e-6)
    assert torch.allclose(prior.logits.grad, 0.3 * prior.logits.detach().sign())


def test_on_the_weights_themselves_the_penalty_would_be_a_constant():
    # The reason for taking the logits: the weights of a latent sum to 1 whatever they are.
    prior = _prior()
    with torch.no_grad():
        prior.logits.copy_(torch.randn_like(prior.logits))
    (gradient,) = torch.autograd.grad(prior.log_weights().exp().abs().sum(), prior.logits)
    assert float(gradient.abs().max()) < 1e-6
    (gradient,) = torch.autograd.grad(weight_penalty(prior, 1.0), prior.logits)
    assert float(gradient.abs().min()) == 1.0


def test_a_penalised_run_ends_with_weights_closer_to_each_other(tiny, digits, tmp_path):
    spread = {}
    for strength in (0.0, 50.0):
        config = tiny(
            "posterior.kind=importance",
            "training.updates=12",
            "training.prior_learning_rate=0.02",
            f"training.weight_penalty={strength}",
        )
        trainer = Trainer(config, digits)
        with torch.no_grad():
            trainer.model.prior.logits.copy_(torch.tensor([[0.5, -0.5]] * 3))
        for _ in range(12):
            trainer.update(tmp_path)
        spread[strength] = float(trainer.model.prior.logits.detach().abs().mean())
    assert spread[50.0] < 0.4
    assert spread[50.0] < spread[0.0] - 0.1


def test_the_penalty_is_part_of_the_reported_loss(tiny, digits, tmp_path):
    losses = {}
    for strength in (0.0, 10.0):
        config = tiny("posterior.kind=importance", "training.log_every=1", f"training.weight_penalty={strength}")
        events = []
        trainer = Trainer(config, digits, listeners=(events.append,))
        with torch.no_grad():
            trainer.model.prior.logits.fill_(0.25)
        trainer.update(tmp_path)
        losses[strength] = next(event.metrics["loss"] for event in events if hasattr(event, "metrics"))
    assert losses[10.0] - losses[0.0] == pytest.approx(10.0 * 0.25 * 6, rel=1e-3)


@pytest.mark.parametrize("kind", ["importance", "amortized"])
def test_proportions_that_are_not_trained_stay_equal(tiny, digits, tmp_path, kind):
    # With an encoder the prior is started from data halfway: that must not move them either.
    config = tiny("prior.train_proportions=false", f"posterior.kind={kind}", "training.updates=6")
    trainer = Trainer(config, digits)
    before = trainer.model.prior.bank.coefficients.clone()
    for _ in range(6):
        trainer.update(tmp_path)
    assert torch.equal(trainer.model.prior.logits, torch.zeros(3, 2))
    assert not torch.equal(trainer.model.prior.bank.coefficients, before)


def test_experts_whose_proportions_are_not_trained_start_equal():
    prior = _prior("experts", train_proportions=False)
    rng = torch.Generator().manual_seed(0)
    start_prior(prior, torch.randn(60, 2, generator=rng), torch.full((60, 2), 0.1), rng)
    assert torch.allclose(prior.log_weights().exp(), torch.full((3,), 1 / 3))
    assert float(prior.means.detach().std()) > 0.1
