"""Train a model on captions for minutes, let it draw held-out ones and read the pictures.

python benchmarks/text_to_image.py              the row, if it is not finished yet, then the table
python benchmarks/text_to_image.py --pace 20s   steps that fit the minutes, for --steps-from

The set is `shapes`: coloured shapes, drawn from a seed. No caption of its test part has only what
training showed: each has a shape whose colour and kind were never seen together, or two colours
that were never seen in one picture. For 500 of them a picture is drawn, and a checker that reads
colours, kinds, sizes and places from the pixels (`poiesis.metrics.shapes`) says whether all of the
caption is there and nothing else. Held to the test part's own pictures it agrees with the share
that stands beside.

The budgets: see benchmarks/budget.py.
"""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from budget import (
    Bench,
    Records,
    Row,
    Values,
    command,
    measured,
    record,
    rows_table,
    say,
    train,
    within,
)
from poiesis.data.sources.shapes import UNSEEN_SHAPES
from poiesis.evaluation.images import draw_reference
from poiesis.metrics.shapes import caption_agreement
from poiesis.models.trained import load
from poiesis.spec import Captions

GUIDANCE = 3.0
TILES, COLUMNS, FACTOR = 40, 8, 3
"""Pictures shown, in a row, and how many times they are enlarged."""

ROWS = [
    Row(
        name="shapes",
        what="flow matching, shapes by caption",
        model="flow-matching",
        data="shapes",
        minutes=15,
        score="captions",
        samples=500,
        gate="held-out captions agree ≥ 80%",
        reached=within("agreement", low=0.8),
    ),
]


# -- one row ------------------------------------------------------------------------------------


def run_row(row: Row, out: Path, folder: Path, scale: float, steps: int | None) -> dict[str, Any]:
    """Train and score one row; write its picture; return its record."""
    began = time.monotonic()
    path, done, seconds = train(row, folder, scale, steps)
    say(f"{row.name}: {done} steps in {seconds:.0f} s; scoring")
    trained = load(path)
    data = trained.open_data()
    captions, test = data.condition, data.splits["test"]
    assert isinstance(captions, Captions)
    real, tokens = test.fetch(draw_reference(torch.arange(len(test)), row.samples, row.seed))
    texts = [captions.text(each) for each in tokens.tolist()]
    start = time.monotonic()
    values: Values = {"real_agreement": caption_agreement(real, texts).value}
    for name, guidance in (("plain_agreement", 1.0), ("agreement", GUIDANCE)):
        options = trained.options(guidance=guidance)
        pictures = trained.sample_native(
            row.samples, seed=row.seed, condition=tokens, options=options
        )
        found = caption_agreement(pictures, texts)
        values[name] = found.value
        if name == "agreement":
            values["low"], values["high"] = found.interval()
            right = torch.from_numpy(found.parts[0])
            unseen = torch.tensor([any(map(text.__contains__, UNSEEN_SHAPES)) for text in texts])
            values["unseen_shapes"] = float(right[unseen].mean())
            values["unseen_pairs"] = float(right[~unseen].mean())
            shown = [trained.codec.decode(picture) for picture in pictures[:TILES]]
            sheet(shown, texts, right.bool().tolist()).save(
                out / f"text-to-image-{row.name}.png", optimize=True
            )
    return record(
        row,
        values,
        scale=scale,
        steps=done,
        given=steps is not None,
        seconds=seconds,
        score_seconds=round(time.monotonic() - start, 1),
        all_seconds=round(time.monotonic() - began, 1),
        config=trained.config["model"],
        parameters=sum(p.numel() for p in trained.model.parameters()),
    )


def sheet(pictures: list[Image.Image], texts: list[str], right: list[bool]) -> Image.Image:
    """Return pictures with their captions below, red where the checker does not agree."""
    side = FACTOR * pictures[0].width
    width, height = side + 12, side + 44
    grid = Image.new("RGB", (COLUMNS * width, -(-len(pictures) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(grid)
    for place, picture in enumerate(pictures):
        x, y = place % COLUMNS * width + 6, place // COLUMNS * height + 4
        grid.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        lines = textwrap.fill(texts[place], 19)
        colour = "black" if right[place] else "#d00000"
        draw.multiline_text((x, y + side + 2), lines, fill=colour, font_size=9, spacing=1)
    return grid


# -- the table ----------------------------------------------------------------------------------


def describe(row: Row, value: Values) -> str:
    """Return a row's result in words."""
    return (
        f"**{value['agreement']:.1%}** [{value['low']:.1%}, {value['high']:.1%}] at guidance "
        f"{GUIDANCE:g}, {value['plain_agreement']:.1%} without; unseen shapes "
        f"{value['unseen_shapes']:.1%}, colours unseen together {value['unseen_pairs']:.1%}; "
        f"real pictures {value['real_agreement']:.1%}"
    )


def table(records: Records) -> str:
    """Return the Markdown page."""
    lines = [
        "# Text to image",
        "",
        "Made by `python benchmarks/text_to_image.py`, whose head says what the numbers are; the",
        "full record is in `text-to-image.jsonl`. [ ] is the 95% interval over captions.",
        *rows_table("text-to-image", ROWS, records, describe),
    ]
    for row in ROWS:
        if row.name in records:
            lines += [
                "",
                f"{row.what}: the first {TILES} pictures, in order; red is where the checker does",
                "not agree.",
                "",
                f"![{row.name}](text-to-image-{row.name}.png)",
            ]
    if records:
        lines += ["", measured(records)]
    return "\n".join([*lines, ""])


BENCH = Bench(stem="text-to-image", rows=ROWS, run=run_row, describe=describe, table=table)

if __name__ == "__main__":
    raise SystemExit(command(BENCH, __doc__ or ""))
