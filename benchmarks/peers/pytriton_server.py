"""A model behind PyTriton: `uniform` in, `image` out, its dynamic batcher on. Runs in an environment of its own."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

path, port, max_batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(given,), image = session.get_inputs(), session.get_outputs()[0]


@batch
def infer(uniform: np.ndarray) -> dict[str, np.ndarray]:
    """Map rows of uniforms to images."""
    return {"image": session.run(["image"], {"uniform": uniform})[0]}


config = TritonConfig(
    http_address="127.0.0.1",
    grpc_address="127.0.0.1",
    metrics_address="127.0.0.1",
    grpc_port=port,
    http_port=port + 1,
    metrics_port=port + 2,
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="model",
        infer_func=infer,
        inputs=[Tensor(name="uniform", dtype=np.float32, shape=tuple(given.shape[1:]))],
        outputs=[Tensor(name="image", dtype=np.uint8, shape=tuple(image.shape[1:]))],
        config=ModelConfig(max_batch_size=max_batch, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        strict=False,
    )
    triton.serve()
