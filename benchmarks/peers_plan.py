"""What is compared: models, how each is trained, and the samplers that are exported of it.

Everything of one plan shares data, preset, seed and feature network. Widths follow the preset but for the ladder of
narrower decoders, and all have the preset's number of updates; the DDPM gets a small network, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One artifact of a trained model.

    Attributes:
        name: Name of its files and of its row in every table.
        export: Options of `kaem export`.
        evaluation: Options of `kaem eval`: fewer images where an image takes long.
    """

    name: str
    export: tuple[str, ...] = ()
    evaluation: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One trained model.

    Attributes:
        name: Name of its folder.
        family: As `kaem train --family` takes it.
        settings: `section.key=value` words over the preset.
        samplers: What is exported of it.
    """

    name: str
    family: str
    settings: tuple[str, ...] = ()
    samplers: tuple[Sampler, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison.

    Attributes:
        name: Name of the plan.
        preset: Preset of `kaem train`.
        file: The data set, in the folder of data; empty for the preset's own.
        seed: Seed of training and evaluation.
        settings: `section.key=value` words over the preset, for all of them.
        peers: In the order in which they are made; the first sampler of the first is what the others are compared to.
    """

    name: str
    preset: str
    file: str
    seed: int = 0
    settings: tuple[str, ...] = ()
    peers: tuple[Peer, ...]


def _few(num: int, *sizes: int) -> tuple[str, ...]:
    return ("--num", str(num), "--sizes", ",".join(map(str, sizes)), "--no-floors")


_MANY = ("--num", "10000", "--no-floors")
_SOME = _few(1000, 250, 400, 550, 700, 850, 1000)
_LEAST = _few(200, 100, 120, 140, 160, 180, 200)


def _decoder(dense: int, *channels: int) -> tuple[str, ...]:
    return f"generator.dense={dense}", f"generator.channels=[{', '.join(map(str, channels))}]"


_LADDER = {"32-16": _decoder(64, 32, 16), "16-8": _decoder(32, 16, 8), "8-8": _decoder(16, 8, 8)}
"""Decoders narrower than the preset's 128, [64, 32], by the end of their names."""


def _one(name: str, family: str, *settings: str) -> Peer:
    return Peer(name=name, family=family, settings=settings, samplers=(Sampler(name=name, evaluation=_MANY),))


_OFTEN = "training.checkpoint_every=200"

FASHION_MNIST = Plan(
    name="fashion-mnist",
    preset="fashion-mnist",
    file="fashion_mnist.npz",
    settings=("posterior.kind=amortized",),  # the objective of a VAE for all: the preset's takes three times as long
    peers=(
        _one("kaem", "kaem"),
        _one("vae", "vae"),
        _one("latent-ebm", "latent-ebm", "training.updates=1000", _OFTEN),  # each costs 20 of a VAE
        Peer(
            name="ddpm",
            family="ddpm",
            settings=(
                "diffusion.channels=[16, 32, 32]",
                "diffusion.attention=[7]",
                "diffusion.learning_rate=1e-3",
                "training.warmup=100",
                "training.ema_decay=0.999",
                _OFTEN,
            ),
            samplers=(
                Sampler(name="ddim-10", export=("--sampler", "ddim", "--steps", "10"), evaluation=_SOME),
                Sampler(name="ddim-50", export=("--sampler", "ddim", "--steps", "50"), evaluation=_SOME),
                Sampler(name="ddpm-1000", export=("--sampler", "ddpm", "--steps", "1000"), evaluation=_LEAST),
            ),
        ),
        *(_one(f"{family}-{end}", family, *words) for end, words in _LADDER.items() for family in ("kaem", "vae")),
        _one("kaem-8-8-q16", "kaem", *_LADDER["8-8"], "prior.num_latents=16"),
    ),
)

_QUICK = ("--num", "60", "--sizes", "20,40,60", "--no-floors")

SMOKE = Plan(
    name="smoke",
    preset="digits",
    file="",
    peers=(
        Peer(
            name="kaem",
            family="kaem",
            settings=("training.updates=4", "refit.kind=none"),
            samplers=(Sampler(name="kaem", evaluation=_QUICK),),
        ),
        Peer(
            name="ddpm",
            family="ddpm",
            settings=(
                "training.updates=2",
                "diffusion.channels=[8, 8]",
                "diffusion.noise_steps=20",
                "diffusion.sampling_steps=2",
            ),
            samplers=(Sampler(name="ddim-2", export=("--sampler", "ddim", "--steps", "2"), evaluation=_QUICK),),
        ),
    ),
)
"""Whether the machinery works, in half a minute; its figures mean nothing."""

PLANS = {plan.name: plan for plan in (FASHION_MNIST, SMOKE)}
