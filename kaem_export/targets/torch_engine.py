"""Engines for `kaem bench` that need torch: an exported model's graph node by node, or a checkpoint's own sampler.

Of an exported model, `TorchTwin` computes the very same graph from the very same noise. Of a checkpoint, and of an
artifact whose graph holds a loop, torch runs `model.sample` as someone would who never exported, and `diffusers` its
own pipeline: their noise is torch's, so only their speed can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from kaem import noise
from kaem.bench.scenarios.engines import MAX_ROWS, BenchEngine, EngineJob
from kaem.bench.scenarios.engines import open_engine as open_own
from kaem.engines.cpu import read_file
from kaem.engines.padding import calls, joined, whole_calls
from kaem.errors import ArtifactError, BackendError, ConfigError
from kaem.onnx_file import require_whole
from kaem.sampler import Images
from kaem_export.families.exported_families import family_of_manifest
from kaem_export.targets.torch_twin import TorchTwin
from kaem_export.targets.trained import Trained, manifest_of, open_trained
from kaem_train.families.diffusion import Diffusion, sampling_schedule, step_options

NAMES = ("torch-eager", "torch-compile", "diffusers")

_MOST_SIZES = 64
"""Batch sizes that torch may compile for; beyond its own limit of 8 it would silently run uncompiled."""


def open_engine(job: EngineJob) -> BenchEngine:
    """Open any engine, those of torch included.

    Raises:
        KaemError: The source or the engine is unusable.
    """
    if job.engine not in NAMES:
        return open_own(job)
    if job.provider == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch sees no CUDA device", hint="check nvidia-smi, and that torch is a CUDA build")
    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    is_compiled = job.engine == "torch-compile"
    source = Path(job.source)
    if job.engine == "diffusers":
        return PipelineEngine(source, device=job.provider)
    if source.suffix == ".pt" or _is_looped(source):
        return CheckpointEngine(source, device=job.provider, is_compiled=is_compiled)
    return TwinEngine(source, device=job.provider, is_compiled=is_compiled)


class TwinEngine:
    """An exported model's graph in torch, from the same noise as every other engine.

    Args:
        path: The exported model.
        device: "cpu" or "cuda".
        is_compiled: Whether torch compiles it, once for every batch size.
    """

    def __init__(self, path: Path, *, device: str, is_compiled: bool) -> None:
        content = read_file(path)
        require_whole(content, source=str(path))
        try:
            model = onnx.load_model_from_string(content)
            rows, width = model.graph.input[0].type.tensor_type.shape.dim
            self._noise_dim = width.dim_value
            # A fixed number of rows is part of the graph's own sizes.
            self._sizes = (rows.dim_value,) if rows.dim_value else ()
        except Exception as error:  # protobuf's own classes
            raise ArtifactError(f"{path} is not a usable ONNX model: {' '.join(str(error).split())[:200]}") from None
        twin = TorchTwin(model).to(device).eval()
        self._device = device
        self._words = _settings(device, is_compiled)
        self._run: Callable[[Tensor], tuple[Tensor, Tensor]] = _compiled(twin) if is_compiled else twin
        self._rows = whole_calls(MAX_ROWS * torch.get_num_threads() if device == "cpu" else 1 << 16, self._sizes)

    @property
    def settings(self) -> Mapping[str, str]:
        """Device, threads, state of TF32, version."""
        return {**self._words, "runs": "the exported graph"}

    @torch.inference_mode()
    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return samples `start .. start + num - 1` of `seed`."""
        pieces = []
        for first in range(0, num, self._rows):
            uniform = noise.uniforms(seed, start + first, min(self._rows, num - first), self._noise_dim)
            for piece in calls(uniform, self._sizes, self._rows):
                image, _ = self._run(torch.from_numpy(piece).to(self._device))
                pieces.append(image.cpu().numpy())
        return joined(pieces, num)

    def close(self) -> None:
        """Nothing is held that the process does not give back."""


class CheckpointEngine:
    """A checkpoint's own `model.sample`, of any family.

    Args:
        path: The checkpoint, or an artifact that lies beside it.
        device: "cpu" or "cuda".
        is_compiled: Whether torch compiles the networks; the sampling loop around them stays Python.
    """

    def __init__(self, path: Path, *, device: str, is_compiled: bool) -> None:
        trained = open_trained(path)
        self._model = trained.model.to(device)
        if is_compiled:
            for child in self._model.children():
                child.compile(dynamic=False)
            torch._dynamo.config.recompile_limit = _MOST_SIZES
        self._rng = torch.Generator(device=device)
        self._words = {**_settings(device, is_compiled), **_said_of(trained, "model.sample")}

    @property
    def settings(self) -> Mapping[str, str]:
        """Device, threads, state of TF32, version, and that the noise is torch's."""
        return self._words

    @torch.no_grad()
    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return `num` images; which, follows from seed and start, but they are not those of other engines."""
        self._rng.manual_seed(seed + start)
        images: Images = self._model.sample(num, self._rng).cpu().numpy()
        return images

    def close(self) -> None:
        """Nothing is held that the process does not give back."""


class PipelineEngine:
    """The pipeline of diffusers around a diffusion model's network, as its users call it.

    Args:
        path: The checkpoint, or an artifact that lies beside it, whose sampler and steps then count.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: The model is no diffusion model.
    """

    def __init__(self, path: Path, *, device: str) -> None:
        from diffusers import DDIMPipeline, DDPMPipeline

        trained = open_trained(path)
        model = trained.model
        if not isinstance(model, Diffusion):
            raise ConfigError(f"{path} is a model of the family {trained.family}, which diffusers has no pipeline for")
        config = model.config
        kind = {"ddim": DDIMPipeline, "ddpm": DDPMPipeline}[config.sampler]
        self._pipeline: Any = kind(unet=model.generator, scheduler=sampling_schedule(config)).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._options = {"num_inference_steps": config.sampling_steps, "output_type": "np"}
        self._options |= step_options(config)
        self._rng = torch.Generator(device=device)
        self._words = {
            **_settings(device, False),
            **_said_of(trained, kind.__name__),
            "diffusers": version("diffusers"),
        }

    @property
    def settings(self) -> Mapping[str, str]:
        """Device, threads, state of TF32, versions, and that the noise is torch's."""
        return self._words

    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return `num` images; which, follows from seed and start, but they are not those of other engines."""
        self._rng.manual_seed(seed + start)
        images: Images = self._pipeline(batch_size=num, generator=self._rng, **self._options).images
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)

    def close(self) -> None:
        """Nothing is held that the process does not give back."""


def _is_looped(source: Path) -> bool:
    """Whether a file is an artifact of a family that samples in a loop; one that cannot be read is not."""
    try:
        return family_of_manifest(manifest_of(source)).has_loop
    except ArtifactError:
        return False


def _said_of(trained: Trained, what: str) -> dict[str, str]:
    return {
        "runs": f"{what} of the checkpoint ({trained.family})",
        "updates": str(trained.updates),
        "noise": "torch's own",
    }


def _compiled(twin: TorchTwin) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    torch._dynamo.config.recompile_limit = _MOST_SIZES
    run: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.compile(twin, dynamic=False, fullgraph=True)
    return run


def _settings(device: str, is_compiled: bool) -> dict[str, str]:
    words = {"provider": "CPU" if device == "cpu" else torch.cuda.get_device_name(), "torch": torch.__version__}
    words |= {"threads": str(torch.get_num_threads()), "compiled": "yes" if is_compiled else "no"}
    if device == "cuda":
        words["TF32"] = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    return words
