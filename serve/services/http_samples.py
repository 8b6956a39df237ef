"""`GET /v1/sample.png?seed=7&n=16`: a contact sheet of samples, for curl and browsers.

It is one more way to ask: token, limits, admission and scheduler are those of the gRPC port, and so are the reasons for
which it is refused. The same address names the same pixels for as long as the model stays, so answers carry an ETag,
and a browser that has the sheet already costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import PIL
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kaem.errors import RequestError
from kaem.images import contact_sheet, encode_png, sheet_bytes
from kaem.protocol.messages import MAX_MESSAGE_BYTES
from kaem.protocol.status import REQUEST_KEY
from kaem.validation import check_range
from serve.calls.call_context import Call
from serve.calls.call_options import CallOptions
from serve.calls.interceptor import Reception
from serve.calls.submit import Submitter, converting
from serve.catalog.model import Models, ServedModel
from serve.events import Observer
from serve.scheduling.sources import Seeded
from serve.settings import ServeSettings
from serve.statuses import RefusedError, blaming

METHOD = "/http/sample.png"
"""The name of such a call in metrics, traces and logs."""

_DEFAULT_NUM = 16
_MOST_IMAGES = 256
_MOST_DRAWN = 2  # sheets at a time
_MOST_SHEET_BYTES = 16 << 20
_MOST_DIGITS = 20  # of 2^64
_PATIENCE_S = 30.0  # HTTP has no deadlines: what would take longer is refused
_PARAMETERS = ("seed", "start", "n", "scale", "model")
_to_bytes = converting(to_bytes=True)
_Code = grpc.StatusCode
_HTTP = {
    _Code.INVALID_ARGUMENT: 400,
    _Code.OUT_OF_RANGE: 400,
    _Code.UNAUTHENTICATED: 401,
    _Code.PERMISSION_DENIED: 403,
    _Code.NOT_FOUND: 404,
    _Code.RESOURCE_EXHAUSTED: 429,
    _Code.UNAVAILABLE: 503,
    _Code.DEADLINE_EXCEEDED: 504,
}
_HEADERS = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Which samples, and how large.

    Attributes:
        model: Makes them.
        seed: Seed of the noise.
        start: Index of the first sample.
        num: How many.
        scale: Magnification; None for what makes small images visible.
    """

    model: ServedModel
    seed: int
    start: int
    num: int
    scale: int | None

    @property
    def etag(self) -> str:
        """Digest of everything that fixes the bytes of the file."""
        parts = (self.model.info.numerics_id, self.seed, self.start, self.num, self.scale, PIL.__version__)
        return f'"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"'


class HttpSamples:
    """Answers `/v1/sample.png`.

    Args:
        models: What it samples from.
        settings: Which requests are bulk.
        observer: Told of every sheet sent.
        reception: Surrounds the calls.
    """

    def __init__(self, models: Models, settings: ServeSettings, observer: Observer, reception: Reception) -> None:
        self._models = models
        self._submitter = Submitter(settings)
        self._observer = observer
        self._reception = reception
        # Threads of its own: sheets take memory that --max-memory does not count, so few are drawn at a time.
        self._drawing = ThreadPoolExecutor(_MOST_DRAWN, "picture")

    def routes(self) -> list[Route]:
        """Return what is answered."""
        return [Route("/v1/sample.png", self.answer, methods=["GET"])]

    async def answer(self, request: Request) -> Response:
        """Answer one request; it is given up as soon as its client is gone."""
        peer = "" if request.client is None else f"{request.client.host}:{request.client.port}"
        call = Call(METHOD, secrets.token_hex(8), dict(request.headers), peer)
        work = self._reception.serve(call, partial(self._picture, request), lambda: _Code.CANCELLED)
        answering, leaving = asyncio.create_task(work), asyncio.create_task(_until_left(request))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return Response()  # nobody reads it
            response = answering.result()
        except RefusedError as refused:
            response = _refusal(refused)
        finally:
            leaving.cancel()
            answering.cancel()
        response.headers.update({**_HEADERS, REQUEST_KEY: call.request_id})
        return response

    async def _picture(self, request: Request) -> Response:
        sheet = self._read(request)
        headers = {"etag": sheet.etag, "cache-control": "private, no-cache"}  # no-cache: ask whether it still holds
        if _has_it(request, sheet.etag):
            return Response(status_code=304, headers=headers)
        submitted = self._submitter.whole(
            sheet.model,
            Seeded(sheet.seed, sheet.start),
            sheet.num,
            row_bytes=math.prod(sheet.model.manifest.image_shape),
            convert=_to_bytes,
            call_options=CallOptions("", False, _PATIENCE_S),
        )
        async with submitted as job:
            images = await anext(job)
            drawing = partial(contact_sheet, images, scale=sheet.scale)
            file = await asyncio.get_running_loop().run_in_executor(self._drawing, lambda: encode_png(drawing()))
        told = sheet.model.info
        self._observer.on_sent(model=told.name, version=told.version, rows=sheet.num, seconds=0.0)
        return Response(file, media_type="image/png", headers=headers)

    def _read(self, request: Request) -> Sheet:
        """Check a request.

        Raises:
            RefusedError: What is asked for does not exist, is too much, or may not be had by its caller.
        """
        asked = _parameters(request)
        model = self._models.get(asked.get("model", ""))
        channels = model.manifest.image_shape[0]
        if channels not in (1, 3):
            error = RequestError(f"PNG holds 1 or 3 channels; images of this model have {channels}")
            raise RefusedError(_Code.INVALID_ARGUMENT, error, field="model")
        with blaming("seed"):
            if "seed" not in asked:
                raise RequestError("no seed", hint="add ?seed=7, or any other number")
            seed = _whole(asked, "seed", 0)
            check_range(1, seed, 0)
        with blaming("start"):
            start = _whole(asked, "start", 0)
            check_range(1, seed, start)
        most = min(_MOST_IMAGES, MAX_MESSAGE_BYTES // math.prod(model.manifest.image_shape))
        with blaming("n"):
            num = _whole(asked, "n", min(_DEFAULT_NUM, most))
            if not 1 <= num <= most:
                raise RequestError(f"n is {num}, outside 1 .. {most}", hint="for more: kaem sample grpc://...")
            check_range(num, seed, start)
        scale = _whole(asked, "scale", 0) if "scale" in asked else None
        with blaming("scale"):
            if scale == 0 or sheet_bytes(num, model.manifest.image_shape, None, scale) > _MOST_SHEET_BYTES:
                raise RequestError(
                    f"scale is {scale}; it must be 1 or more, and the sheet at most {_MOST_SHEET_BYTES >> 20} MiB"
                )
        return Sheet(model=model, seed=seed, start=start, num=num, scale=scale)


def _parameters(request: Request) -> Mapping[str, str]:
    asked: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        with blaming(name[:80]):
            if name not in _PARAMETERS:
                raise RequestError(f"unknown parameter {name[:80]!r}", hint=f"known are: {', '.join(_PARAMETERS)}")
            if name in asked:
                raise RequestError(f"{name} is given twice")
        asked[name] = value
    return asked


def _whole(asked: Mapping[str, str], name: str, default: int) -> int:
    text = asked.get(name)
    if text is None:
        return default
    with blaming(name):
        if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
            raise RequestError(f"{name} is {text[:80]!r}", hint="give a whole number")
    return int(text)


def _has_it(request: Request, etag: str) -> bool:
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return bool(known & {etag, "*"})


def _refusal(refused: RefusedError) -> Response:
    headers: dict[str, Any] = {"cache-control": "no-store"}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(refused.retry_after_s))
    if refused.code is _Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    error = refused.error
    text = f"{error.message}\nhint: {error.hint}\n" if error.hint else f"{error.message}\n"
    return PlainTextResponse(text, _HTTP.get(refused.code, 500), headers)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
