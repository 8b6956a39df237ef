"""The kaem.admin.v1.Admin service: what whoever runs a server may do to it while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc

from kaem.errors import RemoteError
from kaem.protocol import admin_pb2
from serve.calls.interceptor import Context, Gate, Malformed, Reception, tolerant, well_formed
from serve.catalog.catalog import Catalog, Entry, State
from serve.catalog.loader import Loader
from serve.catalog.model import Models, ServedModel
from serve.statuses import RefusedError

SERVICE = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name

_STATES = {
    State.LOADING: admin_pb2.STATE_LOADING,
    State.READY: admin_pb2.STATE_READY,
    State.FAILED: admin_pb2.STATE_FAILED,
    State.UNLOADED: admin_pb2.STATE_UNLOADED,
}


class AdminService:
    """Answers kaem.admin.v1.Admin.

    Args:
        loader: Loads and unloads.
        catalog: What there is.
        models: What is offered.
        gate: Gate of the clients' calls: nothing is changed while it is closed.
        on_drain: Called when the server is to shut down.
    """

    def __init__(
        self, loader: Loader, catalog: Catalog, models: Models, *, gate: Gate, on_drain: Callable[[], None]
    ) -> None:
        self._loader = loader
        self._catalog = catalog
        self._models = models
        self._gate = gate
        self._on_drain = on_drain

    def handler(self, reception: Reception) -> grpc.GenericRpcHandler[object, object]:
        """Return the methods; built by hand so that requests are read tolerantly."""
        methods = {
            "ListModels": (self.list_models, admin_pb2.ListModelsRequest),
            "ReloadModels": (self.reload_models, admin_pb2.ReloadModelsRequest),
            "LoadModel": (self.load_model, admin_pb2.LoadModelRequest),
            "UnloadModel": (self.unload_model, admin_pb2.UnloadModelRequest),
            "Drain": (self.drain, admin_pb2.DrainRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                reception.answered(f"/{SERVICE}/{name}", method), tolerant(cls), _write
            )
            for name, (method, cls) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def list_models(self, request: admin_pb2.ListModelsRequest | Malformed, context: Context) -> admin_pb2.Models:
        """Answer what there is."""
        well_formed(request)
        return self._standing()

    async def reload_models(
        self, request: admin_pb2.ReloadModelsRequest | Malformed, context: Context
    ) -> admin_pb2.Models:
        """Look at the files again."""
        well_formed(request)
        self._check_open()
        await self._loader.reload()
        return self._standing()

    async def load_model(self, request: admin_pb2.LoadModelRequest | Malformed, context: Context) -> admin_pb2.Models:
        """Load one version."""
        asked = well_formed(request)
        self._check_open()
        await self._loader.load(asked.name, asked.version)
        return self._standing()

    async def unload_model(
        self, request: admin_pb2.UnloadModelRequest | Malformed, context: Context
    ) -> admin_pb2.Models:
        """Unload one version, or all of a model."""
        asked = well_formed(request)
        self._check_open()
        await self._loader.unload(asked.name, asked.version)
        return self._standing()

    async def drain(self, request: admin_pb2.DrainRequest | Malformed, context: Context) -> admin_pb2.DrainResponse:
        """Shut the server down, soon."""
        well_formed(request)
        self._on_drain()
        return admin_pb2.DrainResponse()

    def _check_open(self) -> None:
        if self._gate.closed_because is not None:
            error = RemoteError(f"the server {self._gate.closed_because}", hint="try again in a moment")
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, error)

    def _standing(self) -> admin_pb2.Models:
        return admin_pb2.Models(models=self._versions())

    def _versions(self) -> Iterator[admin_pb2.ModelVersion]:
        for entry in self._catalog:
            yield self._of_entry(entry)
        for model in self._catalog.draining:
            message = admin_pb2.ModelVersion(
                name=model.info.name, version=model.info.version, state=admin_pb2.STATE_DRAINING
            )
            _describe(message, model)
            yield message

    def _of_entry(self, entry: Entry) -> admin_pb2.ModelVersion:
        served = self._models.versions(entry.name)
        message = admin_pb2.ModelVersion(
            name=entry.name,
            version=entry.version,
            state=_STATES[entry.state],
            is_default=entry.running is not None and entry.version == max(served),
            path=str(entry.found.path),
            error="" if entry.error is None else entry.error.message,
            is_loading=entry.is_loading,
        )
        if entry.running is not None:
            _describe(message, entry.running.model)
        return message


def _describe(message: admin_pb2.ModelVersion, model: ServedModel) -> None:
    message.digest = model.manifest.graph_fingerprint
    message.numerics_id = model.info.numerics_id
    message.running_requests = model.scheduler.num_jobs


def _write(message: admin_pb2.Models | admin_pb2.DrainResponse) -> bytes:
    return message.SerializeToString()
