"""A generator of the user's before it trains: what would only come to light at export is tried at the door.

Hours of training should not end in a model that cannot leave torch. So its class is built once more in another
process, where nothing that this one has drawn, cached or set is left, and exported with the weights it starts with.
"""

from __future__ import annotations

import io
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from kaem.engines.session import open_session
from kaem.errors import ConfigError, KaemError
from kaem_train.model.generators.user_module import build_user_module, import_class, probe_latents

_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 2, 5, 33)
_SLACK = 1e-4
_CHILD = "from kaem_train.model.generators.trial import answer; answer()"


def try_user_module(name: str, num_latents: int, image_shape: tuple[int, ...]) -> None:
    """Build a module, build it anew in another process, and export it.

    Args:
        name: `package.module:ClassName`.
        num_latents: Q.
        image_shape: (C, H, W).

    Raises:
        ConfigError: It cannot be built (`build_user_module`), is another one in another process, or torch cannot
            export it as what it computes. The last is tried where the libraries of an export are installed.
    """
    _try(import_class(name), name, num_latents, image_shape)  # type: ignore[arg-type]  # classes are hashable


@lru_cache(maxsize=16)
def _try(_kind: type[nn.Module], name: str, num_latents: int, image_shape: tuple[int, ...]) -> None:
    """Do it once for a class: a command looks at its configuration more than once."""
    module = build_user_module(name, num_latents, image_shape)
    _require_same_elsewhere(module, name, num_latents, image_shape)
    if all(find_spec(library) for library in _LIBRARIES):
        _require_exportable(module, name, num_latents)


def answer() -> None:
    """Build the module that standard input describes; an error is one line on standard error, and exit code 3."""
    from kaem_train.model.generators.user_module import require_same_images

    question = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=True)
    sys.path[:] = question["path"]
    torch.manual_seed(question["seed"])
    name, images = question["name"], question["images"]
    try:
        with torch.no_grad():
            twin = build_user_module(name, question["num_latents"], tuple(images.shape[1:])).eval()
            where = " in another process"
            require_same_images(twin, question["state"], images, question["latents"], name, where)
    except KaemError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        sys.exit(3)


def _require_same_elsewhere(module: nn.Module, name: str, num_latents: int, image_shape: tuple[int, ...]) -> None:
    """Refuse a module that gives other images with the same state where its class is imported afresh."""
    if name.startswith("__main__:"):
        return  # the class of a notebook or script, which no other process knows
    latents = probe_latents(num_latents)
    with torch.no_grad():
        images = module.eval()(latents)
    question = io.BytesIO()
    content = {
        "name": name,
        "num_latents": num_latents,
        "state": module.state_dict(),
        "latents": latents,
        "images": images,
        "path": list(sys.path),
        "seed": 12345,
    }
    torch.save(content, question)
    child = subprocess.run(  # noqa: S603  # this very interpreter, and no words of anybody's
        [sys.executable, "-c", _CHILD], input=question.getvalue(), capture_output=True, check=False
    )
    if child.returncode == 0:
        return
    lines = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
    if child.returncode == 3 and len(lines) >= 2:
        raise ConfigError(lines[-2], hint=lines[-1])
    raise ConfigError(
        f"generator.module = {name!r} cannot be built in another process: {lines[-1][:300]}",
        hint="an export builds it anew: let its constructor need nothing but its two arguments",
    )


def _open(content: bytes, name: str) -> Any:
    """Open what torch exports of a module; the file is ours, so its hint is another than a user's file gets."""
    try:
        return open_session(content, "cpu", source="what torch exports of it")
    except KaemError as error:
        raise ConfigError(error.message, hint=f"let {name!r} compute in float32 by operations that ONNX has") from None


def _require_exportable(module: nn.Module, name: str, num_latents: int) -> None:
    """Refuse a module that torch cannot export, or exports as something else."""
    from kaem_train.onnx_tracing import trace_generator

    what = f"generator.module = {name!r}"
    try:
        content = trace_generator(module, num_latents).SerializeToString()
        session = _open(content, name)
        for size in _BATCHES:
            rng = torch.Generator().manual_seed(size)
            latents = torch.cat([scale * torch.randn(size, num_latents, generator=rng) for scale in (1.0, 3.0)])[:size]
            with torch.no_grad():
                expected = module(latents).numpy()
            found = np.asarray(session.run(None, {"latent": latents.numpy()})[0])
            if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=_SLACK, equal_nan=True):
                difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
                raise ConfigError(
                    f"what torch exports of it gives other images for {size} rows, by up to {difference:.2g}",
                    hint="write its forward with tensor operations alone: Python numbers and branches become constants",
                )
    except KaemError as error:
        raise ConfigError(f"{what} could not be exported once trained: {error.message}", hint=error.hint) from error
    except Exception as error:  # onnxruntime's own exception classes share no public base
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{what} could not be exported once trained: {reason}", hint="build it from operations that ONNX has"
        ) from error
