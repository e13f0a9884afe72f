"""Compress the MNIST test set with a VAE trained for some minutes, next to PNG, WebP, zlib, lzma.

python benchmarks/compression.py                     train, compress, decompress, verify, table
python benchmarks/compression.py --minutes 2         the same after two minutes of training
python benchmarks/compression.py --pace 10s          steps that fit the minutes, for --steps
python benchmarks/compression.py --steps 16000       on a busy machine: so many steps
python benchmarks/compression.py --table             only write the page anew from the JSON lines

Everything is counted: header, names, tables, the bits that bits-back coding begins with. A run
that is there already is not trained again; one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import bz2
import io
import json
import lzma
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import poiesis
from budget import RESULTS, pace
from budget import Row as Budgeted
from poiesis.config import parse_duration
from poiesis.data import open_data
from poiesis.errors import ConfigError, PoiesisError
from poiesis.models.trained import load
from poiesis.runs import Run, environment, write_atomic

Row = dict[str, Any]

GATE_BITS, GATE_DECODE = 1.45, 200
"""Bits per dimension and images a second to reach."""


def train(folder: Path, data: str, minutes: float, steps: int | None, seed: int) -> float:
    """Train the VAE, or go on with it, or find it finished; return its seconds of training."""
    how: dict[str, Any] = {"grids": 0, "validations": 10, "quiet": True}
    how |= {"threads": torch.get_num_threads()}
    if (folder / "schedule.json").exists() and Run.open(folder).has_checkpoint():
        run = poiesis.train(resume=folder, **how)  # a finished run ends at once
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
        length = {"budget": f"{60 * minutes:.0f}s"} if steps is None else {"steps": steps}
        run = poiesis.train("vae", data, preset="compress", seed=seed, out=folder, **length, **how)
    done, wanted = run.checkpoint().step, sum(run.read_json("schedule.json")["stage_steps"])
    if done < wanted:
        raise KeyboardInterrupt(f"stopped after step {done} of {wanted}")
    return [line["train/seconds"] for line in run.metrics() if "train/seconds" in line][-1]


def ours(run: Path, x: torch.Tensor, folder: Path) -> Row:
    """Compress the test set by the verbs, decompress, compare every pixel."""
    packed = folder / "test.psis"
    began = time.perf_counter()
    found = poiesis.compress(run, out=packed)
    seconds = time.perf_counter() - began
    back = poiesis.decompress(packed)
    if not torch.equal(back.rows, x):
        raise SystemExit("the test set did not come back as it was")
    trained = load(run, device="cpu")
    model: Any = trained.model
    parts = [model.log_prob(trained.view.apply(rows)).bits_per_dim for rows in x.split(500)]
    return {
        "what": "poiesis vae --preset compress",
        "bytes": packed.stat().st_size,
        "bound_bits_per_dim": float(torch.cat(parts).mean()),
        "encode_per_second": found.numbers["encode_per_second"],
        "encode_and_verify_per_second": len(x) / seconds,
        "decode_per_second": back.numbers["decode_per_second"],
        "step": trained.step,
    }


def quality(run: Path, folder: Path, value: float) -> Row:
    """Compress with loss."""
    numbers = poiesis.compress(run, out=folder / "lossy.psis", quality=value).numbers
    names = ("bytes", "psnr", "encode_per_second", "decode_per_second")
    return {"what": f"poiesis, --quality {value:g}", **{name: numbers[name] for name in names}}


def picture(pixels: np.ndarray, kind: str) -> bytes:
    """Return the bytes of one picture (h, w), packed as tightly as Pillow can."""
    file = io.BytesIO()
    how = {"PNG": {"optimize": True}, "WEBP": {"lossless": True, "quality": 100, "method": 6}}
    Image.fromarray(pixels).save(file, kind, **how[kind])
    return file.getvalue()


def baselines(x: np.ndarray) -> list[Row]:
    """Return what general formats make of images (n, h, w)."""
    n, h, w = x.shape
    side = int(n**0.5)
    strip = x.reshape(n * h, w)
    sheet = x[: side * side].reshape(side, side, h, w).transpose(0, 2, 1, 3)
    sheet = sheet.reshape(side * h, side * w)
    raw = x.tobytes()

    def singles(kind: str) -> Callable[[], int]:
        return lambda: sum(len(picture(image, kind)) for image in x)

    rows: dict[str, Callable[[], int]] = {
        "PNG, single files": singles("PNG"),
        "PNG, one strip": lambda: len(picture(strip, "PNG")),
        "WebP lossless, single files": singles("WEBP"),
        "zlib of the levels": lambda: len(zlib.compress(raw, 9)),
        "bzip2 of the levels": lambda: len(bz2.compress(raw, 9)),
        "lzma of the levels": lambda: len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
    }
    if side * side == n and side * max(h, w) < 16384:  # the largest WebP
        rows["WebP lossless, one sheet"] = lambda: len(picture(sheet, "WEBP"))
    found = []
    for what, size in rows.items():
        began = time.perf_counter()
        count = size()
        speed = n / (time.perf_counter() - began)
        found.append({"what": what, "bytes": count, "encode_per_second": speed})
    return found


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table, smallest first within what loses nothing."""
    lines = ["| what | bits/dim | bytes | in, images/s | out, images/s | PSNR |"]
    lines.append("|---|---|---|---|---|---|")

    def cell(row: Row, name: str, form: str) -> str:
        return format(row[name], form) if name in row else ""

    for row in rows:
        cells = (
            row["what"],
            cell(row, "bits_per_dim", ".4f"),
            cell(row, "bytes", ",d"),
            cell(row, "encode_per_second", ",.0f"),
            cell(row, "decode_per_second", ",.0f"),
            cell(row, "psnr", ".2f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    """Return the Markdown page of one run's rows."""
    own = next(row for row in rows if "training_seconds" in row)
    here = own["environment"]
    reached = own["bits_per_dim"] <= GATE_BITS and own["decode_per_second"] >= GATE_DECODE
    length = f"{own.get('minutes', 20):g} minutes"
    if own.get("steps_given") is not None:
        length = f"{own['step']:,} steps, as fit into {length} of two quiet cores,"
    spent = f"{own['training_seconds'] / 60:.1f} min"
    return "\n".join(
        [
            f"# Lossless compression: {own['images']:,} images of {own['data']}",
            "",
            "Made by `python benchmarks/compression.py`; the full records are in",
            "`compression.jsonl`. Everything is counted: header, names, tables, the bits that",
            "bits-back coding begins with. What was packed was unpacked and compared, every pixel.",
            "The lines with a quality lose detail, all others nothing.",
            "",
            table(rows),
            "",
            f"The VAE after {length} of training ({spent}, step {own['step']:,}): "
            f"{own['bits_per_dim']:.4f} bits/dim, by its own bound "
            f"{own['bound_bits_per_dim']:.4f}; to reach ≤ {GATE_BITS} at ≥ {GATE_DECODE} images/s "
            f"out. Reached: {'yes' if reached else '**no**'}.",
            "",
            f"Measured {here['date'][:10]} with {here['threads']} threads of {here['processor']}, "
            f"torch {here['versions']['torch']}; seed {own['seed']}.",
            "",
        ]
    )


def read(file: Path, data: str) -> list[Row]:
    """Return the rows of the newest run on a data set."""
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in lines if row["data"] == f"{data}, test"]
    return [row for row in rows if row["environment"] == rows[-1]["environment"]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="of training")
    parser.add_argument("--steps", type=int, help="so many steps, as many as fit the minutes")
    parser.add_argument("--pace", metavar="TIME", help="only time steps for so long, e.g. 10s")
    parser.add_argument("--table", action="store_true", help="only write the page anew")
    parser.add_argument("--data", default="mnist", help="a data set of gray images")
    parser.add_argument("--run", type=Path, help="run folder (default: in runs/compression)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        work(args)
    except PoiesisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{stop}; the same command goes on from here".removeprefix("; "), file=sys.stderr)
        return 130
    return 0


def work(args: argparse.Namespace) -> None:
    if args.pace:
        row = Budgeted(
            name="", what="", model="vae", preset="compress", data=args.data, minutes=args.minutes
        )
        print(json.dumps(pace(row, parse_duration(args.pace))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "compression.jsonl"
    if not args.table:
        rows = measure(args)
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    rows = read(file, args.data)
    if not rows:
        raise ConfigError(f"{file} has no run on {args.data} to make a page of")
    name = "compression" if args.data == "mnist" else f"compression-{args.data}"
    write_atomic(args.out / f"{name}.md", page(rows))
    print(page(rows))


def measure(args: argparse.Namespace) -> list[Row]:
    """Train, compress, decompress, verify; return the rows, smallest first, then the lossy ones."""
    length = f"{args.minutes:g}min" if args.steps is None else f"{args.steps}steps"
    run = args.run or Path("runs/compression") / f"{args.data}-{length}"
    seconds = train(run, args.data, args.minutes, args.steps, args.seed)
    x = open_data(args.data).splits["test"].x
    with tempfile.TemporaryDirectory() as folder:
        rows = [ours(run, x, Path(folder))]
        rows[0] |= {"training_seconds": seconds, "minutes": args.minutes, "steps_given": args.steps}
        lossy = [quality(run, Path(folder), value) for value in (30, 60)]
    rows = sorted(rows + baselines(x[:, 0].numpy()), key=lambda row: row["bytes"]) + lossy
    here = environment()
    for row in rows:
        row["bits_per_dim"] = 8 * row["bytes"] / x.numel()
        row |= {"data": f"{args.data}, test", "images": len(x), "seed": args.seed}
        row["environment"] = here
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
