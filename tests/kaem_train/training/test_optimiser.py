"""Rates follow their formulas, averages their recursion, and a number that is not finite is named and stops the run."""

import dataclasses
import math

import pytest
import torch

from kaem.errors import ConfigError, KaemError
from kaem_train.checkpoint import load_model, read_checkpoint
from kaem_train.config import TrainingConfig
from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset
from kaem_train.evaluation.likelihood import held_out_bound
from kaem_train.evaluation.models import open_model
from kaem_train.rng import noise_stream
from kaem_train.training.acceleration import plain
from kaem_train.training.averaging import WeightAverage
from kaem_train.training.optimiser import rate_factor
from kaem_train.training.trainer import Trainer, train


@pytest.fixture(scope="module")
def digits():
    return load_dataset(load_config("digits").data)


def test_rates_rise_over_the_warmup_and_fall_as_the_schedule_says():
    def factors(**settings):
        config = TrainingConfig(updates=100, decay_from=0.5, **settings)
        return [rate_factor(config, step) for step in range(100)]

    linear, cosine = factors(), factors(schedule="cosine")
    assert linear[:51] == cosine[:51] == [1.0] * 51
    assert linear[75] == pytest.approx(0.5)
    assert linear[99] == pytest.approx(0.02)
    # Half of torch's own cosine annealing, which ends at 0 after 50 steps.
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 50)
    for step in range(50, 100):
        assert cosine[step] == pytest.approx(annealing.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        annealing.step()
    constant = factors(schedule="constant", warmup=10)
    assert constant == pytest.approx([min(1.0, (step + 1) / 10) for step in range(100)])
    assert min(linear + cosine + constant) > 0.0


def test_the_rates_reach_the_optimiser(tiny, digits):
    trainer = Trainer(tiny("training.warmup=4", "training.learning_rate=0.01"), digits)
    trainer.update(None)
    assert [group["lr"] for group in trainer.optimiser.param_groups] == pytest.approx([0.0025, 0.00125])


def test_an_average_follows_its_recursion_and_forgets_its_start(float64):
    weight = torch.nn.Parameter(torch.tensor(100.0))
    average = WeightAverage({"a.weight": weight}, 0.9)
    expected = 100.0
    for count in range(200):
        with torch.no_grad():
            weight.fill_(math.sin(count))
        average.follow()
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * math.sin(count)
    with average.applied():
        assert float(weight.detach()) == pytest.approx(expected, rel=1e-12)
        assert abs(float(weight.detach())) < 1.0
    assert float(weight.detach()) == math.sin(199)


def test_averages_do_not_reach_across_a_jump_of_their_module():
    left, beside, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    average = WeightAverage({"a.left": left, "a.beside": beside, "b.other": other}, 0.9)
    with torch.no_grad():
        for value in (left, beside, other):
            value.fill_(1.0)
        average.follow()
        left.fill_(5.0)
    average.restart_jumped()
    with average.applied():
        assert left.tolist() == [5.0, 5.0]
        assert beside.tolist() == [1.0, 1.0]
        assert 0.0 < float(other[0].detach()) < 1.0


def test_adam_forgets_squared_gradients_as_it_is_told(tiny, digits):
    trainer = Trainer(tiny("training.adam_beta2=0.5"), digits)
    assert [group["betas"] for group in trainer.optimiser.param_groups] == [(0.9, 0.5)] * 2
    trainer.update(None)
    state = trainer.optimiser.state[trainer.model.generator.layers[0].weight]
    gradient = state["exp_avg"] / (1 - 0.9)
    torch.testing.assert_close(state["exp_avg_sq"], 0.5 * gradient**2)


def test_the_start_of_the_prior_begins_its_average_anew(tiny, digits):
    trainer = Trainer(tiny("training.ema_decay=0.9", "prior.variant=experts", "posterior.prior_from=0.5"), digits)
    for _ in range(7):
        trainer.update(None)
    counts = trainer._average.state_dict()["counts"]
    assert counts["prior.means"] == 1
    assert counts["generator.layers.0.weight"] == 7


@pytest.mark.parametrize("kind", ["cnn", "kan"])
def test_the_finished_model_is_the_average_and_training_goes_on_with_its_own(tmp_path, tiny, digits, kind):
    config = tiny("training.ema_decay=0.9", f"generator.kind={kind}", "generator.refit_interval=4")
    outcome = train(config, digits, tmp_path / "averaged")
    without = train(
        dataclasses.replace(config, training=dataclasses.replace(config.training, ema_decay=0.0)),
        digits,
        tmp_path / "without",
    )
    left, right = read_checkpoint(outcome.checkpoint), read_checkpoint(without.checkpoint)
    for name, value in right.model_state.items():
        assert torch.equal(left.model_state[name], value), name
    _, model = load_model(outcome.checkpoint)
    used = dict(model.named_parameters())
    for name, average in left.average_state["averages"].items():
        if not name.startswith("posterior."):
            assert torch.equal(used[name], average), name
    assert any(not torch.equal(used[name], right.model_state[name]) for name in used)
    assert outcome.bound != without.bound


def test_a_resumed_average_equals_an_uninterrupted_one_bit_for_bit(tmp_path, tiny, digits):
    config = tiny("training.ema_decay=0.9", "training.warmup=5", "training.schedule=cosine")
    whole = Trainer(config, digits)
    for _ in range(12):
        whole.update(None)
    part = Trainer(config, digits)
    for _ in range(8):
        part.update(None)
    part.save(tmp_path / "ckpt.pt")
    resumed = Trainer(config, digits)
    resumed.restore(read_checkpoint(tmp_path / "ckpt.pt"))
    for _ in range(4):
        resumed.update(None)
    left, right = whole._average.state_dict(), resumed._average.state_dict()
    assert left["counts"] == right["counts"]
    for name, value in left["averages"].items():
        assert torch.equal(value, right["averages"][name]), name


POISONED = ("prior.logits", "prior.bank.coefficients", "generator.layers.0.weight", "posterior.layers.0.bias")


@pytest.mark.parametrize("name", POISONED)
@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_the_first_tensor_that_is_not_finite_is_named_and_nothing_changes(tmp_path, tiny, digits, name, what):
    trainer = Trainer(tiny("posterior.prior_from=0.0"), digits)
    for _ in range(2):
        trainer.update(None)
    poisoned = trainer._parameters[name]
    if what == "parameter":
        with torch.no_grad():
            poisoned.view(-1)[0] = math.inf
    else:
        poisoned.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    before = {key: value.detach().clone() for key, value in trainer._parameters.items()}
    with pytest.raises(KaemError, match=rf"{what}.*{name} is not finite at update 3"):
        trainer.update(tmp_path / "ckpt.pt")
    assert trainer.step == 2
    for key, value in trainer._parameters.items():
        assert torch.equal(value, before[key]), key
    if what == "parameter":
        with pytest.raises(KaemError, match=f"{name} is not finite"):
            trainer.save(tmp_path / "ckpt.pt")
        assert not (tmp_path / "ckpt.pt").exists()


def test_half_precision_stays_inside_generator_and_encoder(tiny, digits, monkeypatch):
    trainer = Trainer(tiny("training.precision=bfloat16", "posterior.prior_from=0.0", "prior.base=silu"), digits)
    trainer.update(None)  # the start of the prior encodes images too
    inside, outside = [], []
    for module in (trainer.model.generator.layers[-1], trainer.posterior.network.layers[-1]):
        module.register_forward_hook(lambda _m, _i, output: inside.append(output.dtype))
    trainer.model.generator.register_forward_hook(lambda _m, _i, output: outside.append(output.dtype))
    density = trainer.model.prior.log_density

    def watched(z):
        found = density(z)
        outside.extend([z.dtype, found.dtype])
        return found

    monkeypatch.setattr(trainer.model.prior, "log_density", watched)
    trainer.update(None)
    assert inside == [torch.bfloat16] * 2
    assert outside == [torch.float32] * 3
    assert {value.dtype for value in trainer._parameters.values()} == {torch.float32}
    inside.clear()
    with plain(trainer._networks):
        trainer.model.sample(1, torch.Generator().manual_seed(0))
    assert inside == [torch.float32]


def test_half_precision_and_full_precision_train_alike(tiny, digits):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(tiny(f"training.precision={precision}"), digits)
        for _ in range(9):
            trainer.update(None)
        means, _ = trainer._means.take()
        losses.append(means["reconstruction"])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_compilation_without_a_compiler_is_refused(tiny, digits, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"training\.compile = true needs a C\+\+ compiler"):
        Trainer(tiny("training.compile=true"), digits)


def test_evaluation_uses_the_averaged_encoder_with_the_averaged_decoder(tmp_path, tiny, digits):
    outcome = train(tiny("training.ema_decay=0.9"), digits, tmp_path)
    opened = open_model(outcome.checkpoint)
    rng = noise_stream(0, 0, "held-out bound")
    num = opened.posterior.num_bound_samples
    assert held_out_bound(opened.model, opened.posterior, digits.holdout, rng, num_samples=num) == outcome.bound
