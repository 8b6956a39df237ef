"""KAEM beside its peers: train, export and evaluate them, measure them in one run, and write what that shows.

    python benchmarks/peers.py --data ../shared/data                   # everything; what is finished is not done again
    python benchmarks/peers.py --data ../shared/data --until evaluate  # all but the timing
    python benchmarks/peers.py --data ../shared/data --any-code        # also what earlier code trained and exported
    python benchmarks/peers.py --data ../shared/data --from time       # measure again what is there
    python benchmarks/peers.py --plan smoke --out /tmp/peers           # does the machinery work?

The stages are train, export, evaluate, time, report. Results are kept in the output folder under the digest of the
settings, the data and the code that made them; timing is done anew every time, for it belongs to the moment.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cached_steps import Step, digest_of, digest_of_code, digest_of_file, is_done, made, run
from peers_plan import PLANS, Peer, Plan, Sampler
from peers_timing import RUNS, link, measure

STAGES = ("train", "export", "evaluate", "time", "report")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a plan's results lie, and whether those of earlier code count.

    Attributes:
        plan: What is compared.
        data: The data set's file; None where the preset has its own.
        out: Folder of all results.
        any_code: Take what is there of the same settings and data, whatever code made it.
    """

    plan: Plan
    data: Path | None
    out: Path
    any_code: bool

    @property
    def pairs(self) -> list[tuple[Peer, Sampler]]:
        """Every sampler with its model."""
        return [(peer, sampler) for peer in self.plan.peers for sampler in peer.samplers]

    def training(self, peer: Peer) -> Step:
        """Return the step that makes a peer's checkpoint."""
        settings = [f"training.seed={self.plan.seed}", "training.device=cpu", *self.plan.settings, *peer.settings]
        identity = {
            "settings": self._resolved(peer, settings),
            "data": digest_of_file(self.data) if self.data else "preset",
            "code": {
                "training": digest_of_code(["kaem_train"], without=["kaem_train/evaluation"]),
                **{name: version(name) for name in ("torch", "diffusers")},
            },
        }
        folder = self.out / f"{peer.name}-{digest_of(identity)[:10]}"
        words = ["train", self.plan.preset, "--family", peer.family]
        words += ["--data", str(self.data)] if self.data else []
        words += [word for setting in settings for word in ("--set", setting)]
        step = Step(
            makes=folder / "ckpt.pt", words=(*words, "-o", str(folder)), identity=identity, resume=("--resume",)
        )
        if self.any_code and not is_done(step):
            for other in sorted(self.out.glob(f"{peer.name}-*/ckpt.pt")):
                found = Step(makes=other, words=step.words, identity=identity)
                if is_done(found, any_code=True):
                    return found
        return step

    def export(self, peer: Peer, sampler: Sampler) -> Step:
        """Return the step that makes an artifact."""
        checkpoint = self.training(peer).makes
        makes = checkpoint.with_name(f"{sampler.name}.onnx")
        identity = {
            "checkpoint": digest_of_file(checkpoint),
            "options": list(sampler.export),
            "code": {
                "export": digest_of_code(["kaem_export", "kaem_train/model", "kaem_train/families"]),
                **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
            },
        }
        words = ("export", str(checkpoint), *sampler.export, "-o", str(makes))
        return Step(makes=makes, words=words, identity=identity)

    def evaluation(self, peer: Peer, sampler: Sampler) -> Step:
        """Return the step that makes an artifact's figures of quality, and a sheet of its samples."""
        artifact = self.export(peer, sampler).makes
        makes = artifact.with_suffix(".eval.json")
        words = ["eval", str(artifact), "--json", str(makes), "--grid", str(artifact.with_suffix(".png"))]
        words += ["--data", str(self.data)] if self.data else []
        words += ["--features", "classifier", *sampler.evaluation, "--seed", str(self.plan.seed)]
        identity = {
            "checkpoint": digest_of_file(self.training(peer).makes),
            "options": [*sampler.export, *sampler.evaluation],
            "data": digest_of_file(self.data) if self.data else "preset",
            "code": {"evaluation": digest_of_code(["kaem_train/evaluation"])},
        }
        return Step(makes=makes, words=tuple(words), identity=identity)

    def _resolved(self, peer: Peer, settings: list[str]) -> Any:
        """Return the whole configuration as training will see it, but for the place of the data."""
        from kaem.config import to_mapping
        from kaem_train.config.settings import load_config

        mapping = to_mapping(load_config(self.plan.preset, [*settings, f"family={peer.family}"]))
        mapping["data"].pop("path", None)
        return mapping


def make(place: Place, stage: str) -> None:
    """Do what is not done yet of one stage that keeps its results."""
    for peer in place.plan.peers:
        match stage:
            case "train":
                steps = [place.training(peer)]
            case "export":
                steps = [place.export(peer, sampler) for sampler in peer.samplers]
            case "evaluate":
                steps = [place.evaluation(peer, sampler) for sampler in peer.samplers]
            case _:
                raise AssertionError(f"no stage {stage!r} keeps its results")
        for step in steps:
            if is_done(step, any_code=place.any_code):
                continue
            if stage != "train":
                step.makes.unlink(missing_ok=True)
            step.makes.parent.mkdir(parents=True, exist_ok=True)
            run(step, step.makes.with_name("log.txt"))


def time_all(place: Place) -> None:
    """Measure every run of the plan, one after the other."""
    models, reports = place.out / "models", place.out / "timing"
    reports.mkdir(parents=True, exist_ok=True)
    for peer, sampler in place.pairs:
        checkpoint, artifact = place.training(peer).makes, place.export(peer, sampler).makes
        link(models, sampler.name, artifact, checkpoint, place.evaluation(peer, sampler).makes)
    for one in RUNS[place.plan.name]:
        measure(one, [sampler.name for _, sampler in place.pairs], models, reports)


def report(place: Place, *, is_recorded: bool) -> None:
    """Write what the last timing and the figures of quality say; keep it as a record of the docs if wanted."""
    from peers_report import Training, write

    from kaem.bench.record import read_report

    reports = {one: read_report(place.out / "timing" / f"{one.name}.json") for one in RUNS[place.plan.name]}
    trainings, commands = [], [f"python benchmarks/peers.py --plan {place.plan.name}"]
    for peer in place.plan.peers:
        steps = [place.training(peer)]
        steps += [step for one in peer.samplers for step in (place.export(peer, one), place.evaluation(peer, one))]
        commands += [step.line.replace(str(place.out), "runs/peers") for step in steps]
        trainings.append(
            Training(
                name=peer.name,
                config=steps[0].identity["settings"],
                record=made(steps[0]) or {},
                is_older_code=not is_done(steps[0]),
            )
        )
    sheets = {one.name: place.export(peer, one).makes.with_suffix(".png") for peer, one in place.pairs}
    write(reports, trainings, sheets, commands, out=place.out, is_recorded=is_recorded)
    print(place.out / "peers.html")


def main() -> None:
    """Read the command line and do the stages in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=PLANS, default="fashion-mnist")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data set")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="where results are kept")
    parser.add_argument("--record", action="store_true", help="keep the record, write docs/benchmark-results.md")
    parser.add_argument("--from", dest="first", choices=STAGES, default=STAGES[0], help="the first stage to do")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to do")
    parser.add_argument("--any-code", action="store_true", help="use what other code made of the same settings")
    options = parser.parse_args()
    plan = PLANS[options.plan]
    data = options.data / plan.file if plan.file else None
    if data is not None and not data.is_file():
        parser.error(f"no data set at {data}")
    options.out.mkdir(parents=True, exist_ok=True)
    place = Place(plan=plan, data=data, out=options.out, any_code=options.any_code)
    for stage in STAGES[STAGES.index(options.first) : STAGES.index(options.until) + 1]:
        if stage == "time":
            time_all(place)
        elif stage == "report":
            report(place, is_recorded=options.record)
        else:
            make(place, stage)


if __name__ == "__main__":
    main()
