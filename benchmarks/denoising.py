"""Remove Gaussian noise of σ = 0.5 from Fashion-MNIST: an autoencoder next to classical filters.

python benchmarks/denoising.py               train for 4 minutes, clean, compare: page, JSON lines
python benchmarks/denoising.py --pace 10s    steps that fit the minutes, for --steps-from

Images are in [0, 1] and σ is in these units. The denoising autoencoder cleans the test images by
`poiesis.denoise`, which spoils them first: the noisy picture is a picture, so its values are
clipped to [0, 1] and rounded to 256 levels. The filters get the same draw of noise, once as that
picture and once neither clipped nor rounded, which is what they were made for and knows more; they
are told σ. What else they can be told is set on 200 images of the validation part, for the best
mean PSNR there. PSNR is the mean over images of what was cleaned, clipped and rounded.

Every filter sees one image alone, but for the last: the best linear filter, with mean and
covariance of the training images. BM3D is left out: its packages allow no commercial use.

The budgets: see benchmarks/budget.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import wiener
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

import poiesis
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
    sheet,
    train,
)
from poiesis.metrics.fidelity import psnr, ssim
from poiesis.models.trained import load
from poiesis.rng import Noise

SIGMA = 0.5
TUNED_ON = 200
GAIN = 3.0
"""dB above non-local means, to reach."""
COLUMNS = 12

Images = np.ndarray
"""(n, h, w), black is 0 and white 1."""
Filter = Callable[[Images, dict[str, Any]], Images]
"""Takes noisy images, and what it is told."""
KINDS = {"picture": "the noisy picture", "raw": "neither clipped nor rounded"}
LINEAR = "linear, of the training images"


def each(clean: Callable[..., Images]) -> Filter:
    """Return a filter that works image by image."""
    return lambda images, told: np.stack([clean(image, **told) for image in images])


FILTERS: dict[str, tuple[Filter, dict[str, tuple[Any, ...]]]] = {
    "non-local means": (
        each(lambda image, **told: denoise_nl_means(image, **told, fast_mode=True)),
        {
            "patch_size": (5, 7, 9),
            "patch_distance": (5, 9),
            "h": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
            "sigma": (0.0, 0.3, SIGMA),
        },
    ),
    "total variation": (
        each(denoise_tv_chambolle),
        {"weight": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)},
    ),
    "Wiener, local": (
        each(wiener),
        {"mysize": (3, 5, 7, 9), "noise": (SIGMA**2,)},
    ),
}


def linear(train: Images) -> Callable[[Images], Images]:
    """Return the linear filter of the least squared error for images like these (n, h, w)."""
    rows = train.reshape(len(train), -1).astype(np.float64)
    mean, covariance = rows.mean(0), np.cov(rows.T)
    noise = SIGMA**2 * np.eye(len(covariance))
    gain = np.linalg.solve(covariance + noise, covariance)
    return lambda y: (mean + (y.reshape(len(y), -1) - mean) @ gain).reshape(y.shape)


def levels(images: Images) -> torch.Tensor:
    """Return pictures, uint8 (n, 1, h, w)."""
    return torch.from_numpy((images * 255).round().clip(0, 255).astype(np.uint8))[:, None]


def plain(x: torch.Tensor) -> Images:
    """Return native rows (n, 1, h, w) as images."""
    return x[:, 0].double().div(255).numpy()


def noisy(x: torch.Tensor, seed: int) -> dict[str, Images]:
    """Return native rows with noise, of both kinds; the draw is that of `poiesis.denoise`."""
    eps = Noise(seed, range(len(x))).randn(*x.shape[1:])[:, 0].double().numpy()
    raw = plain(x) + SIGMA * eps
    return {"picture": plain(levels(raw)), "raw": raw}


def tune(filter_: Filter, choices: dict[str, tuple[Any, ...]], y: Images, x: torch.Tensor) -> Any:
    """Return what to tell a filter: the best of all combinations on noisy images y of x."""

    def quality(told: dict[str, Any]) -> float:
        return psnr(levels(filter_(y, told)), x).value

    every = itertools.product(*choices.values())
    return max((dict(zip(choices, values, strict=True)) for values in every), key=quality)


def run_row(row: Row, out: Path, folder: Path, scale: float, steps: int | None) -> dict[str, Any]:
    """Train, clean the test images with all, write the picture; return the record."""
    path, done, seconds = train(row, folder, scale, steps)
    say(f"{done} steps in {seconds:.0f} s; cleaning")
    began = time.monotonic()
    found = poiesis.denoise(path, add="gaussian", level=SIGMA, seed=row.seed)
    ours_seconds = time.monotonic() - began
    x = torch.as_tensor(found.clean)
    y = noisy(x, row.seed)
    # The same draw, or nothing here is a comparison.
    assert int((levels(y["picture"]).int() - torch.as_tensor(found.noisy).int()).abs().max()) <= 1
    splits = load(path).open_data().splits
    held, _ = splits["validation"].fetch(torch.arange(TUNED_ON))
    held_y = noisy(held, row.seed + 1)
    values = dict(found.numbers)
    told: dict[str, Any] = {}
    shown = {
        "clean": x,
        "noisy": torch.as_tensor(found.noisy),
        "ours": torch.as_tensor(found.cleaned),
    }
    spent: dict[str, float] = {"ours": ours_seconds}
    for name, (clean, choices) in FILTERS.items():
        for kind in KINDS:
            best = told[f"{name}, {kind}"] = tune(clean, choices, held_y[kind], held)
            began = time.monotonic()
            shown[f"{name}, {kind}"] = levels(clean(y[kind], best))
            spent[f"{name}, {kind}"] = time.monotonic() - began
            say(f"{name}, {kind}: {best}")
    every, _ = splits["train"].fetch(torch.arange(len(splits["train"])))
    filter_ = linear(plain(every))
    shown[f"{LINEAR}, raw"] = levels(filter_(y["raw"]))
    for name, images in list(shown.items())[3:]:
        values[f"psnr {name}"] = psnr(images, x).value
        values[f"ssim {name}"] = ssim(images, x).value
    values["best"] = max(values[f"psnr {name}"] for name in told)
    rows = [name for name in shown if not name.endswith(", picture")]
    places = torch.linspace(0, len(x) - 1, COLUMNS).long()
    codec = load(path).codec
    pictures = [codec.decode(image) for name in rows for image in shown[name][places]]
    sheet(pictures, COLUMNS).save(out / "denoising.png", optimize=True)
    return record(
        row,
        values,
        scale=scale,
        steps=done,
        given=steps is not None,
        seconds=seconds,
        told=told,
        shown=rows,
        images=len(x),
        clean_seconds={name: round(value, 1) for name, value in spent.items()},
    )


def means(value: Values) -> float:
    """Return the PSNR of non-local means, of whichever kind of noise suits them better."""
    return max(value[f"psnr non-local means, {kind}"] for kind in KINDS)


def describe(row: Row, value: Values) -> str:
    """Return the result in words."""
    return (
        f"**{value['psnr']:.2f}** dB: {value['psnr'] - means(value):+.2f} to non-local means, "
        f"{value['psnr'] - value['best']:+.2f} to the best filter of single images"
    )


def table(records: Records) -> str:
    """Return the Markdown page."""
    lines = [
        f"# Denoising: Gaussian noise of σ = {SIGMA} on images in [0, 1]",
        "",
        "Made by `python benchmarks/denoising.py`, whose head says what is compared and how; the",
        "full record is in `denoising.jsonl`.",
        *rows_table("denoising", ROWS, records, describe),
    ]
    found = records.get(ROWS[0].name)
    if found is None:
        return "\n".join([*lines, ""])
    value, told = found["value"], found["told"]
    lines += [
        "",
        f"All {found['images']:,} test images; mean PSNR in dB and SSIM:",
        "",
        "| what | sees | is told | PSNR | SSIM |",
        "|---|---|---|---|---|",
        f"| nothing done | – | – | {value['psnr_before']:.2f} | {value['ssim_before']:.3f} |",
        f"| denoising autoencoder | {KINDS['picture']} | – | **{value['psnr']:.2f}** "
        f"| {value['ssim']:.3f} |",
    ]
    for key in [*told, f"{LINEAR}, raw"]:
        name, _, kind = key.rpartition(", ")
        words = ", ".join(f"{k} {v}" for k, v in told.get(key, {"σ": SIGMA}).items())
        numbers = f"{value[f'psnr {key}']:.2f} | {value[f'ssim {key}']:.3f}"
        lines.append(f"| {name} | {KINDS[kind]} | {words} | {numbers} |")
    lines += [
        "",
        f"From top to bottom: {'; '.join(found['shown'])}; {COLUMNS} test images in even steps.",
        "",
        "![before and after](denoising.png)",
        "",
        measured(records),
        "",
    ]
    return "\n".join(lines)


ROWS = [
    Row(
        name="fashion",
        what="denoising autoencoder, Fashion-MNIST",
        model="denoising-autoencoder",
        data="fashion-mnist",
        changes={"noise": "gaussian", "level": SIGMA},
        minutes=4,
        gate=f"≥ {GAIN:g} dB above non-local means",
        reached=lambda own, others: own["psnr"] >= means(own) + GAIN,
    )
]
BENCH = Bench(stem="denoising", rows=ROWS, run=run_row, describe=describe, table=table)

if __name__ == "__main__":
    raise SystemExit(command(BENCH, __doc__ or ""))
