"""Train the models on real data under fixed budgets and score them: a table, JSON lines, pictures.

python benchmarks/quality.py                    every row that is not finished yet, then the table
python benchmarks/quality.py vae text-6min      these rows only
python benchmarks/quality.py --list             what the rows are, and which are finished
python benchmarks/quality.py --pace             steps that fit the minutes, for --steps-from

A row's budget is minutes of training on two quiet cores, or steps. On a machine that is busy, first
measure the pace in a quiet moment with --pace, then train that many steps with --steps-from: the
result differs by rounding alone. A row that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import poiesis
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
)
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.evaluation.images import default_extractor, draw_reference, evaluate_images
from poiesis.evaluation.protocol import EvaluationConfig
from poiesis.models.trained import load
from poiesis.spec import Grid
from quality_rows import ROWS
from textbook import TEXTBOOKS, fit

# -- one row ------------------------------------------------------------------------------------


def score_likelihood(row: Row, path: Path) -> tuple[Values, list[Any]]:
    """Return the likelihood of all held-out data by `poiesis.evaluate`, and samples."""
    text = row.score == "text"
    config = EvaluationConfig(
        likelihood_rows=10**9,
        likelihood_samples=500 if row.score == "importance" else None,
        samples=8 if text else 500,
        seed=row.seed,
    )
    found = poiesis.evaluate(path, config)
    values = {number.name: number.value for number in found.numbers}
    wanted = ["nll_per_token", "bits_per_char"] if text else ["nll", "bits_per_dim"]
    kept = {name: values[name] for name in wanted}
    kept["standard_error"] = _standard_error(found[wanted[0]])
    trained = load(path)
    if text:
        return kept, trained.sample(1, seed=row.seed, prompt="\n", length=600)
    return kept, trained.sample(SHOWN, seed=row.seed)


def _standard_error(number: Any) -> float:
    low, high = number.interval
    return (high - low) / 2 / 1.96


def score_images(row: Row, generated: torch.Tensor, split: str = "test") -> Values:
    """Return FID, precision, recall and the classes of uint8 images, as `poiesis.evaluate` does."""
    data = open_data(row.data, DataConfig(source=row.data, **row.options))
    assert isinstance(data.spec, Grid)
    extractor = default_extractor(data.name, data.spec)
    real_rows = data.splits[split]
    chosen = draw_reference(torch.arange(len(real_rows)), len(generated), row.seed)
    real, _ = real_rows.fetch(chosen)
    numbers = evaluate_images(
        generated, real, extractor, data=data.name, variant=data.variant, split=split
    )
    values = {number.name: number.value for number in numbers}
    metrics = ("fid", "kid", "precision", "recall", "density", "coverage")
    if not getattr(extractor, "classes", 0):  # features of no classifier
        return {name: values[name] for name in metrics}
    logits = extractor.head(extractor.features(generated))
    shares = logits.argmax(1).bincount(minlength=extractor.classes).double() / len(generated)
    sure = logits.softmax(1).amax(1) > 0.9
    values |= {
        "smallest_class": float(shares.min()),
        "largest_class": float(shares.max()),
        "sure_of_class": float(sure.double().mean()),
    }
    return {
        name: values[name]
        for name in (
            *metrics,
            *("inception_score", "smallest_class", "largest_class", "sure_of_class"),
        )
    }


def run_textbook(
    row: Row, folder: Path, scale: float, steps: int | None
) -> tuple[torch.Tensor, int, float, float]:
    """Train a textbook loop; return uint8 samples (n, 1, 28, 28), steps, and two times."""
    torch.manual_seed(row.seed)
    loop = TEXTBOOKS[row.textbook]()
    images = open_data(row.data).splits["train"].x
    folder.mkdir(parents=True, exist_ok=True)
    done, seconds = fit(
        loop,
        images,
        seconds=None if row.minutes is None else 60 * scale * row.minutes,
        steps=steps,
        state=folder / "state.pt",
        seed=row.seed,
        say=lambda step, spent: say(f"{row.name}: step {step}, {spent:.0f} s"),
    )
    torch.manual_seed(row.seed)
    began = time.monotonic()
    drawn = loop.sample(row.samples)[:, :, 2:30, 2:30]
    pixels = ((drawn + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels, done, seconds, time.monotonic() - began


def run_row(row: Row, out: Path, folder: Path, scale: float, steps: int | None) -> dict[str, Any]:
    """Train and score one row; write its picture or text; return its record."""
    if steps is None and row.steps is not None:
        steps = max(1, round(row.steps * scale))
    began = time.monotonic()
    sampling = None
    samples: list[Any] = []
    about: dict[str, Any] = {}
    if row.textbook:
        pixels, done, seconds, sampling = run_textbook(row, folder, scale, steps)
        values = score_images(row, pixels)
        codec = open_data(row.data).codec
        samples = [codec.decode(image) for image in pixels[:SHOWN]]
    else:
        path, done, seconds = train(row, folder, scale, steps)
        say(f"{row.name}: {done} steps in {seconds:.0f} s; scoring")
        trained = load(path)
        about = {
            "config": trained.config["model"],
            "conditional": trained.model.condition is not None,
        }
        about["parameters"] = sum(p.numel() for p in trained.model.parameters())
        if row.score == "images":
            start = time.monotonic()
            pixels = trained.sample_native(row.samples, seed=row.seed, batch_size=100)
            sampling = time.monotonic() - start
            values = score_images(row, pixels)
            samples = [trained.codec.decode(image) for image in pixels[:SHOWN]]
        else:
            values, samples = score_likelihood(row, path)
    if samples and isinstance(samples[0], str):
        (out / f"quality-{row.name}.txt").write_text(samples[0], encoding="utf-8")
    else:
        sheet(samples).save(out / f"quality-{row.name}.png", optimize=True)
    return record(
        row,
        values,
        scale=scale,
        steps=done,
        given=steps is not None,
        seconds=seconds,
        sample_seconds=None if sampling is None else round(sampling, 1),
        all_seconds=round(time.monotonic() - began, 1),
        **about,
    )


# -- the table ----------------------------------------------------------------------------------


def table(records: Records) -> str:
    """Return the Markdown page."""
    lines = [
        "# Quality on real data",
        "",
        "Made by `python benchmarks/quality.py`; every line's full record is in `quality.jsonl`.",
        *rows_table("quality", ROWS, records, describe),
        "",
        *pictures(records),
        "",
    ]
    if records:
        lines += [measured(records), ""]
    return "\n".join(lines)


def describe(row: Row, value: Values) -> str:
    """Return a row's result in words."""
    if row.score == "images":
        return (
            f"FID {value['fid']:.2f}, precision {value['precision']:.2f}, recall "
            f"{value['recall']:.2f}, classes {100 * value['smallest_class']:.1f} … "
            f"{100 * value['largest_class']:.1f}%, clear {100 * value['sure_of_class']:.0f}%"
        )
    if row.score == "text":
        error = value["standard_error"]
        return f"**{value['nll_per_token']:.3f}** ± {error:.3f} nats a character"
    if row.score == "importance":
        return f"**{value['nll']:.2f}** ± {value['standard_error']:.2f} nats, IWAE(500)"
    return f"**{value['bits_per_dim']:.3f}** bits/dim, exact"


def pictures(records: Records) -> Iterable[str]:
    """Return Markdown of the picture grids, a textbook's beside ours."""
    for row in ROWS:
        if row.name not in records or row.score == "text" or row.textbook:
            continue
        plain = f"{row.name}-plain"
        if plain in records:
            yield f"\n{row.what}: ours left, the textbook loop right; the first {SHOWN} in order.\n"
            yield f"![ours](quality-{row.name}.png) ![textbook](quality-{plain}.png)"
        else:
            yield f"\n{row.what}; the first {SHOWN}, in order.\n"
            yield f"![samples](quality-{row.name}.png)"
    for row in ROWS:
        if row.name in records and row.score == "text":
            yield f"\n{row.what}: [a sample](quality-{row.name}.txt)."


BENCH = Bench(stem="quality", rows=ROWS, run=run_row, describe=describe, table=table)

if __name__ == "__main__":
    raise SystemExit(command(BENCH, __doc__ or ""))
