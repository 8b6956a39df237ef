"""A run computes where it is told to, draws the same noise there, and leaves checkpoints that know no device."""

import dataclasses
import functools

import pytest
import torch

from kaem.errors import ConfigError
from kaem_train import devices
from kaem_train.checkpoint import read_checkpoint
from kaem_train.data import load_dataset
from kaem_train.devices import choose_device, device_of, moved_to_cpu, normal, on_cpu
from kaem_train.model.kaem import Kaem
from kaem_train.posterior.langevin import StepNoise, langevin_step
from kaem_train.posterior.power import frozen, power_posterior
from kaem_train.posterior.short_run import run_chains
from kaem_train.settings import load_config
from kaem_train.trainer import Trainer, train
from tests.other_device import DEVICE, OtherDevice, OtherTensor, no_waiting

REFIT = ("refit.kind=experts", "refit.num_experts=[2]", "refit.correction_steps=2", "refit.num_images=100")
CHAINS = ("posterior.num_steps=3",)

RUNS = {
    "amortized": ("prior.variant=experts", "prior.frame=global", *REFIT),
    "own frames": ("prior.variant=experts", "prior.frame=own", "posterior.prior_from=0.5"),
    "averages and flips": ("training.ema_decay=0.9", "data.augment_flip=true"),
    "sampled prior term": ("prior.base=silu", "posterior.prior_from=0.0"),
    "independent": ("prior.variant=independent", "posterior.prior_from=0.0"),
    "weighted bound": ("posterior.kind=weighted_bound", "posterior.prior_from=0.5"),
    "refined": ("posterior.kind=refined", "posterior.prior_from=0.5"),
    "importance, resampled": ("posterior.kind=importance", "posterior.resample_below=1.0"),
    "langevin": ("posterior.kind=langevin", *CHAINS),
    "tempering": ("posterior.kind=tempering", "posterior.num_temperatures=2", *CHAINS),
    "contrastive": (
        "prior.variant=independent",
        "posterior.kind=langevin",
        "training.prior_gradient=contrastive",
        *CHAINS,
    ),
    "moving knots": (
        "generator.kind=kan",
        "generator.hidden=[6]",
        "generator.refit_interval=2",
        "prior.refit_interval=3",
    ),
    "vae": ("family=vae",),
    "latent ebm": ("family=latent_ebm", "latent_ebm.prior_steps=2", "latent_ebm.posterior_steps=2"),
}


@pytest.fixture(scope="module")
def digits():
    whole = load_dataset(load_config("digits").data)
    few = torch.arange(200)
    return dataclasses.replace(whole, train=whole.train.subset(few), holdout=whole.holdout.subset(few[:20]))


@pytest.fixture(autouse=True)
def _portable_optimiser(monkeypatch):
    # The fused one asks for a device by name.
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", functools.partial(_unfused, adam))


def _unfused(adam, groups, *, fused=None, **options):
    return adam(groups, fused=False, **options)


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_a_run_on_another_device_is_the_same_run(tmp_path, tiny, digits, monkeypatch, overrides):
    config = tiny("training.updates=4", *overrides)
    here = train(config, digits, tmp_path / "cpu")
    monkeypatch.setattr("kaem_train.trainer.choose_device", lambda _name: DEVICE)
    drawn = []
    with OtherDevice():
        trainer = Trainer(config, digits)
        assert all(isinstance(value, OtherTensor) for value in trainer.model.parameters())
        there = train(config, digits, tmp_path / "there", listeners=[drawn.append])
    assert there.bound == (None if here.bound is None else pytest.approx(here.bound, rel=1e-6))
    expected, found = read_checkpoint(here.checkpoint), read_checkpoint(there.checkpoint)
    for name, value in expected.model_state.items():
        torch.testing.assert_close(found.model_state[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert (found.finished is None) == (expected.finished is None)


def test_cuda_without_a_gpu_is_refused_in_one_line(tiny, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.device = 'cuda', and torch sees no NVIDIA GPU"):
        train(tiny("training.device=cuda"), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    for is_present, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_present=is_present: is_present)
        assert choose_device("auto").type == name
        assert choose_device("cpu").type == "cpu"


def test_a_run_may_be_resumed_on_another_device(tmp_path, tiny, digits):
    train(tiny("training.device=cpu"), digits, tmp_path)
    train(tiny("training.device=auto"), digits, tmp_path, resume=True)


def test_noise_is_drawn_where_its_generator_is():
    # Of a generator on a GPU torch draws on that GPU only; here nothing has one, but `meta` asks for the same.
    class Elsewhere(torch.Generator):
        device = DEVICE

    like = torch.zeros(2, dtype=torch.float64)
    for draw in (devices.normal, devices.uniform):
        with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|generator"):
            draw((5,), Elsewhere(), like)


def test_noise_is_that_of_the_cpu_wherever_it_goes():
    like = torch.zeros(2, dtype=torch.float64)
    expected = normal((5,), torch.Generator().manual_seed(3), like)
    assert expected.dtype == torch.float64
    with OtherDevice():
        found = normal((5,), torch.Generator().manual_seed(3), like.to(DEVICE))
        assert found.device == DEVICE
        assert torch.equal(on_cpu({"a": [found]})["a"][0], expected)


def test_changes_made_on_the_cpu_reach_the_module_where_it_is():
    with OtherDevice():
        module = torch.nn.Linear(2, 2).to(DEVICE)
        weight = module.weight
        with moved_to_cpu(module) as there, torch.no_grad():
            assert device_of(there).type == "cpu"
            there.weight.fill_(7.0)
        assert module.weight is weight  # the optimiser knows it by identity
        assert float(weight.detach().min()) == 7.0
    here = torch.nn.Linear(2, 2)
    with moved_to_cpu(here) as there:
        assert there is here
    assert devices.device_of(torch.nn.Identity()).type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_a_run_on_a_gpu_is_close_to_one_on_the_cpu(tmp_path, tiny, digits, overrides):
    outcomes = [
        train(tiny("training.updates=3", f"training.device={device}", *overrides), digits, tmp_path / device)
        for device in ("cpu", "cuda")
    ]
    expected, found = (read_checkpoint(outcome.checkpoint) for outcome in outcomes)
    for name, value in expected.model_state.items():
        assert found.model_state[name].device.type == "cpu"
        torch.testing.assert_close(found.model_state[name], value, rtol=1e-2, atol=1e-3, msg=name)


CHAIN_PRIORS = {
    "mixture": (),
    "independent": ("prior.variant=independent",),
    "experts": ("prior.variant=experts",),
    "mixture in a frame": ("prior.frame=global",),
    "experts in a frame": ("prior.variant=experts", "prior.frame=global"),
    "experts in own frames": ("prior.variant=experts", "prior.frame=own"),
    "bspline": ("prior.basis=bspline", "prior.grid_size=6"),
    "morlet": ("prior.basis=morlet", "prior.grid_size=2"),
}


def _chains(config, device):
    """A model, the target of four chains, their start and the arguments of a step, on a device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Kaem(config).to(device)
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(4, 1, 8, 8, generator=rng).to(device)
    target = power_posterior(model, images, torch.ones(1))
    options = {"step_size": torch.full((4,), 0.01).to(device), "is_adjusted": False}
    return model, target, normal((4, *model.prior.latent_shape), rng, images), rng, options


@pytest.mark.parametrize("overrides", CHAIN_PRIORS.values(), ids=CHAIN_PRIORS)
def test_a_langevin_step_asks_its_device_for_no_value(tiny, overrides):
    # What a CUDA graph records must not: this is what can be said about it without a GPU.
    with OtherDevice():
        model, target, start, rng, options = _chains(tiny(*overrides), DEVICE)
        with frozen(model):
            state = target.at(start)
            noise = StepNoise.draw(state.z, rng)
            with no_waiting():
                moved, _ = langevin_step(state, noise, target=target, **options)
        assert not torch.equal(moved.z.cpu(), start.cpu())
        with no_waiting(), pytest.raises(RuntimeError, match="waits"):
            float(moved.z.sum())


def test_a_rule_is_held_only_inside(tiny):
    model, target, start, _, _ = _chains(tiny("prior.basis=morlet", "prior.grid_size=1"), torch.device("cpu"))
    with frozen(model):
        target.at(start)
    with torch.no_grad():
        model.prior.bank.log_scales.sub_(1.0)  # narrower wavelets, which need a finer rule
    fresh = Kaem(tiny("prior.basis=morlet", "prior.grid_size=1"))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.prior.log_normalizer(), fresh.prior.log_normalizer())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("overrides", CHAIN_PRIORS.values(), ids=CHAIN_PRIORS)
def test_chains_replayed_from_a_graph_are_the_same_chains(tiny, overrides):
    ends = []
    for is_captured in (False, True):
        model, target, start, rng, options = _chains(tiny(*overrides), torch.device("cuda"))
        with frozen(model):
            run = run_chains(target, start, rng, num_steps=5, is_captured=is_captured, **options)
        ends.append(run.last.z)
    torch.testing.assert_close(*ends)
