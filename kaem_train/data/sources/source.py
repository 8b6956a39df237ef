"""What a path is: every kind of image source, told apart by name and content.

hf:OWNER/NAME[/CONFIGURATION]                    data set of the Hugging Face hub
folder with state.json, dataset_dict.json, parquet    local Hugging Face data set
folder with train-images-idx3-ubyte[.gz]         MNIST family
                                                 (also in `raw` below it, where torchvision keeps them)
folder with train_*.mat                          SVHN
folder with data_batch_1, or train and meta      CIFAR-10 or CIFAR-100 for Python
any other folder                                 image files, recursively
.npz | .npy | .mat | .parquet                    one file
.tar[.gz|.bz2|.xz] | .tgz | .zip | ...           archive of image files
any other file                                   IDX
"""

from __future__ import annotations

from pathlib import Path

from kaem.errors import DataError
from kaem_train.config.preflight import HUB_PREFIX
from kaem_train.data.sources.archives import is_archive, open_archive
from kaem_train.data.sources.cifar import is_cifar_folder, read_cifar_folder
from kaem_train.data.sources.encoded import EncodedImages
from kaem_train.data.sources.files import RawImages, is_idx_folder, read_idx, read_idx_folder, read_npy, read_npz
from kaem_train.data.sources.folder import open_folder
from kaem_train.data.sources.hub import is_hub_file, is_hub_folder, open_hub
from kaem_train.data.sources.mat import is_mat_folder, read_mat, read_mat_folder


def open_source(path: str, column: str = "") -> RawImages | EncodedImages:
    """Read arrays, or open image files, whatever `path` is; that there is something, `require_data` has found.

    Args:
        path: A file, a folder, or `hf:OWNER/NAME`.
        column: Image column of a data set that has several; see `open_hub`.

    Raises:
        DataError: It is damaged, of an unknown kind, or without images.
    """
    if path.startswith(HUB_PREFIX):
        return open_hub(path, column)
    place = Path(path)
    return _open_folder(place, column) if place.is_dir() else _open_file(place, column)


def _open_folder(folder: Path, column: str) -> RawImages | EncodedImages:
    if is_idx_folder(folder):
        return read_idx_folder(folder)
    if is_mat_folder(folder):
        return read_mat_folder(folder)
    if is_cifar_folder(folder):
        return read_cifar_folder(folder)
    if is_hub_folder(folder):
        return open_hub(str(folder), column)
    return open_folder(folder)


def _open_file(file: Path, column: str) -> RawImages | EncodedImages:
    if not file.is_file():
        raise DataError(
            f"{file} is neither a file nor a folder", hint="pass a regular file: a pipe can be read only once"
        )
    if file.suffix == ".npy":
        return read_npy(file)
    if file.suffix == ".npz":
        return read_npz(file)
    if file.suffix == ".mat":
        return RawImages(origin=str(file), train=read_mat(file), holdout=None)
    if is_archive(file):
        return open_archive(file)
    if is_hub_file(file):
        return open_hub(str(file), column)
    return RawImages(origin=str(file), train=read_idx(file), holdout=None)
