"""Image data sets of the Hugging Face hub, by id or from a local folder, through the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaem.errors import DataError
from kaem.files import read_regular
from kaem_train.config.preflight import HUB_PREFIX
from kaem_train.data.sources.encoded import digest_files, require_images
from kaem_train.library_errors import describe_error

_SAVED = ("dataset_dict.json", "state.json")
_PARQUET = ".parquet"


@dataclass(frozen=True, slots=True)
class HubImages:
    """The image column of a data set.

    Attributes:
        origin: Its id, or the local path.
        splits: Split name -> that split with its image column, not decoded.
        column: Name of the image column.
        names: `SPLIT/NUMBER` of every image.
        left_out: Nothing: rows are images, all of them.
    """

    origin: str
    splits: dict[str, Any]
    column: str
    names: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256 of all names and contents."""
        return digest_files(self.read())

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and encoded content, split by split."""
        with _name_errors(self.origin):
            for split, rows in self.splits.items():
                for number, row in enumerate(rows):
                    image = row[self.column]
                    if image is None:
                        raise DataError(
                            f"{_name(split, number)} in {self.origin} holds no image", hint="remove the row"
                        )
                    yield _name(split, number), image["bytes"] or read_regular(Path(image["path"]))


@contextmanager
def _name_errors(reference: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # The library promises no error types: it hands on those of the network, of Arrow and of its builders.
    except Exception as error:
        if reference.startswith(HUB_PREFIX):
            hint = "check the name, the network (HF_HUB_OFFLINE) and, for a gated data set, HF_TOKEN"
        else:
            hint = "the files are damaged, or their columns differ: save the data set again"
        raise DataError(f"cannot load the data set {reference}: {describe_error(error)}", hint=hint) from None


def is_hub_folder(path: Path) -> bool:
    """Return whether the folder was written by `save_to_disk` or holds parquet files, at most one folder down."""
    return any((path / name).is_file() for name in _SAVED) or any(
        next(path.glob(pattern), None) for pattern in (f"*{_PARQUET}", f"*/*{_PARQUET}")
    )


def is_hub_file(path: Path) -> bool:
    """Return whether the file is a parquet file."""
    return path.suffix == _PARQUET


def open_hub(reference: str, column: str = "") -> HubImages:
    """Open `hf:OWNER/NAME[/CONFIGURATION]`, which is downloaded once, or a local data set.

    Args:
        reference: An id with its prefix, a folder written by `save_to_disk`, a folder of parquet files, or one.
        column: Name of the image column; "" for the only one, or the one called `image` or `img`.

    Raises:
        DataError: The library is missing, the data set cannot be had or read, or it has no image column.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f"reading {reference} needs the datasets library, which is not installed",
            hint="pip install 'kaem[hub]'",
        ) from None
    with _name_errors(reference):
        found = _load(datasets, reference)
        return _select_images(datasets, dict(found) if isinstance(found, dict) else {"train": found}, reference, column)


def _load(datasets: Any, reference: str) -> Any:
    if reference.startswith(HUB_PREFIX):
        owner, _, rest = reference[len(HUB_PREFIX) :].partition("/")
        name, _, configuration = rest.partition("/")
        with _ask_once(datasets):
            return datasets.load_dataset(f"{owner}/{name}" if name else owner, configuration or None)
    path = Path(reference)
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=str(path))
    if any((path / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset(str(path))


@contextmanager
def _ask_once(datasets: Any) -> Iterator[None]:
    """Let the library look into its cache at once where the hub does not answer: alone, it would try for 23 seconds."""
    import huggingface_hub

    was_offline = datasets.config.HF_HUB_OFFLINE
    try:
        timeout_s = huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT
        huggingface_hub.get_session().head(datasets.config.HF_ENDPOINT, timeout=timeout_s)
    except Exception:  # of whichever HTTP client the library uses; what is wrong is said by the library itself
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _guess_column(columns: list[str]) -> str | None:
    """Return the only image column, or the one that is called as it usually is."""
    if len(columns) == 1:
        return columns[0]
    return next((name for name in ("image", "img") if name in columns), None)


def _select_images(datasets: Any, splits: dict[str, Any], reference: str, wanted: str) -> HubImages:
    features = next(iter(splits.values())).features
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    columns = columns or [name for name, kind in features.items() if _may_be_image(datasets, kind)]
    column = wanted if wanted in columns else _guess_column(columns)
    if wanted and wanted not in columns:
        raise DataError(
            f"{reference} has no image column {wanted!r}; its image columns are: {', '.join(columns) or 'none'}",
            hint="name one of them with data.column",
        )
    if len(columns) > 1 and column is None:
        raise DataError(
            f"{reference} has several image columns: {', '.join(columns)}",
            hint=f"name the one to train on: --set data.column={columns[0]}",
        )
    if column is None:
        raise DataError(
            f"{reference} has no image column; its columns are: {', '.join(features)}",
            hint="give a data set whose features hold an Image",
        )
    plain = {
        split: rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        for split, rows in splits.items()
    }
    names = tuple(sorted(_name(split, number) for split, rows in plain.items() for number in range(len(rows))))
    require_images(names, reference)
    return HubImages(reference, plain, column, names)


def _may_be_image(datasets: Any, kind: Any) -> bool:
    """Whether a column is stored as images are, in a file that does not say so: bytes, or bytes and a path."""
    content = kind.get("bytes") if isinstance(kind, dict) and set(kind) <= {"bytes", "path"} else kind
    return isinstance(content, datasets.Value) and content.dtype in ("binary", "large_binary")


def _name(split: str, number: int) -> str:
    return f"{split}/{number:09d}"
