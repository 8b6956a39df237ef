"""What a request for images asks of the scheduler, the same whatever protocol it came by."""

from __future__ import annotations

from kaem.images import to_uint8
from kaem.sampler import Images
from serve.calls.call_options import CallOptions
from serve.catalog.model import ServedModel
from serve.scheduling.demand import CALL_BYTES, Demand
from serve.scheduling.job import Convert, Job
from serve.scheduling.sources import Given, Source
from serve.settings import ServeSettings

_CHUNK_BYTES = 320
"""What a chunk takes besides its images: an array, its place among others, and later its message."""

_WINDOW_CHUNKS = 4  # computed ahead of a reader: enough to hide a batch's time behind the sending


class Submitter:
    """Submits jobs.

    Args:
        settings: Which requests are bulk.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._interactive_samples = settings.interactive

    def whole(
        self,
        model: ServedModel,
        source: Source,
        rows: int,
        *,
        row_bytes: int,
        convert: Convert,
        call_options: CallOptions,
        with_latents: bool = False,
    ) -> Job:
        """Submit a job whose rows make one chunk.

        Args:
            model: Computes it.
            source: Where the uniforms come from.
            rows: How many.
            row_bytes: What an image takes once it is converted, with its latent vector if that is asked for.
            convert: Applied to the images.
            call_options: Deadline and class.
            with_latents: Whether each image is to come beside its latent vector, see `serve.scheduling.sources`.

        Raises:
            RefusedError: It is not let in, see `Scheduler.submit`.
        """
        demand = Demand(
            rows=rows,
            row_bytes=row_bytes + (4 * model.manifest.noise_dim if isinstance(source, Given) else 0),
            chunk_rows=rows,
            window=rows,
            is_bulk=call_options.is_bulk(rows, self._interactive_samples),
            timeout_s=call_options.timeout_s,
            fixed_bytes=CALL_BYTES,
            with_latents=with_latents,
        )
        return model.scheduler.submit(source, demand, convert=convert)

    def stream(
        self,
        model: ServedModel,
        source: Source,
        rows: int,
        *,
        chunk_rows: int,
        row_bytes: int,
        convert: Convert,
        call_options: CallOptions,
        with_latents: bool = False,
    ) -> Job:
        """Submit a job whose rows come in chunks of at most `chunk_rows`; for the rest see `whole`."""
        row_bytes += -(-_CHUNK_BYTES // chunk_rows)
        demand = Demand(
            rows=rows,
            row_bytes=row_bytes,
            chunk_rows=chunk_rows,
            window=_WINDOW_CHUNKS * model.info.limits.max_chunk_bytes // row_bytes,
            is_bulk=call_options.is_bulk(rows, self._interactive_samples),
            may_shrink=True,
            timeout_s=call_options.timeout_s,
            due_rows=chunk_rows if call_options.is_partial_welcome else None,
            fixed_bytes=CALL_BYTES + (source.uniform.nbytes if isinstance(source, Given) else 0),
            with_latents=with_latents,
        )
        return model.scheduler.submit(source, demand, convert=convert)


def converting(to_bytes: bool) -> Convert:
    """Return what makes 8-bit images, or what leaves images as they are."""
    return to_uint8 if to_bytes else _unchanged


def _unchanged(images: Images) -> Images:
    return images
