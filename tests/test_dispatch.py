"""A name of no kind is never taken for the last kind: dispatch names them all and fails for any other."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import pytest
import torch
from dispatch import find_falling_through, vocabulary

from cli import evaluate, export, fit_prior
from kaem.artifact import ImageType
from kaem.bench.scenarios.engines import EngineJob, open_engine
from kaem.engines.session import hardware_id
from kaem.errors import ConfigError
from kaem_export.options import Level, Precision
from kaem_export.targets.build import Target
from kaem_export.targets.triton import Backend
from kaem_train.config.checks import least_grid_size
from kaem_train.config.settings import Config, load_config
from kaem_train.data.sources.labels import load_labels
from kaem_train.evaluation.options import Split
from kaem_train.families.build import build_model, build_objective
from kaem_train.fitting.fit_prior import PriorName
from kaem_train.model.activations import activation_kinks
from kaem_train.model.bases import build_basis
from kaem_train.model.generators.generator import build_generator
from kaem_train.model.prior.factorised import build_prior
from kaem_train.model.prior.reference import ReferenceDensity
from kaem_train.posterior import build_posterior
from kaem_train.posterior.importance import resample
from kaem_train.posterior.tempering import criterion_weights
from kaem_train.training.objective import log_prior_term
from kaem_train.training.optimiser import rate_factor
from serve.devices.devices import Device
from serve.devices.devices import open_engine as open_on_device

ROOT = Path(__file__).parents[1]
FOREIGN = "hermite"
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("kaem", "kaem_train", "kaem_export", "serve", "cli", "benchmarks", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "_pb2" not in path.name
}
NAMES = vocabulary(TREES)


def test_no_code_takes_one_kind_for_all_the_names_that_it_does_not_know():
    found = [str(one) for path, tree in TREES.items() for one in find_falling_through(path, tree, NAMES)]
    assert not found, "\n".join(found)


FALLING = {
    "the last kind is what is left": """
def build(name):
    if name == "rbf":
        return 1
    return 2
""",
    "a ternary": 'width = 4 if self.image_type == "float32" else 1',
    "an else": """
if kind == "cnn":
    layers = 1
elif kind == "kan":
    layers = 2
else:
    layers = 3
""",
    "a match without an end": """
match kind:
    case "cnn":
        layers = 1
""",
    "a match whose end is a kind": """
match kind:
    case "cnn":
        layers = 1
    case _:
        layers = 2
""",
    "a default of a table": 'TABLE = {"cnn": 1, "kan": 2}\nwidth = TABLE.get(kind, 3)',
    "a default of a table in place": 'width = {"cnn": 1, "kan": 2}.get(kind, 3)',
}
FAILING = {
    "a match": """
match kind:
    case "cnn":
        layers = 1
    case _:
        assert_never(kind)
""",
    "a table": 'width = {"cnn": 1, "kan": 2}[kind]',
    "a refusal": """
if kind == "cnn":
    raise ConfigError("not that one")
""",
    "whether there is anything": 'base = 0 if kind == "none" else TABLE[kind]',
}


@pytest.mark.parametrize("source", FALLING.values(), ids=FALLING)
def test_falling_through_is_found(source):
    assert list(find_falling_through(Path("x.py"), ast.parse(source), NAMES))


@pytest.mark.parametrize("source", FAILING.values(), ids=FAILING)
def test_dispatch_that_fails_is_left_alone(source):
    assert not list(find_falling_through(Path("x.py"), ast.parse(source), NAMES))


def _tables() -> Iterator[tuple[str, set[str], set[str]]]:
    """Yield name, keys and names of every module's table `dict[KIND, ...]`."""
    for path, tree in TREES.items():
        annotated = [
            node.target.id
            for node in tree.body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and ast.unparse(node.annotation).startswith("dict[")
        ]
        if not annotated or path.parts[0] in {"benchmarks", "scripts"}:
            continue
        module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
        for name in annotated:
            key = get_args(typing.get_type_hints(module)[name])[0]
            if typing.get_origin(key) is Literal:
                yield f"{module.__name__}.{name}", set(getattr(module, name)), set(get_args(key))


def test_tables_have_a_row_for_every_kind():
    tables = list(_tables())
    assert len(tables) > 8
    assert {name: keys for name, keys, _ in tables} == {name: kinds for name, _, kinds in tables}


def test_the_commands_know_the_same_names():
    commands = ((evaluate, evaluate.evaluate), (export, export.export), (fit_prior, fit_prior.fit_prior))
    hints = {
        (module.__name__, name): set(get_args(next((h for h in (hint, *get_args(hint)) if _is_literal(h)), None)))
        for module, command in commands
        for name, hint in typing.get_type_hints(command).items()
        if any(_is_literal(h) for h in (hint, *get_args(hint)))
    }
    assert hints == {
        ("cli.evaluate", "real"): set(get_args(Split)),
        ("cli.export", "image_type"): set(get_args(ImageType)),
        ("cli.export", "sampler"): {"ddim", "ddpm"},
        ("cli.export", "optimize"): set(get_args(Level)),
        ("cli.export", "precision"): set(get_args(Precision)),
        ("cli.export", "target"): set(get_args(Target)),
        ("cli.export", "triton_backend"): set(get_args(Backend)),
        ("cli.export", "device"): {"cpu", "cuda"},
        ("cli.fit_prior", "prior"): set(get_args(PriorName)),
    }


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _with(section: str, **values: Any) -> Config:
    """Return a configuration that no file could give: with names that the checks at the door refuse."""
    config = load_config("digits-strict")
    part = config if section == "" else getattr(config, section)
    for name, value in values.items():
        object.__setattr__(part, name, value)
    return config


def _build_prior(**values: Any) -> Any:
    return build_prior(_with("prior", **values).prior)


RNG = torch.Generator()
DISPATCHERS: dict[str, Callable[[], Any]] = {
    "basis": lambda: build_basis(FOREIGN, 8, grid=(-1.0, 1.0), domain=(-1.0, 1.0)),
    "basis of a prior": lambda: _build_prior(basis=FOREIGN),
    "variant": lambda: _build_prior(variant=FOREIGN),
    "frame": lambda: _build_prior(frame=FOREIGN),
    "reference": lambda: _build_prior(reference=FOREIGN).log_normalizer(),
    "breaks of a reference": lambda: ReferenceDensity(_with("prior", reference=FOREIGN).prior).breaks(-1.0, 1.0),
    "base": lambda: _build_prior(base=FOREIGN).log_normalizer(),
    "kinks of a base": lambda: activation_kinks(FOREIGN),
    "least grid size": lambda: least_grid_size(FOREIGN),
    "uniforms": lambda: _with("prior", u_sharing=FOREIGN).prior.num_uniforms,
    "generator": lambda: build_generator(4, (1, 8, 8), _with("generator", kind=FOREIGN).generator),
    "posterior": lambda: build_posterior(_with("posterior", kind=FOREIGN), (4,)),
    "kernel": lambda: build_posterior(_with("posterior", kind="langevin", kernel=FOREIGN), (4,)),
    "family": lambda: build_model(_with("", family=FOREIGN)),
    "rates of a family": lambda: _with("", family=FOREIGN).learning_rates,
    "objective": lambda: build_objective(load_config("digits-strict"), torch.nn.Linear(1, 1)),
    "resampling": lambda: resample(torch.full((1, 4), 0.25), FOREIGN, RNG),
    "criterion": lambda: criterion_weights(torch.tensor([0.0, 1.0]), FOREIGN),
    "gradient": lambda: log_prior_term(
        build_prior(load_config("digits-strict").prior), torch.zeros(1, 32), FOREIGN, RNG
    ),
    "contrastive gradient of a mixture": lambda: log_prior_term(
        build_prior(load_config("digits-strict").prior), torch.zeros(1, 32), "contrastive", RNG
    ),
    "schedule": lambda: rate_factor(_with("training", schedule=FOREIGN).training, 0),
    "source of labels": lambda: load_labels(_with("data", source=FOREIGN).data, SimpleNamespace(train=None)),
    "eta of a sampler": lambda: _with("diffusion", sampler=FOREIGN).diffusion.used_eta,
    "provider": lambda: hardware_id(FOREIGN),
    "device of a server": lambda: open_on_device(Path("model.onnx"), Device(FOREIGN)),
}


@pytest.mark.parametrize("dispatch", DISPATCHERS.values(), ids=DISPATCHERS)
def test_a_foreign_name_is_no_kind(dispatch):
    with pytest.raises((AssertionError, KeyError, ValueError)):
        dispatch()


def test_an_engine_of_no_name_is_refused():
    with pytest.raises(ConfigError, match=FOREIGN):
        open_engine(EngineJob(engine=FOREIGN, source="x.onnx", threads=1))


def test_configurations_refuse_foreign_names_before():
    for section in dataclasses.fields(Config):
        hints = typing.get_type_hints(type(getattr(load_config("digits"), section.name)))
        for name, hint in hints.items():
            if _is_literal(hint):
                with pytest.raises(ConfigError):
                    load_config("digits", [f"{section.name}.{name}={FOREIGN}"])
