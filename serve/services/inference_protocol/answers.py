"""Messages that go back: images, and what is said about models and the server."""

from __future__ import annotations

from collections.abc import Iterable

import kaem
from kaem.protocol import inference_pb2
from kaem.sampler import Images
from serve.catalog.model import ServedModel
from serve.scheduling.sources import Seeded
from serve.services.inference_protocol.lookup import version_of
from serve.services.inference_protocol.requests import Inference
from serve.services.inference_protocol.tensors import Tensor, input_of, outputs_of
from serve.settings import ServeSettings

_PLATFORM = "kaem"
_EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "schedule_policy", "statistics")
_MOST_INT32 = (1 << 31) - 1


def images_answer(inference: Inference, images: Images, done: int) -> inference_pb2.ModelInferResponse:
    """Write images of a request.

    Args:
        inference: The request.
        images: Shape (N, C, H, W); with latent vectors, rows of `serve.scheduling.sources`.
        done: Rows of the request that were sent before these.
    """
    model = inference.model
    answer = inference_pb2.ModelInferResponse(
        model_name=model.info.name, model_version=version_of(model), id=inference.id
    )
    first = inference.source.start if isinstance(inference.source, Seeded) else 0
    answer.parameters["start"].uint64_param = first + done
    answer.parameters["numerics_id"].string_param = model.info.numerics_id
    for tensor in inference.outputs:
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=(len(images), *tensor.dims))
        answer.raw_output_contents.append(tensor.bytes_of(images[tensor.name] if inference.with_latents else images))
    return answer


def server_metadata() -> inference_pb2.ServerMetadataResponse:
    """Write what the server is."""
    return inference_pb2.ServerMetadataResponse(name="kaem", version=kaem.__version__, extensions=_EXTENSIONS)


def model_metadata(model: ServedModel, versions: Iterable[str]) -> inference_pb2.ModelMetadataResponse:
    """Write the tensors of a model."""
    return inference_pb2.ModelMetadataResponse(
        name=model.info.name,
        versions=versions,
        platform=_PLATFORM,
        inputs=[_metadata_of(input_of(model.manifest))],
        outputs=[_metadata_of(tensor) for tensor in outputs_of(model).values()],
    )


def model_config(model: ServedModel, settings: ServeSettings) -> inference_pb2.ModelConfigResponse:
    """Write how a model is run."""
    given, limits = input_of(model.manifest), model.info.limits
    kinds = inference_pb2.ModelInstanceGroup
    config = inference_pb2.ModelConfig(
        name=model.info.name,
        platform=_PLATFORM,
        backend=_PLATFORM,
        max_batch_size=min(limits.max_decode_rows, _MOST_INT32),
        input=[inference_pb2.ModelInput(name=given.name, data_type=given.data_type, dims=given.dims, optional=True)],
        output=[
            inference_pb2.ModelOutput(name=made.name, data_type=made.data_type, dims=made.dims)
            for made in outputs_of(model).values()
        ],
        instance_group=[kinds(count=1, kind=kinds.KIND_CPU if model.info.provider == "cpu" else kinds.KIND_GPU)],
        dynamic_batching=inference_pb2.ModelDynamicBatching(
            preferred_batch_size=model.scheduler.costs.sizes,
            max_queue_delay_microseconds=settings.queue_delay,
            priority_levels=2,
        ),
        model_transaction_policy=inference_pb2.ModelTransactionPolicy(decoupled=True),
    )
    told = {
        "numerics_id": model.info.numerics_id,
        "provider": model.info.provider,
        "max_sample_rows": str(limits.max_sample_rows),
    }
    for name, value in told.items():
        config.parameters[name].string_value = value
    return inference_pb2.ModelConfigResponse(config=config)


def _metadata_of(tensor: Tensor) -> inference_pb2.ModelMetadataResponse.TensorMetadata:
    return inference_pb2.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(-1, *tensor.dims)
    )
