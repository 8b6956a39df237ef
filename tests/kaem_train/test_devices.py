"""A run computes where it is told to, draws the same noise there, and leaves checkpoints that know no device."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from other_device import DEVICE, OtherDevice, OtherTensor, no_waiting, waiting

from kaem.errors import ConfigError, KaemError
from kaem_train import devices
from kaem_train.checkpoint import read_checkpoint
from kaem_train.config.settings import load_config
from kaem_train.data import load_dataset, take_batch
from kaem_train.data.order import PixelsAhead
from kaem_train.devices import bring_to_cpu, choose_device, find_device, move_to_cpu, normal
from kaem_train.families.kaem import Kaem
from kaem_train.posterior.amortized import AmortizedPosterior
from kaem_train.posterior.langevin import StepNoise, langevin_step
from kaem_train.posterior.power import frozen, power_posterior
from kaem_train.posterior.short_run import run_chains
from kaem_train.training.optimiser import FiniteGuard
from kaem_train.training.trainer import Trainer, train

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
    monkeypatch.setattr(torch.optim, "Adam", PortableAdam)


class PortableAdam(torch.optim.Adam):
    """Adam that does on any device what the fused one does with `found_inf`, though it has to look."""

    def __init__(self, groups, *, fused=None, **options):
        super().__init__(groups, fused=False, **options)

    def step(self):
        with waiting():
            found = self.__dict__.pop("found_inf", None)
            if found is None or not bool(found):
                super().step()


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_a_run_on_another_device_is_the_same_run(tmp_path, tiny, digits, monkeypatch, overrides):
    config = tiny("training.updates=4", *overrides)
    here = train(config, digits, tmp_path / "cpu")
    monkeypatch.setattr("kaem_train.training.trainer.choose_device", lambda _name: DEVICE)
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


WITHOUT_WAITING = {
    "amortized": (),
    "amortized, prior under way": ("posterior.prior_from=0.0",),
    "independent": ("prior.variant=independent", "posterior.prior_from=0.0"),
    "own frames": ("prior.variant=experts", "prior.frame=own", "posterior.prior_from=0.0"),
    "averages and flips": ("training.ema_decay=0.9", "data.augment_flip=true"),
    "weighted bound": ("posterior.kind=weighted_bound", "posterior.prior_from=0.0"),
    "refined": ("posterior.kind=refined", "posterior.prior_from=0.0"),
    "vae": ("family=vae",),
    "latent ebm": ("family=latent_ebm", "latent_ebm.prior_steps=2", "latent_ebm.posterior_steps=2"),
}


@pytest.mark.parametrize("overrides", WITHOUT_WAITING.values(), ids=WITHOUT_WAITING)
def test_an_update_does_not_wait_for_its_device(tiny, digits, monkeypatch, overrides):
    monkeypatch.setattr("kaem_train.training.trainer.choose_device", lambda _name: DEVICE)
    config = tiny("training.updates=9", "training.log_every=4", *overrides)
    with OtherDevice():
        trainer = Trainer(config, digits)
        for number in range(6):
            # The first meets everything for the first time, the fourth reports, the one after checks the rule anew.
            with nullcontext() if number in (0, 3, 4) else no_waiting(uploads=True):
                trainer.update(None)
        assert trainer.step == 6


def test_an_update_that_is_not_finite_changes_nothing_on_another_device_and_is_told_at_the_report(
    tiny, digits, monkeypatch, tmp_path
):
    monkeypatch.setattr("kaem_train.training.trainer.choose_device", lambda _name: DEVICE)
    config = tiny("training.updates=20", "training.log_every=5")
    with OtherDevice():
        trainer = Trainer(config, digits)
        trainer.update(None)
        terms = trainer.posterior.terms
        spoilt = dataclasses.replace
        monkeypatch.setattr(
            trainer.posterior,
            "terms",
            lambda *given: spoilt(terms(*given), loss=terms(*given).loss * (torch.nan if given[2] == 1 else 1.0)),
        )
        before = {name: value.detach().clone().cpu() for name, value in trainer.model.named_parameters()}
        for _ in range(3):
            trainer.update(None)
        with pytest.raises(KaemError, match="not finite at update 2"):
            trainer.update(tmp_path / "ckpt.pt")
        for name, value in trainer.model.named_parameters():
            assert torch.equal(value.detach().cpu(), before[name]), name
        with pytest.raises(KaemError, match="not finite at update 2"):
            trainer.save(tmp_path / "ckpt.pt")
    assert not (tmp_path / "ckpt.pt").exists()


def test_fused_adam_passes_over_the_updates_that_the_guard_refuses():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimiser = PortableAdam.__base__([parameter], fused=True)
    guard = FiniteGuard(optimiser, torch.device("cpu"))  # as if it were not to be waited for
    for step, gradient in enumerate((1.0, torch.nan, 1.0)):
        parameter.grad = torch.full((3,), gradient)
        norm = parameter.grad.norm()
        assert guard.admits(torch.ones(()), norm, step)
        optimiser.step()
        if step == 0:
            after_one = parameter.detach().clone()
            assert guard.find_first_failure() == 0
    assert torch.equal(parameter.detach(), after_one)
    assert guard.find_first_failure() == 2
    assert not torch.equal(after_one, torch.ones(3))


def test_pixels_read_ahead_are_those_of_the_batch(digits):
    train = digits.train
    ahead = PixelsAhead(train, 32, seed=5)
    for step in (0, 1, 2, 7, 8, 3):  # a resumed run begins anywhere
        options = {"seed": 5, "step": step, "augment_flip": True}
        assert torch.equal(take_batch(train, 32, ahead=ahead, **options), take_batch(train, 32, **options))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1,cuda:2", "CUDA", ""])
def test_a_device_of_another_name_is_refused(tiny, name):
    with pytest.raises(ConfigError, match=r"is no device") as caught:
        tiny(f"training.device='{name}'")
    assert "cuda:1" in caught.value.hint


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"'cuda:2', and torch sees only 2 of them \(cuda:0 to cuda:1\)"):
        choose_device("cuda:2")


def test_tf32_is_a_choice_of_the_run_and_never_of_evaluation(tiny, digits, monkeypatch):
    seen = []
    terms = AmortizedPosterior.terms

    def noting(self, *given):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return terms(self, *given)

    monkeypatch.setattr(AmortizedPosterior, "terms", noting)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, is_on in (("tf32", True), ("float32", False)):
        seen.clear()
        trainer = Trainer(tiny("training.updates=1", f"training.precision={precision}"), digits)
        with trainer.arithmetic():
            trainer.update(None)
            with trainer.in_use():
                assert not torch.backends.cudnn.allow_tf32
        assert seen == [(is_on, is_on)]
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_cuda_without_a_gpu_is_refused_in_one_line(tiny, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'cuda', and torch sees no NVIDIA GPU"):
        train(tiny("training.device=cuda"), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
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
        assert torch.equal(bring_to_cpu({"a": [found]})["a"][0], expected)


def test_changes_made_on_the_cpu_reach_the_module_where_it_is():
    with OtherDevice():
        module = torch.nn.Linear(2, 2).to(DEVICE)
        weight = module.weight
        with move_to_cpu(module) as there, torch.no_grad():
            assert find_device(there).type == "cpu"
            there.weight.fill_(7.0)
        assert module.weight is weight  # the optimiser knows it by identity
        assert float(weight.detach().min()) == 7.0
    here = torch.nn.Linear(2, 2)
    with move_to_cpu(here) as there:
        assert there is here
    assert devices.find_device(torch.nn.Identity()).type == "cpu"


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
