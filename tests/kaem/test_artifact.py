from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaem.artifact import MANIFEST_KEY, Figure, Manifest, read_manifest, seal, write_manifest
from kaem.errors import ArtifactError

MANIFEST = Manifest(family="kaem", name="a", noise_dim=3, latent_dim=3, image_shape=(1, 4, 4))

sizes = st.integers(1, 1 << 20)
manifests = st.builds(
    Manifest,
    family=st.sampled_from(["kaem", "vae", "latent_ebm", "ddpm", "ddim", "of-tomorrow"]),
    name=st.text().filter(str.isprintable),
    noise_dim=sizes,
    latent_dim=sizes,
    image_shape=st.tuples(sizes, sizes, sizes),
    image_type=st.sampled_from(["float32", "uint8"]),
    prior=st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.booleans())),
    certificate=st.lists(
        st.builds(
            Figure,
            name=st.text(),
            value=st.floats(allow_nan=False, allow_infinity=False),
            bound=st.floats(allow_nan=False, allow_infinity=False),
            meaning=st.text(),
        )
    ).map(tuple),
)


@given(manifest=manifests)
def test_a_manifest_survives_being_written_and_read(manifest):
    assert read_manifest({MANIFEST_KEY: write_manifest(manifest)}, source="x") == manifest


def test_a_file_without_a_manifest_is_not_ours():
    with pytest.raises(ArtifactError, match="not a kaem artifact"):
        read_manifest({"producer": "someone"}, source="their.onnx")


def test_a_newer_format_names_the_version_this_kaem_reads():
    text = json.dumps({**json.loads(write_manifest(MANIFEST)), "format_version": 99, "new_field": 1})
    with pytest.raises(ArtifactError, match="format 99; this kaem reads up to 3"):
        read_manifest({MANIFEST_KEY: text}, source="x")


@pytest.mark.parametrize(
    "change",
    [
        {"noise_dim": 0},
        {"noise_dim": "3"},
        {"noise_dim": 1 << 40},
        {"latent_dim": True},
        {"image_shape": [1, 4]},
        {"image_shape": [1, -4, 4]},
        {"family": "g\nan"},
        {"family": 3},
        {"image_type": "int8"},
        {"certificate": [{"name": "x"}]},
        {"certificate": 3},
        {"prior": []},
        {"format_version": "1"},
        {"unknown": 1},
        {"name": 7},
        {"name": "\x1b[31mred"},
        {"graph_fingerprint": 7},
        {"format_version": 0},
    ],
)
def test_a_damaged_manifest_is_refused(change):
    text = seal({**json.loads(write_manifest(MANIFEST)), **change})
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest({MANIFEST_KEY: text}, source="x")


def test_a_changed_field_or_a_missing_digest_is_refused():
    content = json.loads(write_manifest(MANIFEST))
    for changed in (
        {**content, "tools": {"torch": "9.9"}},
        {**content, "format_version": 1},
        {key: value for key, value in content.items() if key != "manifest_fingerprint"},
    ):
        with pytest.raises(ArtifactError, match="damaged: its fields have the digest"):
            read_manifest({MANIFEST_KEY: json.dumps(changed)}, source="x")


def test_the_first_format_had_no_digest_and_is_read():
    content = {**json.loads(write_manifest(MANIFEST)), "format_version": 1}
    del content["manifest_fingerprint"]
    manifest = read_manifest({MANIFEST_KEY: json.dumps(content)}, source="x")
    assert manifest == dataclasses.replace(MANIFEST, format_version=1)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 1}', "[" * 100_000])
def test_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest({MANIFEST_KEY: text}, source="x")


def test_a_figure_is_kept_up_to_its_bound_and_never_when_it_is_not_a_number():
    assert Figure(name="x", value=1.0, bound=1.0).is_kept
    assert not Figure(name="x", value=1.1, bound=1.0).is_kept
    assert not Figure(name="x", value=float("nan"), bound=1.0).is_kept


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MANIFEST.name = "b"
