"""An unmodified tritonclient asks a server process: metadata, an answer, a stream, an error."""

from __future__ import annotations

import queue

import numpy as np
import pytest

import kaem

triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException


def _images(result):
    return result.as_numpy("image")


def test_tritonclient_reads_infers_and_streams(monitored, artifact_path, saw):
    with kaem.load(artifact_path, workers=1) as sampler:
        name, wanted = sampler.manifest.name, sampler.sample(300, 7)
    answers: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(monitored.address) as client:
        assert client.is_server_ready()
        assert client.is_model_ready(name)
        told = client.get_model_metadata(name)
        assert told.outputs[0].name == "image"
        assert client.get_model_config(name).config.model_transaction_policy.decoupled
        one = client.infer(name, [], parameters={"seed": 7, "start": 3, "count": 5})
        np.testing.assert_array_equal(_images(one), wanted[3:8])
        with pytest.raises(InferenceServerException) as caught:
            client.infer("another", [], parameters={"seed": 7})
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(name, [], parameters={"seed": 7, "count": 300}, enable_empty_final_response=True)
        parts = []
        while True:
            result, error = answers.get(timeout=60)
            assert error is None
            if len(result.get_response().outputs):
                parts.append(_images(result))
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
        np.testing.assert_array_equal(np.concatenate(parts), wanted)
        counted = client.get_inference_statistics(name).model_stats[0].inference_count
    saw(
        f"metadata, {len(told.inputs)} input, {len(told.outputs)} outputs; 5 images by seed and 300 in {len(parts)} "
        f"parts of a stream equal to the local sampler's; {counted} samples in its statistics; unknown model NOT_FOUND"
    )
