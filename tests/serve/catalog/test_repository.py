"""Which files are served under which names and versions, and when that changes: real folders, engines of our own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import Backend, Notes

from kaem.errors import ArtifactError, BackendError, ConfigError
from serve.calls.health import Health
from serve.catalog.catalog import Catalog
from serve.catalog.loader import Loader
from serve.catalog.model import Models
from serve.catalog.repository import Folder, Key, open_repository
from serve.settings import ServeSettings
from serve.statuses import RefusedError


def put(path, text="ok"):
    """Write a file and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)
    return path


def test_a_folder_is_read_as_triton_reads_it(tmp_path):
    expected = {
        Key("digits", 1): put(tmp_path / "digits" / "1" / "model.onnx"),
        Key("digits", 12): put(tmp_path / "digits" / "12" / "model.onnx"),
        Key("faces", 1): put(tmp_path / "faces.onnx"),
        Key("faces", 2): put(tmp_path / "faces" / "2" / "model.onnx"),
    }
    for ignored in (
        *("digits/config.pbtxt", "digits/01/model.onnx", "digits/0/model.onnx", "digits/latest/model.onnx"),
        *("digits/3/other.onnx", "digits/4/.model.onnx", ".hidden.onnx", ".hidden/1/model.onnx", "notes.txt"),
        *("digits/model.onnx", "digits/-5/model.onnx", "digits/9999999999999999999/model.onnx"),
    ):
        put(tmp_path / ignored)
    found = open_repository(tmp_path).scan()
    assert {key: item.path for key, item in found.items()} == expected
    assert not any(item.has_changed for item in found.values())
    put(expected["faces", 1], "other")
    assert [key for key, item in found.items() if item.has_changed] == [Key("faces", 1)]


def test_a_folder_that_contradicts_itself_or_holds_no_model_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=f"no model in {tmp_path}"):
        Folder(tmp_path).scan()
    put(tmp_path / "x.onnx")
    put(tmp_path / "x" / "1" / "model.onnx")
    with pytest.raises(ConfigError, match=r"version 1 of model 'x' is there twice: .*model.onnx and .*x.onnx"):
        Folder(tmp_path).scan()
    (tmp_path / "x.onnx").rename(tmp_path / "y\n.onnx")
    (tmp_path / "x" / "1" / "model.onnx").unlink()
    with pytest.raises(ConfigError, match="under the name") as caught:
        Folder(tmp_path).scan()
    assert caught.value.message.isprintable()
    with pytest.raises(ConfigError, match="cannot read"):
        Folder(tmp_path / "none").scan()
    with pytest.raises(ConfigError, match="folder of models"):
        open_repository(tmp_path, name="x")


class Library:
    """A loader over a real folder of texts: "bad" cannot be loaded, any other is the name of its backend."""

    def __init__(self, folder: Path):
        self.folder, self.models, self.notes = folder, Models(), Notes()
        self.opened, self.closed = [], []
        self.health = Health([""])
        options = ServeSettings(max_batch=1)
        self.catalog = Catalog(self._open, self.models, health=self.health, settings=options, observer=self.notes)
        self.loader = Loader(Folder(folder), self.catalog)

    @contextlib.contextmanager
    def _open(self, path, is_wanted):
        text = path.read_text().strip()
        if text.startswith("bad"):
            raise ArtifactError(f"{path} is damaged")
        self.opened.append(text)
        yield [Backend(name=text)]
        self.closed.append(text)

    def served(self):
        return {Key(m.info.name, m.info.version): m.manifest.name for m in self.models}

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.catalog.close()
        assert sorted(self.opened) == sorted(self.closed)


KEYS = [Key("a", 1), Key("a", 2), Key("a", 3), Key("b", 1)]
EVENTS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.sampled_from(["ok", "ok", "bad"])),
    st.tuples(st.just("remove"), st.sampled_from(KEYS)),
    st.tuples(st.just("unload"), st.sampled_from(KEYS)),
    st.tuples(st.sampled_from(["reload", "poll twice"])),
)


class Expected:
    """The rules, written down a second time: what is served, what was tried, what failed."""

    def __init__(self):
        self.files, self.tried, self.served, self.failed = {}, {}, {}, set()

    def follow(self, *, retry):
        if not self.files:
            return
        for key, text in sorted(self.files.items()):
            if self.tried.get(key) != text or (retry and key in self.failed):
                self.tried[key] = text
                self.failed.discard(key)
                if text.startswith("bad"):
                    self.failed.add(key)
                else:
                    self.served[key] = text
        for key in sorted(self.tried.keys() - self.files.keys()):
            others = [other for other in self.tried if other.name == key.name and other != key]
            if key in self.served and not set(others) & self.served.keys() and set(others) & self.failed:
                continue  # the last one that works
            del self.tried[key]
            self.served.pop(key, None)
            self.failed.discard(key)


@settings(max_examples=30, deadline=None)
@given(events=st.lists(EVENTS, max_size=14))
def test_what_is_served_follows_from_the_files_and_nothing_damaged_is_ever_served(tmp_path_factory, events):
    folder, expected = tmp_path_factory.mktemp("models"), Expected()

    def path(key):
        return folder / key.name / str(key.version) / "model.onnx"

    async def main():
        async with Library(folder) as library:
            for number, (event, *what) in enumerate([*events, ("reload",)]):
                if event == "put":
                    text = f"{what[1]}{number}" + " " * number  # a file's size tells it apart, however quick we are
                    put(path(what[0]), text)
                    expected.files[what[0]] = text.strip()
                elif event == "remove":
                    path(what[0]).unlink(missing_ok=True)
                    expected.files.pop(what[0], None)
                elif event == "unload":
                    with contextlib.suppress(RefusedError):
                        await library.loader.unload(*what[0])
                    expected.served.pop(what[0], None)
                elif event == "reload":
                    with contextlib.suppress(RefusedError):
                        await library.loader.reload()
                    expected.follow(retry=True)
                else:
                    await library.loader.poll()
                    await library.loader.poll()
                    expected.follow(retry=False)
                assert library.served() == expected.served
                names = {f"kaem.model/{key.name}" for key in expected.served}
                assert library.health._names - {""} == names

    asyncio.run(main())


def run(tmp_path, steps):
    async def main():
        async with Library(tmp_path) as library:
            await library.loader.start()
            await steps(library)

    asyncio.run(main())


def test_a_poll_leaves_alone_what_is_still_being_written_or_gone_for_a_moment(tmp_path):
    kept, growing = tmp_path / "kept.onnx", tmp_path / "new" / "1" / "model.onnx"
    put(kept, "first")

    async def steps(library):
        for length in range(1, 4):  # a file that grows from poll to poll, and could not be loaded
            growing.parent.mkdir(parents=True, exist_ok=True)
            growing.write_text("bad" + "x" * length)
            await library.loader.poll()
        growing.write_text("whole")
        kept.unlink()
        await library.loader.poll()
        assert library.served() == {("kept", 1): "first"}
        assert not any(entry.error for entry in library.catalog)
        put(kept, "first")
        await library.loader.poll()
        assert library.served() == {("kept", 1): "first", ("new", 1): "whole"}
        kept.unlink()
        await library.loader.poll()
        await library.loader.poll()
        assert library.served() == {("new", 1): "whole"}

    run(tmp_path, steps)


def test_closing_does_not_wait_for_a_load_that_is_under_way(tmp_path):
    put(tmp_path / "served.onnx", "served")  # whose engines are closed by the thread that loads
    began = threading.Event()

    async def steps(library):
        @contextlib.contextmanager
        def endless(path, is_wanted):
            began.set()
            while is_wanted():
                os.sched_yield()
            raise BackendError("it is not wanted any more")
            yield

        library.catalog._opener._open_engines = endless
        put(tmp_path / "x.onnx", "first")
        loading = asyncio.create_task(library.loader.reload())
        await asyncio.to_thread(began.wait)
        loading.cancel()
        await asyncio.wait((loading,))

    run(tmp_path, steps)  # whose end closes the catalog, and waits for its thread


def test_a_file_that_changes_while_it_is_read_is_no_failure_and_is_looked_at_again(tmp_path, caplog):
    path = put(tmp_path / "x.onnx", "first")

    async def steps(library):
        opened = library._open

        @contextlib.contextmanager
        def slow(there, is_wanted):
            put(there, "second one")
            raise ArtifactError("half a file")
            yield

        library.catalog._opener._open_engines = slow
        path.write_text("half")
        await library.loader.poll()
        await library.loader.poll()
        assert library.notes.failed_loads == []
        assert library.served() == {("x", 1): "first"}
        library.catalog._opener._open_engines = opened
        await library.loader.poll()
        await library.loader.poll()
        assert library.served() == {("x", 1): "second one"}

    run(tmp_path, steps)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_a_folder_that_cannot_be_looked_at_changes_nothing_and_is_reported_once(tmp_path, caplog):
    put(tmp_path / "models" / "x.onnx", "first")

    async def steps(library):
        (tmp_path / "models").rename(tmp_path / "away")
        for _ in range(3):
            await library.loader.poll()
        with pytest.raises(RefusedError) as caught:
            await library.loader.reload()
        assert caught.value.code.name == "FAILED_PRECONDITION"
        assert library.served() == {("x", 1): "first"}

    run(tmp_path / "models", steps)
    assert caplog.text.count("models stay as they are: cannot read") == 1


BAD = {
    "a name with an escape": lambda folder: put(folder / "\x1b[31m\nred.onnx"),
    "a folder with such a name": lambda folder: put(folder / "\x1b[31m\nred" / "1" / "model.onnx"),
    "a name that is too long": lambda folder: put(folder / f"{200 * 'n'}.onnx"),
    "a name that is no text": lambda folder: put(folder / os.fsdecode(b"\xff\xfe.onnx")),
    "a version twice": lambda folder: (put(folder / "z.onnx"), put(folder / "z" / "1" / "model.onnx")),
    "a link to itself": lambda folder: ((folder / "z" / "1").mkdir(parents=True), _loop(folder / "z" / "1")),
}


def _loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "model.onnx").symlink_to(folder / "loop")


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_one_entry_that_cannot_be_served_keeps_no_other_from_being_followed(tmp_path, caplog, bad):
    folder = tmp_path / "models"
    put(folder / "x.onnx", "first")
    put(folder / "gone.onnx", "first")

    async def steps(library):
        bad(folder)
        put(folder / "x.onnx", "second")
        (folder / "gone.onnx").unlink()
        with contextlib.suppress(RefusedError):
            await library.loader.reload()
        assert library.served() == {("x", 1): "second"}
        put(folder / "new.onnx", "third")
        for _ in range(3):
            await library.loader.poll()
        assert library.served() == {("x", 1): "second", ("new", 1): "third"}

    run(folder, steps)
    assert caplog.text.count("models stay as they are") == (bad is not BAD["a link to itself"])  # which is no file
    assert "\x1b" not in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_what_is_served_under_a_name_of_which_nothing_is_known_is_left_as_it_is(tmp_path):
    folder = tmp_path / "models"
    put(folder / "x" / "1" / "model.onnx", "first")
    put(folder / "y.onnx", "first")

    async def steps(library):
        put(folder / "x.onnx", "other")  # version 1 a second time
        put(folder / "y.onnx", "second")
        with pytest.raises(RefusedError, match="there twice"):
            await library.loader.reload()
        assert library.served() == {("x", 1): "first", ("y", 1): "second"}
        (folder / "x.onnx").unlink()
        await library.loader.reload()
        assert library.served() == {("x", 1): "first", ("y", 1): "second"}

    run(folder, steps)


def test_the_last_version_that_works_is_kept_while_its_successor_does_not(tmp_path):
    put(tmp_path / "x" / "1" / "model.onnx", "first")

    async def steps(library):
        put(tmp_path / "x" / "2" / "model.onnx", "bad")
        (tmp_path / "x" / "1" / "model.onnx").unlink()
        with pytest.raises(RefusedError, match="is damaged"):
            await library.loader.reload()
        assert library.served() == {("x", 1): "first"}
        put(tmp_path / "x" / "2" / "model.onnx", "second")
        await library.loader.reload()
        assert library.served() == {("x", 2): "second"}

    run(tmp_path, steps)


def test_an_unloaded_version_stays_so_until_its_file_changes_or_somebody_asks(tmp_path):
    path = put(tmp_path / "x.onnx", "first")

    async def steps(library):
        await library.loader.unload("x", 0)
        await library.loader.reload()
        assert library.served() == {}
        await library.loader.load("x", 0)
        assert library.served() == {("x", 1): "first"}
        await library.loader.unload("x", 1)
        put(path, "another")
        await library.loader.reload()
        assert library.served() == {("x", 1): "another"}
        for name, version in (("y", 0), ("x", 2)):
            for act in (library.loader.load, library.loader.unload):
                with pytest.raises(RefusedError) as caught:
                    await act(name, version)
                assert caught.value.code.name == "NOT_FOUND"

    run(tmp_path, steps)


def test_a_load_that_nobody_waits_for_any_more_is_as_if_it_had_not_been_asked_for(tmp_path):
    put(tmp_path / "x.onnx", "first")

    async def steps(library):
        put(tmp_path / "y.onnx", "second")
        waiting = asyncio.create_task(library.loader.load("y", 0))
        while not [entry for entry in library.catalog if entry.is_loading]:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert library.served() == {("x", 1): "first"}
        await library.loader.reload()
        assert library.served() == {("x", 1): "first", ("y", 1): "second"}

    run(tmp_path, steps)
