"""A model behind Mosec: bytes of `uniform` in, bytes of `image` out, its batcher on. Runs in an environment of its own.

Mosec reads its own options, `--address` and `--port`, from the command line; the model and the batch come from the
environment: PEER_MODEL, PEER_MAX_BATCH.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from mosec import Server, Worker


class Sampler(Worker):
    """Maps the rows of all requests of a batch to images in one call."""

    def __init__(self) -> None:
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], providers=["CPUExecutionProvider"])
        self.dim = self.session.get_inputs()[0].shape[1]

    def deserialize(self, data: bytes) -> np.ndarray:
        """Return rows of uniforms."""
        return np.frombuffer(data, np.float32).reshape(-1, self.dim)

    def serialize(self, data: np.ndarray) -> bytes:
        """Return the bytes of images."""
        return data.tobytes()

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        """Answer the requests of a batch."""
        images = self.session.run(["image"], {"uniform": np.concatenate(data)})[0]
        return np.split(images, np.cumsum([len(rows) for rows in data])[:-1])


if __name__ == "__main__":
    server = Server()
    server.append_worker(Sampler, num=1, max_batch_size=int(os.environ["PEER_MAX_BATCH"]), max_wait_time=0)
    server.run()
