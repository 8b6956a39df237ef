from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kaem.engines.gpu import installed_gpu
from kaem.engines.tensorrt_file import EngineFile, EngineKey, load_engine, read_engine, require_match, write_engine
from kaem.errors import ArtifactError, BackendError

KEY = EngineKey(model="sha256:1", tensorrt="11.4.0", gpu="NVIDIA H200", driver="580.65.06")
ENGINE = EngineFile(key=KEY, profiles=((1, 1, 1), (1, 64, 1024)), tf32=False, plan=bytes(range(256)) * 9)


@pytest.fixture
def secret(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "share" / "engine-secret"
    monkeypatch.setenv("KAEM_ENGINE_SECRET", str(path))
    return path


@pytest.fixture
def written(tmp_path, secret) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(write_engine(ENGINE))
    return path


def test_an_engine_is_read_as_it_was_written(written):
    assert read_engine(written) == ENGINE


def test_the_secret_is_made_once_and_for_its_user_alone(written, secret):
    first = secret.read_bytes()
    write_engine(ENGINE)
    assert secret.read_bytes() == first
    assert len(first) == 32
    assert secret.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in secret.parent.iterdir()] == ["engine-secret"]


@pytest.mark.parametrize("position", [8, 30, 500, -40, -1])
def test_an_engine_with_any_byte_changed_is_refused(written, position):
    content = bytearray(written.read_bytes())
    content[position] ^= 1
    written.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged, or it was not built by you"):
        read_engine(written)


@pytest.mark.parametrize("length", [9, 100, -1])
def test_a_truncated_engine_is_refused(written, length):
    written.write_bytes(written.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="damaged"):
        read_engine(written)


def test_somebody_elses_engine_is_refused(written, secret):
    secret.write_bytes(bytes(32))
    with pytest.raises(ArtifactError, match="not built by you"):
        read_engine(written)


def test_without_a_secret_no_engine_is_ours(written, secret):
    secret.unlink()
    with pytest.raises(ArtifactError, match="no secret"):
        read_engine(written)
    assert not secret.exists()


def test_a_secret_that_others_can_read_is_refused(written, secret):
    secret.chmod(0o644)
    with pytest.raises(BackendError, match="only you can read"):
        read_engine(written)


def test_what_is_no_engine_is_refused(tmp_path, secret):
    (tmp_path / "plan").write_bytes(b"ftrt and so on")
    with pytest.raises(ArtifactError, match="not an engine of kaem"):
        read_engine(tmp_path / "plan")
    with pytest.raises(ArtifactError, match="cannot read"):
        read_engine(tmp_path / "missing")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EngineKey)])
def test_an_engine_of_another_model_version_gpu_or_driver_is_refused_by_name(name):
    require_match(ENGINE, KEY, Path("model.engine"))
    other = dataclasses.replace(KEY, **{name: "another"})
    assert other.digest != KEY.digest
    with pytest.raises(ArtifactError, match=f"something else: {name} .*, here another"):
        require_match(ENGINE, other, Path("model.engine"))


def _has_driver() -> bool:
    try:
        installed_gpu()
    except BackendError:
        return False
    return True


@pytest.mark.skipif(_has_driver(), reason="this machine has a GPU")
def test_without_a_driver_the_error_says_what_is_missing():
    with pytest.raises(BackendError, match="no NVIDIA driver here") as caught:
        installed_gpu()
    assert "nvidia-smi" in caught.value.hint


def test_without_tensorrt_the_error_says_what_to_install(written, artifact_path):
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(BackendError, match="TensorRT cannot be imported") as caught:
            load_engine(written, artifact_path)
        assert "kaem[tensorrt]" in caught.value.hint
    else:
        pytest.skip("TensorRT is installed here")
