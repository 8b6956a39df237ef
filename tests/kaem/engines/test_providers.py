from __future__ import annotations

from pathlib import Path

import pytest

from kaem.engines.providers import PROVIDERS, GpuOptions, cuda_options, tensorrt_options
from kaem.engines.session import open_session
from kaem.errors import BackendError


def test_arithmetic_is_exact_and_new_batch_sizes_do_not_stall_unless_asked_for():
    options = cuda_options(GpuOptions())
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["enable_cuda_graph"] == "0"
    assert options["prefer_nhwc"] == "0"
    assert options["arena_extend_strategy"] == "kSameAsRequested"


def test_recorded_batch_sizes_have_their_algorithms_chosen_by_rule_too():
    options = cuda_options(GpuOptions(device=1, cuda_graph=True, tf32=True, channels_last=True))
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert (options["device_id"], options["enable_cuda_graph"], options["use_tf32"]) == ("1", "1", "1")
    assert options["prefer_nhwc"] == "1"


def test_engines_are_built_for_one_range_of_batch_sizes_and_kept():
    options = tensorrt_options(GpuOptions(), {"uniform": (100,)}, Path("cache"))
    shapes = [options[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")]
    assert shapes == ["uniform:1x100", "uniform:64x100", "uniform:1024x100"]
    assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("1", "cache")
    assert (options["trt_timing_cache_enable"], options["trt_timing_cache_path"]) == ("1", "cache")


def test_a_fixed_batch_size_has_no_profile():
    assert not [name for name in tensorrt_options(GpuOptions(), {}, Path("cache")) if "profile" in name]


def test_options_are_text_for_all_providers():
    everything = cuda_options(GpuOptions()) | tensorrt_options(GpuOptions(), {"uniform": (3,)}, Path("cache"))
    assert all(isinstance(text, str) for text in everything.values())


@pytest.mark.parametrize(("provider", "extra"), [("cuda", "kaem[gpu]"), ("ort-tensorrt", "kaem[ort-tensorrt]")])
def test_a_provider_that_cannot_load_is_refused_and_never_replaced(
    artifact_path, provider, extra, monkeypatch, tmp_path
):
    monkeypatch.setenv("KAEM_CACHE_DIR", str(tmp_path))
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    # True of both builds: one lacks the provider, the other has it and cannot load it here.
    with pytest.raises(BackendError, match=PROVIDERS[provider]) as caught:
        open_session(artifact_path.read_bytes(), provider, source="model.onnx")
    assert extra in caught.value.hint
