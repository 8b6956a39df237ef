"""What ONNX Runtime's GPU providers are told: exact arithmetic, no stall on a new batch size, no silent growth.

Keys and values are ONNX Runtime's own, all of them strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}

PROFILE_ROWS = (1, 64, 1024)
"""Least, best and most rows of a batch that engines of the TensorRT provider are built for."""

GPU_ROWS = tuple(1 << power for power in range(11))
"""Numbers of rows with which a GPU's session is called, up to the most of `PROFILE_ROWS`.

A number that is new to it makes it choose kernels and plan memory anew, so calls are filled up to one of these.
"""

APPROXIMATE = "approx:"
"""Beginning of a numerics id under which images agree up to rounding only, not bit for bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """How a session uses a GPU.

    Attributes:
        device: Number of the GPU, as CUDA counts.
        tf32: Let matrix products and convolutions round their factors to 10 bits of mantissa. ONNX Runtime's own
            default is yes; here images are to agree with those of a CPU up to float32 rounding.
        cuda_graph: Record the kernels of a batch size once and replay them. The caller must run the session from one
            thread, with bound buffers that never move and one `gpu_graph_id` per batch size.
        channels_last: Lay images out as NHWC, which tensor cores prefer; whether it pays is to be measured.
    """

    device: int = 0
    tf32: bool = False
    cuda_graph: bool = False
    channels_last: bool = False


def cuda_options(options: GpuOptions) -> dict[str, str]:
    """Return the options of the CUDA provider."""
    return {
        "device_id": str(options.device),
        "use_tf32": _flag(options.tf32),
        "enable_cuda_graph": _flag(options.cuda_graph),
        "prefer_nhwc": _flag(options.channels_last),
        # By rule, not by a race between algorithms: that stalls for up to a second on each batch size that has not been
        # seen, and two servers could come to different kernels, so to different bits under one numerics id.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The arena otherwise doubles with every growth.
        "arena_extend_strategy": "kSameAsRequested",
    }


def tensorrt_options(options: GpuOptions, inputs: Mapping[str, tuple[int, ...]], cache: Path) -> dict[str, str]:
    """Return the options of the TensorRT provider.

    Args:
        options: `tf32` and `channels_last` are TensorRT's own matter; `NVIDIA_TF32_OVERRIDE=0` in the environment
            turns TF32 off.
        inputs: Shape of a row of each input with a free batch size.
        cache: Folder of engines and of what the builder measured; a build takes minutes, so it is kept.
    """
    shapes = {
        f"trt_profile_{name}_shapes": ",".join(
            f"{value}:{'x'.join(map(str, (rows, *row)))}" for value, row in inputs.items()
        )
        for name, rows in zip(("min", "opt", "max"), PROFILE_ROWS, strict=True)
    }
    return {
        "device_id": str(options.device),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_cuda_graph_enable": _flag(options.cuda_graph),
        **(shapes if inputs else {}),
    }


def _flag(is_on: bool) -> str:
    return "1" if is_on else "0"
