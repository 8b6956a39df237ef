"""inference.GRPCInferenceService: requests become jobs of the scheduler, as those of kaem.v1 do."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from kaem.protocol import inference_pb2
from kaem.sampler import Images
from serve.calls.call_context import current
from serve.calls.call_options import read_call_options
from serve.calls.interceptor import Context, Malformed, Reception, tolerant, well_formed
from serve.calls.submit import Submitter, converting
from serve.catalog.model import Models, ServedModel
from serve.events import Observer
from serve.services.inference_protocol.answers import images_answer, model_config, model_metadata, server_metadata
from serve.services.inference_protocol.lookup import find_model
from serve.services.inference_protocol.requests import Inference, check_fits, read_inference
from serve.services.inference_protocol.statistics import Statistics
from serve.services.inference_protocol.stream import Conversations, Send
from serve.settings import ServeSettings
from serve.statuses import RefusedError

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_NAMED = ("name", "version")
_keep = converting(to_bytes=False)


class InferenceService:
    """Answers inference.GRPCInferenceService.

    Args:
        models: What it samples from.
        settings: Which requests are bulk.
        observer: Told of every message sent.
        statistics: Statistics of the models.
        is_ready: Whether calls are let in.
    """

    def __init__(
        self,
        models: Models,
        settings: ServeSettings,
        observer: Observer,
        statistics: Statistics,
        is_ready: Callable[[], bool],
    ) -> None:
        self._models = models
        self._settings = settings
        self._submitter = Submitter(settings)
        self._observer = observer
        self._statistics = statistics
        self._is_ready = is_ready

    def handler(self, reception: Reception) -> grpc.GenericRpcHandler[object, object]:
        """Return the methods; built by hand so that requests are read tolerantly.

        Like health checks, the questions whether the server lives and is ready need no token.
        """
        answered, identified, admitted = reception.answered, reception.identified, reception.admitted
        methods = {
            "ServerLive": _unary(answered, "ServerLive", self.server_live),
            "ServerReady": _unary(answered, "ServerReady", self.server_ready),
            "ModelReady": _unary(identified, "ModelReady", self.model_ready),
            "ServerMetadata": _unary(identified, "ServerMetadata", self.server_metadata),
            "ModelMetadata": _unary(admitted, "ModelMetadata", self.model_metadata),
            "ModelConfig": _unary(admitted, "ModelConfig", self.model_config),
            "ModelStatistics": _unary(admitted, "ModelStatistics", self.model_statistics),
            "ModelInfer": _unary(admitted, "ModelInfer", self.model_infer),
        }
        method = _path("ModelStreamInfer")
        conversations = Conversations(method, self.stream_infer, reception)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            reception.conversed(method, conversations.hold), tolerant(inference_pb2.ModelInferRequest), _write
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def server_live(self, request: Message | Malformed, context: Context) -> Message:
        """Answer that the server is there."""
        well_formed(request)
        return inference_pb2.ServerLiveResponse(live=True)

    async def server_ready(self, request: Message | Malformed, context: Context) -> Message:
        """Answer whether calls are let in."""
        well_formed(request)
        return inference_pb2.ServerReadyResponse(ready=self._is_ready())

    async def model_ready(self, request: inference_pb2.ModelReadyRequest | Malformed, context: Context) -> Message:
        """Answer whether a model can be asked; one that is not known, or that nothing computes now, cannot."""
        asked = well_formed(request)
        try:
            find_model(self._models, asked.name, asked.version, fields=_NAMED)
        except RefusedError as refused:
            if refused.code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                raise
            return inference_pb2.ModelReadyResponse(ready=False)
        return inference_pb2.ModelReadyResponse(ready=self._is_ready())

    async def server_metadata(self, request: Message | Malformed, context: Context) -> Message:
        """Answer what the server is."""
        well_formed(request)
        return server_metadata()

    async def model_metadata(self, request: inference_pb2.ModelMetadataRequest, context: Context) -> Message:
        """Answer the tensors of a model."""
        model = find_model(self._models, request.name, request.version, fields=_NAMED)
        return model_metadata(model, map(str, self._models.versions(model.info.name)))

    async def model_config(self, request: inference_pb2.ModelConfigRequest, context: Context) -> Message:
        """Answer how a model is run."""
        return model_config(find_model(self._models, request.name, request.version, fields=_NAMED), self._settings)

    async def model_statistics(self, request: inference_pb2.ModelStatisticsRequest, context: Context) -> Message:
        """Answer what a model has done; without a name, what all have done that the caller may use."""
        if request.name:
            models = [find_model(self._models, request.name, request.version, fields=_NAMED)]
        else:
            models = [model for model in self._models if _may_use(model)]
        return inference_pb2.ModelStatisticsResponse(
            model_stats=[self._statistics.message(model.info.name, model.info.version) for model in models]
        )

    async def model_infer(self, request: inference_pb2.ModelInferRequest, context: Context) -> Message:
        """Answer all images of a request at once."""
        inference = read_inference(request, self._models, read_call_options(context))
        check_fits(inference)
        submitted = self._submitter.whole(
            inference.model,
            inference.source,
            inference.rows,
            row_bytes=inference.row_bytes,
            convert=_keep,
            call_options=inference.call_options,
            with_latents=inference.with_latents,
        )
        async with submitted as job:
            answer = images_answer(inference, await anext(job), 0)
        self._note_sent(inference, inference.rows, 0.0)
        return answer

    async def stream_infer(self, request: inference_pb2.ModelInferRequest, context: Context, send: Send) -> None:
        """Send the images of one request of a stream, in chunks."""
        inference = read_inference(request, self._models, read_call_options(context))
        submitted = self._submitter.stream(
            inference.model,
            inference.source,
            inference.rows,
            chunk_rows=inference.chunk_rows,
            row_bytes=inference.row_bytes,
            convert=_keep,
            call_options=inference.call_options,
            with_latents=inference.with_latents,
        )
        done = 0
        async with submitted as job:
            async for images in job:
                done += await self._send_chunk(inference, images, done, send)

    async def _send_chunk(self, inference: Inference, images: Images, done: int, send: Send) -> int:
        answer = images_answer(inference, images, done)
        began = time.monotonic()
        await send(answer, done + len(images) == inference.rows)
        self._note_sent(inference, len(images), time.monotonic() - began)
        return len(images)

    def _note_sent(self, inference: Inference, rows: int, seconds: float) -> None:
        told = inference.model.info
        self._observer.on_sent(model=told.name, version=told.version, rows=rows, seconds=seconds)


def _unary(
    surround: Callable[..., Any], name: str, answer: Callable[..., Awaitable[Message]]
) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        surround(_path(name), answer), tolerant(getattr(inference_pb2, f"{name}Request")), _write
    )


def _path(name: str) -> str:
    return f"/{SERVICE}/{name}"


def _may_use(model: ServedModel) -> bool:
    call = current.get()
    return call is None or call.caller is None or call.caller.may_use(model.info.name)


def _write(message: Message) -> bytes:
    return message.SerializeToString()
