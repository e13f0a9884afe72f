"""Train GANs on real data under fixed budgets and score them: table, JSON lines, pictures.

python benchmarks/gans.py                   every row that is not finished yet, then the table
python benchmarks/gans.py dcgan-mnist       these rows only
python benchmarks/gans.py --list            what the rows are, and which are finished
python benchmarks/gans.py --pace 15s        steps that fit the minutes, for --steps-from

FID, precision and recall are those of 10,000 samples against as many test images, in the features
of the data set's own classifier (flowers: 2,000 samples against training images, in features of no
classifier). "plain" is a float32 loop as textbooks write it, of the same networks, in the same
minutes. How often the class asked for is the one seen is judged by the same classifier, on 10,000
samples.

The budgets: see benchmarks/budget.py. Toys in the plane: benchmarks/toys.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from budget import (
    SHOWN,
    Bench,
    Records,
    Row,
    Values,
    command,
    measured,
    record,
    rows_table,
    say,
    sheet,
    train,
    within,
)
from poiesis.data import open_data
from poiesis.data.sources import roots
from poiesis.evaluation.images import default_extractor
from poiesis.models.trained import load
from quality import run_textbook, score_images

SAMPLES = 10_000
Gate = Callable[[Values, dict[str, Values]], bool | None]


def share_of(name: str, other: str, most: float, *no_worse: str) -> Gate:
    """Return a gate: a value at most a share of another row's, others at least that row's."""

    def reached(own: Values, others: dict[str, Values]) -> bool | None:
        if other not in others:
            return None
        least = all(own[key] >= others[other][key] for key in no_worse)
        return own[name] <= most * others[other][name] and least

    return reached


def best_of(names: tuple[str, ...], other: str, most: float) -> Gate:
    """Return a gate: the lowest FID of these rows at most a share of another row's."""

    def reached(own: Values, others: dict[str, Values]) -> bool | None:
        if other not in others or any(name not in others for name in names):
            return None
        return min(others[name]["fid"] for name in names) <= most * others[other]["fid"]

    return reached


def more_than(name: str, other: str, *no_worse: str) -> Gate:
    """Return a gate: a value above another row's, others at least that row's."""

    def reached(own: Values, others: dict[str, Values]) -> bool | None:
        if other not in others:
            return None
        least = all(own[key] >= others[other][key] for key in no_worse)
        return own[name] > others[other][name] and least

    return reached


TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
WIDTHS = (256, 128, 64)
"""Channels of the textbook's networks."""
FLOWERS = next((str(r / "flowers64") for r in roots() if (r / "flowers64").exists()), "flowers64")
"""Folder of 4,317 photographs."""
LATER = ("wgan-gp-mnist", "sngan-mnist", "r3gan-mnist")

ROWS = [
    *(
        row
        for data in TITLES
        for row in (
            Row(
                name=f"plain-{data}",
                what=f"plain DCGAN, {TITLES[data]}",
                model="plain dcgan",
                data=data,
                minutes=6,
                samples=SAMPLES,
            ),
            Row(
                name=f"dcgan-{data}",
                what=f"`dcgan`, {TITLES[data]}, the same networks",
                model="dcgan",
                data=data,
                changes={"widths": WIDTHS},
                minutes=6,
                samples=SAMPLES,
                gate="FID ≤ 0.7x plain; precision, recall no worse",
                reached=share_of("fid", f"plain-{data}", 0.7, "precision", "recall"),
            ),
        )
    ),
    *(
        Row(
            name=f"{model}-mnist",
            what=f"`{model}`, MNIST",
            model=model,
            data="mnist",
            minutes=6,
            samples=SAMPLES,
            gate="best of three ≤ 0.5x plain",
            reached=best_of(LATER, "plain-mnist", 0.5),
        )
        for model in ("wgan-gp", "sngan", "r3gan")
    ),
    Row(
        name="cgan-mnist",
        what="`cgan`, MNIST by class",
        model="cgan",
        data="mnist",
        minutes=8,
        samples=SAMPLES,
        gate="agreement ≥ 97%",
        reached=within("agreement", low=0.97),
    ),
    Row(
        name="biggan-mnist",
        what="`biggan`, preset fast, MNIST by class",
        model="biggan",
        preset="fast",
        data="mnist",
        minutes=8,
        samples=SAMPLES,
        gate="agreement ≥ 97%",
        reached=within("agreement", low=0.97),
    ),
    Row(
        name="flowers-plain",
        what="`r3gan`, flowers of 64 px, not augmented",
        model="r3gan",
        data=FLOWERS,
        changes={"augment": "none"},
        minutes=15,
        samples=2000,
    ),
    Row(
        name="flowers-ada",
        what="`r3gan`, flowers of 64 px, ADA",
        model="r3gan",
        data=FLOWERS,
        changes={"augment": "ada"},
        minutes=15,
        samples=2000,
        gate="recall above, precision no worse",
        reached=more_than("recall", "flowers-plain", "precision"),
    ),
]


def agreement(data: str, pixels: Tensor, asked: Tensor) -> float:
    """Return how often the data set's classifier sees the class asked for."""
    extractor = default_extractor(data, open_data(data).spec)
    seen = extractor.head(extractor.features(pixels)).argmax(1)
    return float((seen.cpu() == asked).double().mean())


def run_row(row: Row, out: Path, folder: Path, scale: float, steps: int | None) -> dict[str, Any]:
    """Train and score one row; write its picture; return its record."""
    began = time.monotonic()
    about: dict[str, Any] = {}
    if row.textbook:
        pixels, done, seconds, sampling = run_textbook(row, folder, scale, steps)
        values = score_images(row, pixels)
    else:
        path, done, seconds = train(row, folder, scale, steps)
        say(f"{row.name}: {done} steps in {seconds:.0f} s; scoring")
        trained = load(path)
        start = time.monotonic()
        pixels = trained.sample_native(row.samples, seed=row.seed, batch_size=100)
        sampling = time.monotonic() - start
        values = score_images(row, pixels, "train" if row.data == FLOWERS else "test")
        if trained.model.condition is not None:
            asked = trained.model.default_condition(0, row.samples)
            assert asked is not None
            values["agreement"] = agreement(row.data, pixels, asked)
        alarms = path / "alarms.jsonl"
        raised = alarms.read_text().splitlines() if alarms.exists() else []
        about = {
            "alarms": [json.loads(line)["name"] for line in raised],
            "config": trained.config["model"],
            "parameters": sum(p.numel() for p in trained.model.parameters()),
        }
    codec = open_data(row.data).codec
    shown = [codec.decode(image) for image in pixels[:SHOWN]]
    sheet(shown).save(out / f"gans-{row.name}.png", optimize=True)
    return record(
        row,
        values,
        scale=scale,
        steps=done,
        given=steps is not None,
        seconds=seconds,
        sample_seconds=round(sampling, 1),
        all_seconds=round(time.monotonic() - began, 1),
        **about,
    )


def describe(row: Row, value: Values) -> str:
    """Return a row's result in words."""
    words = (
        f"FID **{value['fid']:.2f}**, precision {value['precision']:.2f}, recall "
        f"{value['recall']:.2f}"
    )
    if "agreement" in value:
        words += f", agreement **{100 * value['agreement']:.1f}%**"
    if "smallest_class" in value:
        smallest, largest = (100 * value[f"{end}_class"] for end in ("smallest", "largest"))
        words += f", classes {smallest:.1f} … {largest:.1f}%"
    return words


def table(records: Records) -> str:
    """Return the Markdown page."""
    lines = [
        "# GANs on real data",
        "",
        "Made by `python benchmarks/gans.py`, whose head says what the numbers are; every line's",
        "full record is in `gans.jsonl`.",
        *rows_table("gans", ROWS, records, describe),
    ]
    for row in ROWS:
        if row.name in records:
            alarms = ", ".join(records[row.name].get("alarms") or ["none"])
            watched = "" if row.textbook else f" Alarms of the training's health: {alarms}."
            lines += ["", f"{row.what}: the first {SHOWN} samples, in order.{watched}"]
            lines += ["", f"![{row.name}](gans-{row.name}.png)"]
    if records:
        lines += ["", measured(records)]
    return "\n".join([*lines, ""])


BENCH = Bench(stem="gans", rows=ROWS, run=run_row, describe=describe, table=table)

if __name__ == "__main__":
    raise SystemExit(command(BENCH, __doc__ or ""))
