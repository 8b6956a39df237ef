"""Small real artifacts, built with onnx alone so that tests of the lower floors need no exporter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kaem.artifact import MANIFEST_KEY, Figure, Manifest, fingerprint, read_manifest, write_manifest


def write_small_artifact(
    path: Path,
    *,
    noise_dim: int = 5,
    image_shape: tuple[int, int, int] = (1, 8, 8),
    seed: int = 0,
    manifest: Manifest | None = None,
) -> Path:
    """Write `image = sigmoid(latent @ W + b)`, `latent = 4 uniform`, with a valid manifest unless one is given."""
    random = np.random.default_rng(seed)
    pixels = int(np.prod(image_shape))
    initializers = {
        "four": np.float32(4),
        "weight": random.normal(size=(noise_dim, pixels)).astype(np.float32),
        "bias": random.normal(size=pixels).astype(np.float32),
        "shape": np.array([-1, *image_shape], np.int64),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["uniform", "four"], ["latent"]),
            helper.make_node("Gemm", ["latent", "weight", "bias"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["image"]),
        ],
        "small",
        [helper.make_tensor_value_info("uniform", TensorProto.FLOAT, ["N", noise_dim])],
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *image_shape]),
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", noise_dim]),
        ],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    if manifest is None:
        manifest = Manifest(
            family="kaem",
            name="small",
            noise_dim=noise_dim,
            latent_dim=noise_dim,
            image_shape=image_shape,
            certificate=(Figure(name="u_error", value=1e-7, bound=1e-4),),
        )
    return write_sealed(path, model, manifest)


def write_sealed(path: Path, model: onnx.ModelProto, manifest: Manifest) -> Path:
    """Write a model with a manifest, which states the digest of its graph unless it states another one already."""
    del model.metadata_props[:]
    if not manifest.graph_fingerprint:
        manifest = replace(manifest, graph_fingerprint=fingerprint(model.SerializeToString(deterministic=True)))
    helper.set_model_props(model, {MANIFEST_KEY: write_manifest(manifest)})
    path.write_bytes(model.SerializeToString())
    return path


def write_changed(path: Path, model: onnx.ModelProto) -> Path:
    """Write an artifact that was changed on purpose: its manifest states the digest of its graph again."""
    [text] = [entry.value for entry in model.metadata_props if entry.key == MANIFEST_KEY]
    manifest = read_manifest({MANIFEST_KEY: text}, source="the changed artifact")
    return write_sealed(path, model, replace(manifest, graph_fingerprint=""))
