"""Folders and archives of images: the same pixels whatever holds them, one-line errors for what cannot be used."""

import gzip
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from pictures import encode, files, huge_png, pixels, write_folder, write_tar, write_zip
from PIL import Image, ImageOps

from kaem.errors import DataError
from kaem_train.config import DataConfig
from kaem_train.data import load_dataset

MAKERS = {
    "folder": lambda path, contents: write_folder(path / "images", contents),
    "tar": lambda path, contents: write_tar(path / "images.tar", contents),
    "tar.gz": lambda path, contents: write_tar(path / "images.tar.gz", contents, "w:gz"),
    "tgz": lambda path, contents: write_tar(path / "images.tgz", contents, "w:gz"),
    "tar.xz": lambda path, contents: write_tar(path / "images.tar.xz", contents, "w:xz"),
    "zip": lambda path, contents: write_zip(path / "images.zip", contents),
}


def _load(path, image_shape=(3, 8, 6), **settings):
    settings = {"num_holdout": 2, **settings}
    return load_dataset(DataConfig(source="files", path=str(path), image_shape=image_shape, **settings))


def _as_tensor(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255.0))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_set_is_the_same_whatever_holds_it(tmp_path, kind):
    images = pixels()
    path = MAKERS[kind](tmp_path, files(images, "faces/"))
    np.savez(tmp_path / "same.npz", images=images)
    data, same = _load(path), _load(tmp_path / "same.npz")
    assert data.fingerprint == same.fingerprint
    assert torch.equal(data.train[:], same.train[:])
    assert torch.equal(data.holdout[:], same.holdout[:])


@pytest.mark.parametrize("kind", MAKERS)
def test_folders_named_train_and_test_are_the_split(tmp_path, kind):
    train, test = pixels(), pixels(5, seed=1)
    contents = {**files(train, "set/train/a/"), **files(test, "set/test/"), **files(test[:1], "set/val/")}
    data = _load(MAKERS[kind](tmp_path, contents))
    assert torch.equal(data.train[:], _as_tensor(train))
    assert torch.equal(data.holdout[:], _as_tensor(test))
    np.savez(tmp_path / "same.npz", images_train=train, images_test=test)
    assert data.fingerprint == _load(tmp_path / "same.npz").fingerprint


def test_train_and_test_are_a_split_whatever_lies_beside_them_and_a_line_says_so(tmp_path):
    contents = {**files(pixels(6), "test/"), **files(pixels(6, seed=1), "train/"), **files(pixels(1), "bus/")}
    dataset = _load(write_folder(tmp_path, contents))
    assert (len(dataset.train), len(dataset.holdout)) == (6, 6)
    assert "6 held out (from the files' own split)" in dataset.summary
    assert "left out, for they lie beside the split: 1 bus" in dataset.summary


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_left_out_is_counted_by_suffix(tmp_path, kind):
    contents = {**files(pixels(4)), "a.txt": b"", "b/c.txt": b"", "d.heic": b"", "README": b"", ".hidden": b""}
    contents |= {f"@eaDir/{name}": b"a preview" for name in files(pixels(1))}
    contents |= {"$RECYCLE.BIN/x.png": b"", "Thumbs.db": b"", "desktop.ini": b"", "__MACOSX/._y.png": b""}
    dataset = _load(MAKERS[kind](tmp_path, contents), num_holdout=1)
    assert dataset.train.shape[0] == 3
    assert "left out, for they are no images: 1 .heic, 2 .txt, 1 no suffix;" in dataset.summary
    assert "chosen by chance" in dataset.summary


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jfif"])
def test_other_formats_are_read_as_they_are(tmp_path, suffix):
    image = Image.fromarray(np.repeat(pixels(1)[0, ..., :1], 3, -1))  # greys, which a GIF keeps
    options = {"lossless": True} if suffix == ".webp" else {}
    written = {".tif": "tiff", ".jfif": "jpeg"}.get(suffix, suffix[1:])
    contents = {f"{i}{suffix}": encode(image, written, **options) for i in range(3)}
    data = _load(write_folder(tmp_path, contents), num_holdout=1)
    assert data.train.shape[0] == 2
    if suffix != ".jfif":
        assert torch.equal(data.train[0], _as_tensor(np.asarray(image)[None])[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(pixels(1, (6, 6, 3))[0])
    content = encode(lying, "png", exif=exif)
    data = _load(write_folder(tmp_path, {"a.png": content, "b.png": content}), (3, 6, 6), num_holdout=1)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert torch.equal(data.train[0], _as_tensor(upright[None])[0])


@pytest.mark.parametrize("kind", [*MAKERS, "npz", "npy", "floats"])
def test_pixels_that_would_all_be_black_are_refused_with_their_range(tmp_path, kind):
    masks = np.ones((6, 8, 6, 3), np.uint8) * (np.arange(6)[:, None, None, None] % 2).astype(np.uint8)
    if kind in MAKERS:
        path = MAKERS[kind](tmp_path, files(masks))
    elif kind == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, images=masks)
    else:
        path = tmp_path / "a.npy"
        np.save(path, masks if kind == "npy" else masks / np.float32(255))
    with pytest.raises(DataError, match="run from 0 to 1 where white is 255") as caught:
        _load(path, num_holdout=1)
    assert "multiply them by 255" in caught.value.hint


def test_what_is_no_image_or_hidden_is_passed_over(tmp_path):
    contents = {
        **files(pixels(4)),
        "notes.txt": b"hello",
        ".hidden.png": b"no image",
        "._000.png": b"what macOS leaves behind",
        "__MACOSX/000.png": b"and here",
        "UPPER.PNG": encode(pixels(1)[0]),
    }
    for kind, make in MAKERS.items():
        (tmp_path / kind).mkdir()
        assert len(_load(make(tmp_path / kind, contents)).train) == 3, kind


def test_pixels_are_kept_as_bytes_on_disk_and_served_as_floats(tmp_path):
    data = _load(write_folder(tmp_path, files(pixels())))
    assert isinstance(data.train.stored, np.memmap)
    assert data.train.stored.dtype == np.uint8
    assert data.train[torch.tensor([3, 1])].dtype == torch.float32
    assert torch.equal(data.train[torch.tensor([3, 1])], torch.stack([data.train[3], data.train[1]]))


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_crop_is_central_and_a_box_filter_takes_means(tmp_path, kind):
    images = pixels(6, (13, 10, 3))
    path = tmp_path / "set.npz"
    np.savez(path, images=images)
    if kind == "folder":
        path = write_folder(tmp_path / "set", files(images))
    cropped = images[:, 2:10, 1:9]
    data = _load(path, (3, 8, 8), crop=8, num_holdout=1)
    assert {image.numpy().tobytes() for image in (*data.train, *data.holdout)} == {
        image.numpy().tobytes() for image in _as_tensor(cropped)
    }
    means = cropped.reshape(6, 4, 2, 4, 2, 3).mean((2, 4))
    whole = _load(path, (3, 4, 4), crop=8, resize="box", num_holdout=1)
    restored = np.empty((6, 3, 4, 4))
    for part in (whole.train, whole.holdout):
        restored[part.rows] = part[:].numpy()
    assert (
        np.abs(restored * 255 - means.transpose(0, 3, 1, 2)).max() <= 1.01
    )  # Pillow rounds to bytes after each direction


def test_lanczos_keeps_a_gradient_and_removes_what_the_smaller_image_cannot_show(tmp_path):
    # Stripes one pixel wide, on a ramp: an antialiasing filter leaves the ramp, nearest neighbours would not.
    ramp = np.linspace(50, 200, 64)
    stripes = 40.0 * (-1.0) ** np.arange(64)
    image = np.broadcast_to(np.round(ramp + stripes), (64, 64)).astype(np.uint8)
    data = _load(write_folder(tmp_path, files([image, image])), (1, 16, 16), crop=64, resize="lanczos", num_holdout=1)
    middle = data.train[0][0].numpy()[4:12, 4:12] * 255
    assert np.abs(middle - ramp.reshape(16, 4).mean(1)[4:12]).max() < 2.0


def test_colours_are_converted_only_when_asked(tmp_path):
    grey = write_folder(tmp_path / "grey", files(pixels(4, (8, 6))))
    with pytest.raises(DataError, match=r"000\.png.*grey.*3 channels.*convert_colour"):
        _load(grey)
    converted = _load(grey, convert_colour=True)
    assert torch.equal(converted.train[:,][:, 0], _load(grey, (1, 8, 6)).train[:][:, 0])
    with pytest.raises(DataError, match=r"000\.png.*is RGB.*wants 1 channel "):
        _load(write_folder(tmp_path / "rgb", files(pixels(4))), (1, 8, 6))


def test_palettes_bits_and_unused_transparency_lose_nothing(tmp_path):
    image = (pixels(1)[0] // 128 * 255).astype(np.uint8)
    picture = Image.fromarray(image)
    contents = {
        "a.png": encode(picture),
        "b.png": encode(picture.quantize(8)),
        "c.png": encode(picture.convert("RGBA")),
    }
    data = _load(write_folder(tmp_path / "rgb", contents), num_holdout=1)
    assert all(torch.equal(other, data.holdout[0]) for other in data.train)
    grey = picture.getchannel("R")
    contents = {"a.png": encode(grey), "b.png": encode(grey.convert("1")), "c.png": encode(grey.convert("LA"))}
    data = _load(write_folder(tmp_path / "grey", contents), (1, 8, 6), num_holdout=1)
    assert all(torch.equal(other, data.holdout[0]) for other in data.train)


def test_jpeg_files_are_read(tmp_path):
    contents = {f"{i}.jpg": encode(image, "jpeg", quality=95) for i, image in enumerate(pixels(3, (16, 16, 3)))}
    contents["3.JPEG"] = contents.pop("2.jpg")
    assert _load(write_folder(tmp_path, contents), (3, 16, 16)).train.shape == (1, 3, 16, 16)


def _bad_images():
    image = pixels(1)[0]
    see_through = Image.fromarray(image).convert("RGBA")
    see_through.putpixel((0, 0), (0, 0, 0, 0))
    return {
        "cut.png": encode(pixels(1, (64, 64, 3))[0])[:-200],
        "cut.jpg": encode(pixels(1, (64, 64, 3))[0], "jpeg")[:-200],
        "text.png": b"hello",
        "empty.png": b"",
        "header.png": encode(image)[:20],
        "moving.gif": encode(image, "gif", save_all=True, append_images=[Image.fromarray(255 - image)]),
        "small.png": encode(image[:4]),
        "grey.png": encode(image[..., 0]),
        "glass.png": encode(see_through),
        "deep.png": encode(image[..., 0].astype(np.uint16)),
        "cmyk.jpg": encode(Image.fromarray(image).convert("CMYK"), "jpeg"),
        "bomb.png": huge_png(),
        "small-bomb.png": huge_png(9_000),
    }


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_an_image_that_cannot_be_used_is_named_with_what_to_do(tmp_path, kind, cache):
    for name, content in _bad_images().items():
        folder = tmp_path / name
        folder.mkdir()
        path = MAKERS[kind](folder, {**files(pixels()), f"deep/er/{name}": content})
        with pytest.raises(DataError) as caught:
            _load(path)
        assert f"deep/er/{name} in {path}" in caught.value.message, name
        assert caught.value.hint, name
        assert "\n" not in caught.value.message, name
    assert not list(cache.iterdir()), "a set that cannot be used leaves nothing in the cache"


def test_an_image_smaller_than_the_crop_is_named(tmp_path):
    with pytest.raises(DataError, match=r"000\.png.*smaller than the crop of 7.*data\.crop"):
        _load(write_folder(tmp_path, files(pixels())), (3, 7, 7), crop=7)


def _link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


def _bad_archives(folder):
    good = files(pixels(4, (40, 40, 3)))
    whole = write_tar(folder / "whole.tar", good, shuffled=False).read_bytes()
    member = 512 + -(-len(good["000.png"]) // 512) * 512
    rotten = bytearray(write_zip(folder / "whole.zip", good).read_bytes())
    secret = bytearray(rotten)
    rotten[200] ^= 0xFF
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := secret.find(mark, start + 1)) >= 0:
            secret[start + offset] |= 1
    contents = {
        "cut.tar": whole[: member + 700],
        "cut-between-members.tar": whole[: 2 * member],
        "overwritten.tar": whole[:member] + b"x" * 512 + whole[member + 512 :],
        "cut.tar.gz": gzip.compress(whole)[:-300],
        "text.tar": b"hello",
        "empty.tar": b"",
        "cut.zip": bytes(rotten[:-10]),
        "rotten.zip": bytes(rotten),
        "secret.zip": bytes(secret),
        "text.zip": b"hello",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_tar(folder / "no-images.tar", {"a.txt": b"a"})
    write_zip(folder / "no-images.zip", {"a.txt": b"a"})
    for name in ("../out.png", "/out.png", "a/../../out.png"):
        write_tar(folder / f"outside{len(name)}.tar", {**good, name: good["000.png"]})
        write_zip(folder / f"outside{len(name)}.zip", {**good, name: good["000.png"]})
    for label, info in (("soft", _link("a.png")), ("hard", _link("a.png", tarfile.LNKTYPE))):
        with tarfile.open(folder / f"{label}.tar", "w") as archive:
            archive.addfile(info)
    with tarfile.open(folder / "twice.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"))
    with zipfile.ZipFile(folder / "soft.zip", "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("whole"))


def test_an_archive_that_cannot_be_used_is_named_with_what_to_do(tmp_path):
    paths = _bad_archives(tmp_path)
    assert len(paths) > 20
    for path in paths:
        with pytest.raises(DataError) as caught:
            _load(path, (3, 40, 40))
        assert str(path) in caught.value.message, path.name
        assert caught.value.hint, path.name


def test_nothing_is_extracted_to_disk(tmp_path, cache):
    path = write_tar(tmp_path / "images.tar", files(pixels()))
    _load(path)
    assert list(tmp_path.iterdir()) == [path]
    assert sorted(item.suffix for item in cache.iterdir()) == [".json", ".npy"]


def test_links_are_followed_unless_they_lead_back(tmp_path):
    folder = write_folder(tmp_path / "images", files(pixels()))
    other = write_folder(tmp_path / "other", files(pixels(3, seed=1)))
    (folder / "more").symlink_to(other)
    assert len(_load(folder).train) == 13
    (folder / "more" / "back").symlink_to(folder)
    with pytest.raises(DataError, match=r"back.*leads back"):
        _load(folder)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to(path), lambda path: path.symlink_to("absent")])
def test_a_link_to_nothing_is_named(tmp_path, make):
    folder = write_folder(tmp_path, files(pixels()))
    make(folder / "link.png")
    with pytest.raises(DataError, match=r"link\.png"):
        _load(folder)


def test_an_empty_folder_says_what_images_are(tmp_path):
    with pytest.raises(DataError, match=r"holds no images.*\.png"):
        _load(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    folder = write_folder(tmp_path, files(pixels()))
    (folder / "003.png").chmod(0)
    with pytest.raises(DataError, match=r"003\.png"):
        _load(folder)
