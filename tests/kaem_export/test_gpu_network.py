"""The graphs that are swept on a GPU are made where there is none."""

from __future__ import annotations

import numpy as np
from gpu.network import sweep_graphs

from kaem.engines.session import open_session
from kaem.noise import uniforms


def test_the_network_of_the_sweep_gives_the_same_images_in_both_precisions(monkeypatch):
    monkeypatch.delenv("KAEM_GPU_MODEL", raising=False)
    _, graphs = sweep_graphs()
    uniform = uniforms(1, 0, 3, 101)
    exact, narrow = (
        open_session(graphs[name], "cpu", source="the graph").run(["image"], {"uniform": uniform})[0].astype(int)
        for name in ("float32", "float16")
    )
    assert exact.shape == (3, 3, 32, 32)
    assert np.abs(exact - narrow).max() <= 1
