"""When models are loaded and unloaded: at the start, on request, and, if wanted, when a poll finds other files.

One thing is done at a time, in the order in which it was asked for. New versions are loaded before old ones go, and
what cannot be loaded changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence

import grpc

from kaem.errors import ConfigError, KaemError, RequestError
from serve.catalog.catalog import Catalog, Entry
from serve.catalog.repository import Findings, Found, Key, Repository, Signature
from serve.statuses import RefusedError

_log = logging.getLogger(__name__)


class Loader:
    """Keeps a catalog in step with its files.

    Args:
        repository: The files.
        catalog: What is served.
    """

    def __init__(self, repository: Repository, catalog: Catalog) -> None:
        self._repository = repository
        self._catalog = catalog
        self._seen: dict[Key, Signature] = {}  # at the last look
        self._trouble = ""  # at the last poll: the same is not reported for ever
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Load everything there is.

        Raises:
            KaemError: Something cannot be loaded.
        """
        async with self._turn:
            found = await asyncio.to_thread(self._repository.scan)
            for trouble in _troubles(found):
                raise trouble
            self._note(found)
            for item in found.values():
                self._catalog.announce(item)
            for item in found.values():
                await self._catalog.load(item)

    async def reload(self) -> None:
        """Do what changed files ask for, and try again what failed.

        Raises:
            RefusedError: FAILED_PRECONDITION: something cannot be loaded; all else was done.
        """
        async with self._turn:
            found = await self._look()
            self._note(found)
            due = [item for item in found.values() if self._is_due(item, retry=True)]
            failures = [*await self._follow(found, due), *_troubles(found)]
        if failures:
            raise _refused(failures)

    async def poll(self) -> None:
        """Do what changed files ask for, once two polls have seen them alike: before that they may be incomplete."""
        async with self._turn:
            try:
                found = await self._look()
            except RefusedError as refused:
                self._report(refused.error.message)
                return
            self._report("; ".join(trouble.message for trouble in _troubles(found)))
            seen = self._seen
            self._note(found)
            calm = [item for item in found.values() if seen.get(item.key) == item.signature]
            due = [item for item in calm if self._is_due(item, retry=False)]
            await self._follow(found, due, spared=seen.keys() - found.keys())

    async def watch(self, every_s: float) -> None:
        """Poll for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.poll()
            except Exception:  # whatever it was, the next poll may go well
                _log.exception("looking for changed models failed")

    async def load(self, name: str, version: int) -> None:
        """Load a version of a model, again if it is served already.

        Args:
            name: Name of the model.
            version: Version of the model; 0 for the newest.

        Raises:
            RefusedError: NOT_FOUND, there is no such file; FAILED_PRECONDITION, it cannot be loaded.
        """
        async with self._turn:
            found = await self._look()
            there = {item.key.version: item for item in found.values() if self._name_of(item) == name}
            if not there or (version and version not in there):
                raise _unknown(name, version, "file of ")
            try:
                await self._catalog.load(there[version or max(there)])
            except KaemError as error:
                raise _refused([error]) from None

    async def unload(self, name: str, version: int) -> None:
        """Offer a model no more, until its file changes or somebody asks for it.

        Args:
            name: Name of the model.
            version: Version of the model; 0 for all versions.

        Raises:
            RefusedError: NOT_FOUND, no such version is served.
        """
        async with self._turn:
            served = [entry for entry in self._catalog if entry.name == name and entry.running is not None]
            entries = [entry for entry in served if version in (0, entry.version)]
            if not entries:
                raise _unknown(name, version, "")
            for entry in entries:
                self._catalog.retire(entry)

    async def _look(self) -> dict[Key, Found]:
        try:
            return await asyncio.to_thread(self._repository.scan)
        except ConfigError as error:
            raise _refused([error]) from None

    def _note(self, found: Mapping[Key, Found]) -> None:
        self._seen = {key: item.signature for key, item in found.items()}

    def _report(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("models stay as they are: %s", trouble)
        self._trouble = trouble

    def _name_of(self, item: Found) -> str:
        entry = self._catalog.entries.get(item.key)
        return item.key.name if entry is None else entry.name

    def _is_due(self, item: Found, *, retry: bool) -> bool:
        """Whether a file is to be loaded: it is new, or another one, or failed and may be tried again."""
        entry = self._catalog.entries.get(item.key)
        if entry is None or entry.found.signature != item.signature:
            return True
        return retry and entry.error is not None

    async def _follow(
        self, found: Mapping[Key, Found], due: Collection[Found], *, spared: Collection[Key] = ()
    ) -> list[KaemError]:
        """Load what is due, then unload what is gone and not spared; return what could not be loaded."""
        failures: list[KaemError] = []
        for item in due:
            try:
                await self._catalog.load(item)
            except KaemError as error:
                failures.append(error)
        unknown = {key for key in self._catalog.entries if isinstance(found, Findings) and found.is_spared(key)}
        for key in sorted(self._catalog.entries.keys() - found.keys() - set(spared) - unknown):  # the newest goes last
            entry = self._catalog.entries[key]
            if self._is_last_of_failing(entry):
                _log.warning("%s is gone, but what should follow it fails: still served", entry.found.path)
                continue
            self._catalog.retire(entry)
            del self._catalog.entries[key]
        return failures

    def _is_last_of_failing(self, entry: Entry) -> bool:
        """Whether an entry is all that is served under its name, while another one under it could not be loaded."""
        others = [other for other in self._catalog if other.name == entry.name and other is not entry]
        is_last = entry.running is not None and not any(other.running for other in others)
        return is_last and any(other.error for other in others)


def _troubles(found: Mapping[Key, Found]) -> list[ConfigError]:
    """Return why something that lies there is left out."""
    return found.troubles if isinstance(found, Findings) else []


def _refused(errors: Sequence[KaemError]) -> RefusedError:
    """Return the refusal of an operation that did not do all it should, with every reason."""
    first, message = errors[0], "; ".join(error.message for error in errors)
    return RefusedError(grpc.StatusCode.FAILED_PRECONDITION, type(first)(message, hint=first.hint))


def _unknown(name: str, version: int, what: str) -> RefusedError:
    which = f"version {version} of model {name!r}" if version else f"model {name!r}"
    error = RequestError(f"there is no {what}{which}", hint="see what there is: kaem admin list")
    return RefusedError(grpc.StatusCode.NOT_FOUND, error)
