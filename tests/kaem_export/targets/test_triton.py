"""config.pbtxt as Triton's own message reads it."""

from __future__ import annotations

import dataclasses

import pytest
from google.protobuf import text_format

from kaem.artifact import Manifest
from kaem.engines.tensorrt_file import EngineFile, EngineKey
from kaem.errors import RequestError
from kaem_export.targets.triton import model_config, write_model

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install tritonclient")

MANIFEST = Manifest(family="kaem", name="digits", noise_dim=5, latent_dim=4, image_shape=(3, 8, 6))
ENGINE = EngineFile(
    key=EngineKey(model="sha256:1", tensorrt="11.4.0", gpu="NVIDIA H200", driver="580.65.06"),
    profiles=((1, 1, 1), (1, 64, 1024)),
    tf32=False,
    plan=b"plan",
)


def _parsed(text: str):
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _tensors(values):
    names = model_config_pb2.DataType.Name
    return [(value.name, names(value.data_type), list(value.dims)) for value in values]


@pytest.mark.parametrize(("image_type", "data_type"), [("float32", "TYPE_FP32"), ("uint8", "TYPE_UINT8")])
def test_shapes_and_types_are_the_artifacts_without_the_batch(image_type, data_type):
    manifest = dataclasses.replace(MANIFEST, image_type=image_type)
    config = _parsed(model_config(manifest, "digits", batch=None))
    assert (config.name, config.backend, config.max_batch_size) == ("digits", "onnxruntime", 256)
    assert _tensors(config.input) == [("uniform", "TYPE_FP32", [5])]
    assert _tensors(config.output) == [("image", data_type, [3, 8, 6]), ("latent", "TYPE_FP32", [4])]


def test_requests_are_batched_and_onnx_runtime_keeps_rows_exact():
    config = _parsed(model_config(MANIFEST, "digits", batch=None))
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 64, 256]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 0)]  # KIND_AUTO
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert dict(accelerator.parameters) == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


def test_a_fixed_batch_is_part_of_the_shapes_and_nothing_is_batched():
    config = _parsed(model_config(MANIFEST, "digits", batch=16))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [dims for _, _, dims in _tensors((*config.input, *config.output))] == [[16, 5], [16, 3, 8, 6], [16, 4]]


@pytest.mark.parametrize(
    ("sizes", "engine", "most", "preferred"),
    [((1, 8, 32), None, 32, [1, 8, 32]), ((4, 1000), None, 256, [4]), ((2, 16), ENGINE, 16, [2, 16])],
)
def test_batch_sizes_of_the_artifact_are_those_that_triton_prefers_and_never_exceeds(sizes, engine, most, preferred):
    manifest = dataclasses.replace(MANIFEST, compilation={"batch_sizes": list(sizes)})
    config = _parsed(model_config(manifest, "digits", batch=None, engine=engine))
    assert config.max_batch_size == most
    assert list(config.dynamic_batching.preferred_batch_size) == preferred


def test_an_engine_runs_on_gpus_with_all_its_profiles_and_its_largest_batch():
    config = _parsed(model_config(MANIFEST, "digits", batch=None, engine=ENGINE))
    assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "", 1024)
    (group,) = config.instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == ["0", "1"]
    assert config.optimization.cuda.graphs
    assert not config.parameters


def test_the_folder_is_what_triton_looks_for_and_is_replaced_whole(tmp_path):
    config = model_config(MANIFEST, "digits", batch=None)
    for content in (b"first", b"second"):
        folder = write_model(tmp_path / "repository", "digits", config, content, "onnxruntime")
        found = sorted(str(path.relative_to(tmp_path / "repository")) for path in folder.parent.rglob("*"))
        assert found == ["digits", "digits/1", "digits/1/model.onnx", "digits/config.pbtxt"]
        assert (folder / "1" / "model.onnx").read_bytes() == content
        assert (folder / "config.pbtxt").read_text() == config
    write_model(tmp_path / "repository", "digits", config, b"plan", "tensorrt")
    assert [path.name for path in (folder / "1").iterdir()] == ["model.plan"]


def test_a_folder_that_is_no_model_is_left_alone(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="no model of Triton"):
        write_model(tmp_path, "digits", "", b"", "onnxruntime")
    assert (tmp_path / "digits" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(RequestError, match="name of a folder"):
        write_model(tmp_path, "../digits", "", b"", "onnxruntime")
