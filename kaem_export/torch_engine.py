"""Engines for `kaem bench` that need torch: an exported model's graph node by node, or a checkpoint's own sampler.

Of an exported model, `TorchTwin` computes the very same graph from the very same noise. Of a checkpoint, torch runs
`model.sample`, as someone would who never exported: its noise is torch's, so only its speed can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor

from kaem import noise
from kaem.bench.engines import MAX_ROWS, Engine, Job
from kaem.bench.engines import open_engine as open_own
from kaem.errors import ArtifactError, BackendError
from kaem.padding import calls, joined, whole_calls
from kaem.sampler import Images
from kaem_export.torch_twin import TorchTwin
from kaem_train.checkpoint import load_model

NAMES = ("torch-eager", "torch-compile")

_MOST_SIZES = 64
"""Batch sizes that torch may compile for; beyond its own limit of 8 it would silently run uncompiled."""


def open_engine(job: Job) -> Engine:
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
    if job.source.endswith(".pt"):
        return CheckpointEngine(Path(job.source), device=job.provider, is_compiled=is_compiled)
    return TwinEngine(Path(job.source), device=job.provider, is_compiled=is_compiled)


class TwinEngine:
    """An exported model's graph in torch, from the same noise as every other engine.

    Args:
        path: The exported model.
        device: "cpu" or "cuda".
        is_compiled: Whether torch compiles it, once for every batch size.
    """

    def __init__(self, path: Path, *, device: str, is_compiled: bool) -> None:
        try:
            model = onnx.load(str(path))
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
        path: The checkpoint.
        device: "cpu" or "cuda".
        is_compiled: Whether torch compiles the networks; the sampling loop around them stays Python.
    """

    def __init__(self, path: Path, *, device: str, is_compiled: bool) -> None:
        config, model = load_model(path)
        self._model = model.to(device)
        if is_compiled:
            for child in self._model.children():
                child.compile(dynamic=False)
            torch._dynamo.config.recompile_limit = _MOST_SIZES
        self._rng = torch.Generator(device=device)
        self._words = {**_settings(device, is_compiled), "runs": f"model.sample of the checkpoint ({config.family})"}

    @property
    def settings(self) -> Mapping[str, str]:
        """Device, threads, state of TF32, version, and that the noise is torch's."""
        return {**self._words, "noise": "torch's own"}

    @torch.no_grad()
    def sample(self, num: int, seed: int, start: int = 0) -> Images:
        """Return `num` images; which, follows from seed and start, but they are not those of other engines."""
        self._rng.manual_seed(seed + start)
        images: Images = self._model.sample(num, self._rng).cpu().numpy()
        return images

    def close(self) -> None:
        """Nothing is held that the process does not give back."""


def _compiled(twin: TorchTwin) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    torch._dynamo.config.recompile_limit = _MOST_SIZES
    run: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.compile(twin, dynamic=False, fullgraph=True)
    return run


def _settings(device: str, is_compiled: bool) -> dict[str, str]:
    words = {"provider": torch.cuda.get_device_name() if device == "cuda" else "CPU", "torch": torch.__version__}
    words |= {"threads": str(torch.get_num_threads()), "compiled": "yes" if is_compiled else "no"}
    if device == "cuda":
        words["TF32"] = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    return words
