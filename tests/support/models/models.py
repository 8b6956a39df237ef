"""Checkpoints with wild random energies and random generators: exporting needs a model, not a good one."""

from __future__ import annotations

from pathlib import Path

import torch

from kaem_train.checkpoint import Checkpoint, write_checkpoint
from kaem_train.config.settings import Config, load_config
from kaem_train.families.build import Model
from kaem_train.families.kaem import Kaem
from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.factorised import IndependentPrior
from kaem_train.model.prior.own_frames import OwnFramesPrior

_SMALL = (
    "prior.variant=mixture",
    "prior.frame=none",
    "prior.num_latents=3",
    "prior.num_components=4",
    "prior.low=-6",
    "prior.high=6",
)
_INDEPENDENT = ("prior.variant=independent",)
_UNIFORM = (
    "prior.reference=uniform",
    "prior.low=0",
    "prior.high=1",
    "prior.grid_low=0",
    "prior.grid_high=1",
    "posterior.kind=importance",
)
_NO_REFERENCE = (
    "prior.reference=none",
    "prior.low=-1.2",
    "prior.high=1.2",
    "prior.grid_low=-1.2",
    "prior.grid_high=1.2",
    "posterior.kind=importance",
)
_LOGNORMAL = (
    "prior.reference=lognormal",
    "prior.low=0.001",
    "prior.high=8",
    "prior.grid_low=0.001",
    "prior.grid_high=8",
    "posterior.kind=importance",
)
_LEARNABLE = ("prior.reference=learnable_gaussian",)
_SHARED = (*_INDEPENDENT, "prior.u_sharing=per_p", "posterior.kind=importance")
_EXPERTS = ("prior.variant=experts", "prior.low=-8", "prior.high=8")
_KAN = ("generator.kind=kan", "generator.channels=[]", "generator.hidden=[12]")

VARIANTS: dict[str, tuple[str, ...]] = {
    "gaussian mixture": (),
    "gaussian independent": _INDEPENDENT,
    "one component": (*_INDEPENDENT, "prior.num_components=1"),
    "uniform mixture with a kink": (*_UNIFORM, "prior.base=relu"),
    "uniform sum of three": (*_INDEPENDENT, *_UNIFORM, "prior.num_components=3"),
    "no reference, silu": (*_NO_REFERENCE, "prior.base=silu"),
    "experts": _EXPERTS,
    "experts in a frame": (*_EXPERTS, "prior.frame=global"),
    "experts in own frames": (*_EXPERTS, "prior.frame=own"),
    "one expert in its frame": (*_EXPERTS, "prior.frame=own", "prior.num_components=1"),
    "one expert": (*_EXPERTS, "prior.num_components=1"),
    "mixture in a frame": ("prior.frame=global",),
    "switches, gelu": ("prior.basis=rswaf", "prior.base=gelu"),
    "splines": (*_NO_REFERENCE, "prior.basis=bspline", "prior.base=leakyrelu", *_KAN, "generator.basis=bspline"),
    "waves": ("prior.basis=fourier", "prior.grid_size=5", *_KAN, "generator.basis=fourier", "generator.grid_size=3"),
    "polynomials": (
        *("prior.basis=chebyshev", "prior.grid_size=8"),
        *(*_KAN, "generator.basis=chebyshev", "generator.grid_size=4"),
    ),
    "orthogonal polynomials": (
        *("prior.basis=legendre", "prior.grid_size=8"),
        *(*_KAN, "generator.basis=legendre", "generator.grid_size=4"),
    ),
    "wavelets": ("prior.basis=morlet", "prior.grid_size=8", *_KAN, "generator.basis=morlet", "generator.grid_size=2"),
    "experts of splines": (*_EXPERTS, "prior.basis=bspline", "prior.num_components=2"),
    "kan generator": (*_INDEPENDENT, *_NO_REFERENCE, *_KAN),
    "lognormal mixture": _LOGNORMAL,
    "learnable gaussian mixture": _LEARNABLE,
    "learnable gaussian independent": (*_INDEPENDENT, *_LEARNABLE),
    "shared uniforms": _SHARED,
    "latent joined to every layer": ("generator.latent_concat=true",),
}
"""Settings laid over the `digits` preset, by what they cover."""

MORE_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "sum of splines": (*_INDEPENDENT, "prior.basis=bspline", "prior.grid_size=9"),
    "sum of waves on [0, 1]": (*_INDEPENDENT, *_UNIFORM, "prior.basis=fourier", "prior.grid_size=4"),
    "many waves, tanh": ("prior.basis=fourier", "prior.grid_size=20", "prior.base=tanh"),
    "many polynomials": ("prior.basis=chebyshev", "prior.grid_size=20"),
    "many orthogonal polynomials, sums": (*_INDEPENDENT, "prior.basis=legendre", "prior.grid_size=20"),
    "one wavelet per energy": (*_INDEPENDENT, "prior.basis=morlet", "prior.grid_size=1"),
    "experts of wavelets": (*_EXPERTS, "prior.basis=morlet", "prior.grid_size=4", "prior.num_components=2"),
}
"""The same, for what is only worth a look at the prior's distributions."""


def random_model(*overrides: str, amplitude: float = 1.5, seed: int = 0) -> tuple[Config, Kaem]:
    """A small model whose energies have coefficients N(0, amplitude^2), far from its smooth initialisation."""
    config = load_config("digits", [*_SMALL, *overrides])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Kaem(config).eval()
        with torch.no_grad():
            model.prior.bank.coefficients.normal_(0.0, amplitude)
            if hasattr(model.prior.bank, "log_scales"):
                model.prior.bank.log_scales.uniform_(-0.7, 0.7)
            if not isinstance(model.prior, IndependentPrior):
                model.prior.logits.normal_(0.0, 1.0)
            if isinstance(model.prior, ExpertsPrior):
                model.prior.means.normal_(0.0, 1.5)
                model.prior.log_stds.uniform_(-1.5, 0.4)
            if model.prior.reference.is_learnable:
                # Some of them beyond the bounds that hold where they are used.
                model.prior.reference.mean.normal_(0.0, 2.0)
                model.prior.reference.rho.uniform_(-4.0, 3.0)
            if isinstance(model.prior, OwnFramesPrior):
                model.prior.frames.offset.normal_(0.0, 2.0)
                model.prior.frames.matrix.add_(0.3 * torch.randn_like(model.prior.frames.matrix))
            if model.prior.frame is not None:
                model.prior.frame.offset.normal_()
                model.prior.frame.matrix.add_(0.3 * torch.randn_like(model.prior.frame.matrix))
    return config, model


def write_untrained(path: Path, config: Config, model: Model) -> Path:
    """Write a model that has seen no data as a checkpoint."""
    content = Checkpoint(
        config=config,
        model_state=model.state_dict(),
        posterior_state={},
        optimiser_state={},
        step=0,
        data_fingerprint="sha256:0",
    )
    write_checkpoint(path, content)
    return path


def write_random_checkpoint(path: Path, *overrides: str, amplitude: float = 1.5, seed: int = 0) -> Path:
    """Write `random_model` as a checkpoint."""
    return write_untrained(path, *random_model(*overrides, amplitude=amplitude, seed=seed))
