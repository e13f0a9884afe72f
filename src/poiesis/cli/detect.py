"""`poiesis detect`: what is unlike the data a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from poiesis.cli.options import parse
from poiesis.cli.output import print_json, progress, stdout_for_json
from poiesis.config import check

__all__ = ["DetectArgs", "run"]

_EXAMPLES = (
    "poiesis train vae --data mnist --data.classes 3 --train.budget 1m --out runs/threes",
    "poiesis detect runs/threes -o found",
    "poiesis detect runs/parts new-parts/ --fpr 0.01 --maps -o found",
    "poiesis detect runs/parts test/ --normal good --json",
)


@dataclass(frozen=True, kw_only=True)
class DetectArgs:
    """Options of the verb."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest. It was trained on normal data alone."""
    input: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="INPUT")] = None
    """Image file, folder or .zip of images, or name of a data set (default: the run's own data,
    with the classes that it left out)."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for scores.csv, report.md, report.json and heatmaps.png."""
    fpr: float = 0.05
    """Share of normal data that may be flagged by mistake."""
    score: str = "auto"
    """Which score decides; auto is the combined one. The report has them all."""
    normal: tuple[str, ...] = ()
    """Classes of INPUT that are normal, to say how well it went (default: the run's classes)."""
    maps: bool = False
    """Write a heat map of each image, too."""
    skip_baselines: bool = False
    """Don't compare with scikit-learn's detectors, which takes a minute or more."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of a data set."""
    limit: int | None = None
    """At most so many samples."""
    fit_rows: int = 10_000
    """Fit scores and baselines to at most so many training images."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    batch_size: int = 256
    """Samples scored at once: a matter of speed and memory."""
    seed: int = 0
    """Seed of what is drawn at random: a likelihood's samples, a forest."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    json: bool = False
    """Print one JSON document, what report.json holds."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check("--fpr", self.fpr, low=0, high=0.5, open_low=True)
        check("--limit", self.limit, low=1)
        check("--fit-rows", self.fit_rows, low=10)
        check("--batch-size", self.batch_size, low=1)
        check("--seed", self.seed, low=0)
        check("--threads", self.threads, low=1)


def run(args: list[str]) -> int:
    """Score, decide, write the files, print what was found."""
    parsed = parse(
        DetectArgs,
        args,
        prog="poiesis detect",
        description="Find what is unlike the data that a model was trained on: train it on normal "
        "data alone. Each image gets scores and a p-value: the share of held-out normal images "
        "that are as strange. It is an anomaly if that is at most --fpr. Where the classes of "
        "INPUT are known, AUROC and others say how well it went, next to scikit-learn's detectors.",
        examples=_EXAMPLES,
    )
    import torch

    from poiesis.apply.detect import detect

    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        found = detect(
            parsed.run,
            parsed.input or "",
            out=parsed.out,
            fpr=parsed.fpr,
            score=parsed.score,
            normal=parsed.normal,
            baselines=not parsed.skip_baselines,
            maps=parsed.maps,
            split=parsed.split,
            limit=parsed.limit,
            fit_rows=parsed.fit_rows,
            checkpoint=parsed.checkpoint,
            device=parsed.device,
            batch_size=parsed.batch_size,
            seed=parsed.seed,
            progress=advance,
        )
    if parsed.json:
        print_json({**found.to_json(), "out": parsed.out})
        return 0
    total, flagged = len(found.inputs), int(found.flagged.sum())
    print(f"{total:,} samples ({found.inputs.where}): {flagged:,} anomalies by {found.score}")
    print(
        f"  threshold {found.threshold:.5g} from {found.calibrated_on:,} held-out normal samples, "
        f"for {100 * found.fpr:g}% of normal ones flagged"
    )
    if found.numbers:
        print(f"  {'':24} AUROC  anomalies flagged  normal flagged")
    for name, numbers in found.numbers.items():
        kind = " (baseline)" if name in found.baselines else ""
        cells = (numbers.get(k) for k in ("auroc", "flagged_anomalies", "flagged_normal"))
        area, caught, false = ("–" if v is None else f"{v:.3f}" for v in cells)
        print(f"  {name + kind:28}{area:>5}  {caught:>17}  {false:>14}")
    for note in found.notes:
        print(f"  {note}")
    if found.paths:
        print(f"written: {parsed.out}")
    return 0
