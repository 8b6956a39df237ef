from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "kaem" / "protocol").glob("*.proto"))


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_the_generated_code_is_up_to_date():
    subprocess.run(
        ["bash", "scripts/generate_protocol.sh", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        timeout=120,
    )


@pytest.mark.parametrize("proto", PROTOS, ids=lambda proto: proto.stem)
def test_every_field_and_method_is_documented(proto):
    lines = proto.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s+(rpc |oneof |(map<.*>|[\w.]+)( \w+)* \w+ = \d+;|[A-Z0-9_]+ = \d+;)", line):
            assert lines[number - 1].strip().startswith("//"), line
