"""Digests of what a folder of checkpoints exports to: the proof that a change of the code changes no image.

    python scripts/artifact_digests.py CHECKPOINTS digests.json    # writes it, or compares where it exists

An empty folder is first filled with small checkpoints of every kind, with random weights. Every checkpoint is
exported as it is, and with the options that its name suits; of each artifact there are digests of its first 256
images and latent vectors, and the figures of its certificate. Bits depend on the machine and on the versions of
torch and ONNX Runtime, so two commits are compared on one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import platform
import re
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

import kaem
from cli.main import main as run_kaem

ROOT = Path(__file__).parents[1]
ROWS = 256
OPTIONS: dict[str, tuple[str, ...]] = {
    "": (),
    "uint8": ("--image-type", "uint8"),
    "plain": ("--optimize", "none"),
    "large-batch": ("--optimize", "large-batch"),
    "float16": ("--precision", "float16"),
    "int8": ("--precision", "int8"),
    "components": ("--keep-components",),
    "ddim": ("--sampler", "ddim", "--steps", "5"),
    "ddpm": ("--sampler", "ddpm", "--steps", "5"),
}
_SUITED = {  # beginnings of checkpoints' names -> options that change something there
    "wide": ("uint8", "plain", "large-batch", "float16", "int8"),
    "wide_kan": ("uint8", "plain", "float16", "int8"),
    "rgb": ("uint8", "large-batch"),
    "gaussian_": ("uint8", "components"),
    "experts": ("uint8",),
    "family_ddpm": ("ddim", "ddpm"),
    "family_vae": ("uint8", "float16"),
    "family_latent": ("uint8",),
}


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("digests", type=Path)
    given = parser.parse_args()
    if not list(given.checkpoints.glob("*.pt")):
        _make_checkpoints(given.checkpoints)
    found = {}
    for path in sorted(given.checkpoints.glob("*.pt")):
        options = ["", *(names for start, names in _SUITED.items() if path.stem.startswith(start) for names in names)]
        for name in dict.fromkeys(options):
            key = f"{path.stem} {name}".strip()
            found[key] = _digest(path, OPTIONS[name])
            print(key, found[key].get("images", found[key].get("refused")), flush=True)
    if not given.digests.exists():
        content = {"machine": platform.processor() or platform.machine(), "rows": ROWS, "artifacts": found}
        given.digests.write_text(json.dumps(content, indent=1) + "\n")
        return
    kept = json.loads(given.digests.read_text())["artifacts"]
    other = [key for key in sorted({*kept, *found}) if kept.get(key) != found.get(key)]
    for key in other:
        print(f"DIFFERS {key}: {kept.get(key)} was, {found.get(key)} is")
    print(f"{len(found) - len(other)} of {len(kept)} artifacts are equal bit for bit")
    sys.exit(bool(other))


def _make_checkpoints(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "support" / "models"))
    from baselines import write_baseline_checkpoint
    from models import MORE_FUNCTIONS, VARIANTS, write_random_checkpoint

    wide = ("generator.dense=0", "generator.channels=[64,48]", "data.image_shape=[1,16,16]")
    framed = ("prior.variant=experts", "prior.low=-8", "prior.high=8", "prior.frame=own")
    kinds = {
        re.sub(r"[ ,\[\]]+", "_", name).strip("_"): options for name, options in {**VARIANTS, **MORE_FUNCTIONS}.items()
    }
    kinds["wide"] = wide
    kinds["wide_kan"] = ("generator.kind=kan", "generator.channels=[]", "generator.hidden=[100]")
    kinds["rgb"] = ("data.image_shape=[3,16,16]", "generator.channels=[16,16]", *framed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in kinds.items():
        write_random_checkpoint(folder / f"{name}.pt", *options)
    for family in ("vae", "latent_ebm", "ddpm"):
        write_baseline_checkpoint(folder / f"family_{family}.pt", family)


def _digest(checkpoint: Path, options: tuple[str, ...]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out, said = Path(folder) / "model.onnx", io.StringIO()
        words = ["kaem", "export", str(checkpoint), "-o", str(out), *options]
        with patch.object(sys, "argv", words), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                run_kaem()
            except SystemExit as ended:
                if ended.code:
                    return {"refused": said.getvalue().splitlines()[-1:]}
        with kaem.load(out, workers=1) as sampler:
            manifest = sampler.manifest
            half = np.random.default_rng(0).random((ROWS, manifest.noise_dim), dtype=np.float32) / 2  # signed or not
            found: dict[str, object] = {"images": _hash(sampler.sample(ROWS, seed=1))}
            if manifest.prior:
                found["latents"] = _hash(sampler.latents(half))
            found["certificate"] = {figure.name: [figure.value, figure.bound] for figure in manifest.certificate}
    return found


def _hash(values: NDArray[np.generic]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:32]


if __name__ == "__main__":
    main()
