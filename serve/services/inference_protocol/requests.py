"""A ModelInferRequest, checked: which model, which rows, and what is to be sent back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kaem.errors import RequestError
from kaem.protocol import inference_pb2
from kaem.protocol.messages import MAX_MESSAGE_BYTES, MESSAGE_HEADROOM
from serve.calls.call_options import CallOptions
from serve.catalog.model import Models, ServedModel
from serve.scheduling.sources import Given, Source
from serve.services.inference_protocol.lookup import find_model
from serve.services.inference_protocol.parameters import (
    check_expected_numerics,
    check_known,
    field_of,
    merge_call_options,
    names_samples,
    read_samples,
)
from serve.services.inference_protocol.tensors import IMAGE, LATENT, Tensor, outputs_of, read_uniforms
from serve.statuses import blaming

_Request = inference_pb2.ModelInferRequest
_MOST_ID = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """What a request asks for.

    Attributes:
        id: Name of the request, in its client's words.
        model: Answers it.
        source: Where the uniforms come from.
        rows: How many images, at least 1.
        outputs: What is to be sent of each.
        call_options: Deadline and class.
    """

    id: str
    model: ServedModel
    source: Source
    rows: int
    outputs: tuple[Tensor, ...]
    call_options: CallOptions

    @property
    def with_latents(self) -> bool:
        """Whether latent vectors are to be sent."""
        return any(tensor.name == LATENT for tensor in self.outputs)

    @property
    def row_bytes(self) -> int:
        """What one row takes until it is sent."""
        image = self.model.manifest.image_bytes
        return image + (4 * self.model.manifest.latent_dim if self.with_latents else 0)

    @property
    def chunk_rows(self) -> int:
        """Most rows of one answer."""
        return max(1, self.model.info.limits.max_chunk_bytes // self.row_bytes)


def read_inference(request: _Request, models: Models, call_options: CallOptions) -> Inference:
    """Check a request; its rows may still be too many for one answer, see `check_fits`.

    Args:
        request: As it came.
        models: All there are.
        call_options: Manners of its call.

    Raises:
        RefusedError: NOT_FOUND, there is no such model; INVALID_ARGUMENT, with the field to blame; OUT_OF_RANGE,
            FAILED_PRECONDITION, PERMISSION_DENIED.
    """
    model = find_model(models, request.model_name, request.model_version, fields=("model_name", "model_version"))
    check_known(request.parameters)
    with blaming("id"):
        if len(request.id) > _MOST_ID:  # every chunk of a stream repeats it
            raise RequestError(f"the id has {len(request.id)} characters", hint=f"send at most {_MOST_ID}")
    outputs = _read_outputs(request.outputs, model)
    check_expected_numerics(request.parameters, model.info.numerics_id)
    source: Source
    if request.inputs or request.raw_input_contents:
        with blaming("inputs"):
            if names_samples(request.parameters):
                raise RequestError("both a tensor and samples by seed", hint="send one of them")
        uniform = read_uniforms(request, model.manifest.noise_dim, model.info.limits.max_decode_rows)
        source, rows = Given(uniform), len(uniform)
    else:
        source, rows = read_samples(request.parameters)
    inference = Inference(
        id=request.id,
        model=model,
        source=source,
        rows=rows,
        outputs=outputs,
        call_options=merge_call_options(request.parameters, call_options),
    )
    with blaming("outputs"):
        if inference.row_bytes > MAX_MESSAGE_BYTES - MESSAGE_HEADROOM:
            raise RequestError("an image and its latent vector do not fit in one answer", hint="ask for one of them")
    return inference


def check_fits(inference: Inference) -> None:
    """Check that the images of a request fit in one answer.

    Raises:
        RefusedError: INVALID_ARGUMENT.
    """
    is_tensor = isinstance(inference.source, Given)
    with blaming("inputs[0].shape" if is_tensor else field_of("count")):
        if inference.rows > inference.chunk_rows:
            raise RequestError(
                f"{inference.rows} images do not fit in one answer; {inference.chunk_rows} do",
                hint="call ModelStreamInfer",
            )


def _read_outputs(outputs: Sequence[_Request.InferRequestedOutputTensor], model: ServedModel) -> tuple[Tensor, ...]:
    made = outputs_of(model)
    wanted: dict[str, Tensor] = {}
    for number, output in enumerate(outputs):
        with blaming(f"outputs[{number}].name"):
            if output.name not in made:
                raise RequestError(
                    f"no output named {output.name[:80]!r}", hint=f"this model makes {' and '.join(map(repr, made))}"
                )
            if output.name in wanted:
                raise RequestError(f"output {output.name!r} is asked for twice")
        with blaming(f"outputs[{number}].parameters"):
            if output.parameters:
                unknown = ", ".join(repr(name[:80]) for name in sorted(output.parameters))
                raise RequestError(f"unknown parameters of {output.name!r}: {unknown}", hint="send none")
        wanted[output.name] = made[output.name]
    return tuple(wanted.values()) or (made[IMAGE],)
