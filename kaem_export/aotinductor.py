"""Artifact -> an AOTInductor package (.pt2): the torch twin, compiled ahead of time for the machine it is made on.

The package belongs to its torch version and to the device that compiled it; load it with
`torch._inductor.aoti_load_package(path)`, which needs torch and no kaem. It returns (image, latent).
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch

from kaem.errors import BackendError
from kaem.files import replacing
from kaem_export.torch_twin import TorchTwin
from kaem_train.interrupt import signals_held_back

MOST_ROWS = 1 << 16


def build_package(model: onnx.ModelProto, output: Path, *, device: str) -> None:
    """Compile an exported graph with a free batch size for a device.

    Args:
        model: The artifact.
        output: Where the package goes.
        device: "cpu", which needs a C++ compiler, or "cuda".

    Raises:
        ArtifactError: The graph has a node that the torch twin does not know.
        BackendError: torch cannot compile it here.
        RequestError: The output cannot be written.
    """
    noise_dim = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    with replacing(output) as draft:
        twin = TorchTwin(model).eval().to(device)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about its own internals
            logging.getLogger("torch._inductor").setLevel(logging.ERROR)
            rows = torch.export.Dim("N", min=1, max=MOST_ROWS)
            with signals_held_back():
                program = torch.export.export(
                    twin, (torch.zeros(2, noise_dim, device=device),), dynamic_shapes=({0: rows},)
                )
            try:
                torch._inductor.aoti_compile_and_package(program, package_path=str(draft))
            except Exception as error:  # of the compilers it calls, without a common base
                reason = " ".join(str(error).split())[:300]
                raise BackendError(
                    f"torch {torch.__version__} cannot compile for {device}: {reason}",
                    hint="it needs a C++ compiler (apt install g++), and for cuda a GPU",
                ) from error
