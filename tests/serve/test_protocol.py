from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "kaem" / "protocol" / "kaem.proto"


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_the_generated_code_is_up_to_date():
    subprocess.run(
        ["bash", "scripts/generate_protocol.sh", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        timeout=120,
    )


def test_every_field_and_method_is_documented():
    lines = PROTO.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s+(rpc |[\w.]+( \w+)* \w+ = \d+;|ENCODING_)", line):
            assert lines[number - 1].strip().startswith("//"), line
