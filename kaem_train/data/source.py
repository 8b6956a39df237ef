"""What a path is: every kind of image source, told apart by name and content.

hf:OWNER/NAME[/CONFIGURATION]                    data set of the Hugging Face hub
folder with state.json, dataset_dict.json, parquet    local Hugging Face data set
folder with train-images-idx3-ubyte[.gz]         MNIST family
folder with train_*.mat                          SVHN
any other folder                                 PNG and JPEG files, recursively
.npz | .mat | .parquet                           one file
.tar[.gz|.bz2|.xz] | .tgz | .zip                 archive of PNG and JPEG files
any other file                                   IDX
"""

from __future__ import annotations

from pathlib import Path

from kaem_train.data.archives import is_archive, open_archive
from kaem_train.data.encoded import EncodedImages
from kaem_train.data.files import RawImages, is_idx_folder, read_idx, read_idx_folder, read_npz
from kaem_train.data.folder import open_folder
from kaem_train.data.hub import is_hub_file, is_hub_folder, open_hub
from kaem_train.data.mat import is_mat_folder, read_mat, read_mat_folder
from kaem_train.inputs import HUB_PREFIX


def open_source(path: str) -> RawImages | EncodedImages:
    """Read arrays, or open image files, whatever `path` is; that there is something, `require_data` has found.

    Raises:
        DataError: It is damaged, of an unknown kind, or without images.
    """
    if path.startswith(HUB_PREFIX):
        return open_hub(path)
    place = Path(path)
    return _open_folder(place) if place.is_dir() else _open_file(place)


def _open_folder(folder: Path) -> RawImages | EncodedImages:
    if is_idx_folder(folder):
        return read_idx_folder(folder)
    if is_mat_folder(folder):
        return read_mat_folder(folder)
    if is_hub_folder(folder):
        return open_hub(str(folder))
    return open_folder(folder)


def _open_file(file: Path) -> RawImages | EncodedImages:
    if file.suffix == ".npz":
        return read_npz(file)
    if file.suffix == ".mat":
        return RawImages(origin=str(file), train=read_mat(file), holdout=None)
    if is_archive(file):
        return open_archive(file)
    if is_hub_file(file):
        return open_hub(str(file))
    return RawImages(origin=str(file), train=read_idx(file), holdout=None)
