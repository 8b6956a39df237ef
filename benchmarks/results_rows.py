"""What is compared: rows, and the data sets and seeds they are run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model.

    Attributes:
        name: Name of its folder; other rows' commands name that folder {name_with_underscores}.
        label: In the table.
        command: After `kaem`, with placeholders.
    """

    name: str
    label: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Rows that share a data set and a seed, run in this order.

    Attributes:
        name: Name of the data set's folder and table.
        file: The data set, in the folder given with --data.
        seed: Seed of training, fitting and evaluation.
        rows: Later ones may start from earlier ones.
        eval: Options of `kaem eval`.
        words: More placeholders.
    """

    name: str
    file: str
    seed: int
    rows: tuple[Row, ...]
    eval: str
    words: Mapping[str, str] = field(default_factory=dict)


def _comparison(extra: str = "") -> tuple[Row, ...]:
    train = f"--data {{data}} --seed {{seed}} {extra} -o {{out}}"
    evidence = f"--set posterior.kind=amortized {train}"
    refit = "fit-prior --checkpoint {vae}/ckpt.pt --data {data} --seed {seed} -o {out}/ckpt.pt"
    return (
        Row(name="vae", label="VAE", command=f"train {{preset}} --family vae {evidence}"),
        Row(name="kaem", label="KAEM", command=f"train {{preset}} {train}"),
        Row(name="vae-gaussians", label="VAE + Gaussian mixture, post hoc", command=f"{refit} --updates 0"),
        Row(name="strict", label="KAEM, strictly univariate", command=f"train {{preset}}-strict {train}"),
        Row(name="vae-fit-prior", label="VAE + `fit-prior`", command=refit),
    )


def _objectives(extra: str = "") -> tuple[Row, ...]:
    """Return the rows that tell the prior's part from the objective's: each side with the other's bound."""
    chain = {row.name: row for row in _comparison(extra)}
    train = chain["kaem"].command
    return (
        Row(name="kaem-evidence", label="KAEM, evidence bound", command=f"{train} --set posterior.kind=amortized"),
        Row(name="iwae", label="VAE, weighted bound", command=f"{train} --family vae"),
        Row(
            name="iwae-gaussians",
            label="VAE, weighted bound + Gaussian mixture",
            command=chain["vae-gaussians"].command.replace("{vae}", "{iwae}"),
        ),
    )


def _grey(preset: str, file: str, seeds: range, rows: tuple[Row, ...], num: int = 10_000) -> list[Chain]:
    return [
        Chain(
            name=preset,
            file=file,
            seed=seed,
            rows=rows,
            eval=f"--data {{data}} --features classifier --num {num} --seed {{seed}}",
            words={"preset": preset},
        )
        for seed in seeds
    ]


_FACES = "--set data.crop=74"
_FACES_32 = (
    f"{_FACES} --set data.image_shape=[3,32,32] --set generator.channels=[128,64,32] "
    "--set posterior.encoder_channels=[32,64,128] --updates 2500"
)
_FACES_64 = (
    f"{_FACES} --set generator.channels=[128,64,32,16] --set posterior.encoder_channels=[16,32,64,128] --updates 2500"
)


def _colour(name: str, preset: str, file: str, rows: tuple[Row, ...], options: str, seed: int = 0) -> Chain:
    return Chain(
        name=name,
        file=file,
        seed=seed,
        rows=rows,
        eval=f"--data {{data}} --features inception {options} --seed {{seed}}",
        words={"preset": preset},
    )


# The network sees about three images a second on one core: as few as figures can stand.
_FEW = "--num 500 --num-real 500 --sizes 250,300,350,400,450,500"
_MORE = "--num 600 --sizes 300,360,420,480,540,600"

PLANS: dict[str, list[Chain]] = {
    "small": _grey("fashion-mnist", "fashion_mnist.npz", range(1), _comparison("--updates 600"), 2000),
    "fashion-mnist": _grey("fashion-mnist", "fashion_mnist.npz", range(3), _comparison() + _objectives()),
    "mnist": _grey("mnist", "mnist.npz", range(3), _comparison() + _objectives()),
    "svhn": [
        _colour("svhn", "svhn", "svhn.npz", _comparison() + _objectives(), _MORE, seed=0),
        _colour("svhn", "svhn", "svhn.npz", _comparison(), _MORE, seed=1),
    ],
    "celeba-32": [_colour("celeba-32", "celeba", "celeba_89x109_jpeg.tar", _comparison(_FACES_32), _FEW)],
    "celeba-64": [_colour("celeba-64", "celeba", "celeba_89x109_jpeg.tar", _comparison(_FACES_64), _FEW)],
}
