"""Train autoencoders on real data under fixed budgets and score them: table, JSON lines, pictures.

python benchmarks/autoencoders.py               every row that is not finished yet, then the table
python benchmarks/autoencoders.py vae iwae      these rows only
python benchmarks/autoencoders.py --list        what the rows are, and which are finished
python benchmarks/autoencoders.py --pace 20s    steps that fit the minutes, for --steps-from

Likelihoods are -log p(x) of the test images of MNIST, binarised once with seed 0 and so the same
for all models, which learned from bits drawn anew from the gray levels of the training images. All
by one estimator, the bound of 5,000 importance samples (arXiv:1509.00519, eq. 8): the mean bound of
50 samples over all images, less what 5,000 samples gain on every 50th. That gain varies little, so
the error is about that of 5,000 samples for all images, in a thirtieth of the time.

Codes are those of all test images. Their perplexity is exp(entropy) of how often each is used; over
the number of codes it is 1 where all are used alike.

The budgets: see benchmarks/budget.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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
from poiesis.data.config import DataConfig
from poiesis.data.loader import Loader
from poiesis.metrics.fidelity import psnr
from poiesis.models.autoencoders.codebook import perplexity
from poiesis.models.trained import Trained, load

FEW, MANY, EVERY = 50, 5000, 50
"""Importance samples of all test images, and of every so manieth."""


def at_most(*others: str) -> Callable[[Values, dict[str, Values]], bool | None]:
    """Return a gate: as few nats as each of these rows, or fewer."""

    def reached(own: Values, rows: dict[str, Values]) -> bool | None:
        if any(name not in rows for name in others):
            return None
        return all(own["nll"] <= rows[name]["nll"] for name in others)

    return reached


ROWS = [
    Row(
        name="vae",
        what="VAE, MNIST binarised anew",
        model="vae",
        data="mnist",
        changes={"dynamic": True},
        minutes=12,
        score="nats",
    ),
    Row(
        name="iwae",
        what="IWAE, MNIST binarised anew",
        model="iwae",
        data="mnist",
        minutes=12,
        score="nats",
        gate="≤ 88.5 nats",
        reached=within("nll", high=88.5),
    ),
    Row(
        name="vdvae",
        what="very deep VAE, MNIST binarised anew",
        model="vdvae",
        data="mnist",
        minutes=12,
        score="nats",
        gate="≤ VAE, ≤ IWAE",
        reached=at_most("vae", "iwae"),
    ),
    Row(
        name="vq-vae-fashion",
        what="VQ-VAE, Fashion-MNIST",
        model="vq-vae",
        data="fashion-mnist",
        minutes=4,
        score="codes",
        gate="perplexity / codes ≥ 0.5",
        reached=within("use", low=0.5),
    ),
    Row(
        name="vq-vae-cifar10",
        what="VQ-VAE, CIFAR-10 (JPEG)",
        model="vq-vae",
        data="cifar10-jpeg",
        minutes=4,
        score="codes",
        gate="perplexity / codes ≥ 0.5",
        reached=within("use", low=0.5),
    ),
]


# -- one row ------------------------------------------------------------------------------------


def score_nats(trained: Trained, seed: int) -> Values:
    """Return -log p of MNIST's binarised test images in nats, and its standard error."""
    data = open_data("mnist", DataConfig(source="mnist", binarize="once"))
    model: Any = trained.model
    loader = Loader(data.splits["test"], data.spec, model.spec, batch_size=50)
    x = torch.cat([rows for rows, _, _ in loader.in_order()])
    few = _nats(model, x, FEW, seed)
    gain = few[::EVERY] - _nats(model, x[::EVERY], MANY, seed + 1)
    # Without their covariance, which makes it less: images of a small p gain more.
    error = few.var() / len(few) + gain.var() / len(gain)
    return {
        "nll": float(few.mean() - gain.mean()),
        "standard_error": float(error.sqrt()),
        "nll_few": float(few.mean()),
        "gain": float(gain.mean()),
        "gain_standard_error": float(gain.std() / len(gain) ** 0.5),
    }


def _nats(model: Any, x: Tensor, samples: int, seed: int) -> Tensor:
    """Return the bound of -log p of rows (n, c, h, w), float64 (n,)."""
    parts = [
        model.log_prob(rows, samples=samples, seed=seed + 2 * number).nats
        for number, rows in enumerate(x.split(50))
    ]
    return -torch.cat(parts).double()


def score_codes(trained: Trained) -> tuple[Values, list[Any]]:
    """Return how the test images use the codes and come back; pictures, with what came back."""
    model: Any = trained.model
    data = trained.open_data()
    test = data.splits["test"]
    loader = Loader(test, data.spec, model.spec, batch_size=200)
    used = torch.zeros(model.config.codes)
    nll, back = [], []
    with torch.no_grad():
        for x, _, _ in loader.in_order():
            latent = model.encode(x)
            codes = latent["codes"].flatten(1)
            used += torch.bincount(codes.flatten(), minlength=len(used))
            nll.append(model.prior.nll(codes, None))
            back.append(trained.view.invert(model.decode(latent)))
    pixels, found = test.fetch(torch.arange(len(test)))[0], torch.cat(back)
    value = float(perplexity(used))
    spread = torch.linspace(0, len(test) - 1, SHOWN // 2).long()  # a test set may go by class
    shown = [
        trained.codec.decode(rows[place])
        for line in spread.split(SHOWN // 10)
        for rows in (pixels, found)
        for place in line
    ]
    return {
        "perplexity": value,
        "use": value / len(used),
        "unused": float((used == 0).sum()),
        "psnr": psnr(found, pixels).value,
        "prior_nll": float(torch.cat(nll).mean()),
    }, shown


def run_row(row: Row, out: Path, folder: Path, scale: float, steps: int | None) -> dict[str, Any]:
    """Train and score one row; write its picture; return its record."""
    began = time.monotonic()
    path, done, seconds = train(row, folder, scale, steps)
    say(f"{row.name}: {done} steps in {seconds:.0f} s; scoring")
    trained = load(path)
    trained.model.eval()
    start = time.monotonic()
    if row.score == "nats":
        values = score_nats(trained, row.seed)
        shown = trained.sample(SHOWN, seed=row.seed)
    else:
        values, shown = score_codes(trained)
    sheet(shown).save(out / f"autoencoders-{row.name}.png", optimize=True)
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


# -- the table ----------------------------------------------------------------------------------


def describe(row: Row, value: Values) -> str:
    """Return a row's result in words."""
    if row.score == "nats":
        return f"**{value['nll']:.2f}** ± {value['standard_error']:.2f} nats, IWAE({MANY:,})"
    return (
        f"**{value['use']:.2f}**: perplexity {value['perplexity']:.0f}, {value['unused']:.0f} "
        f"codes unused; PSNR {value['psnr']:.2f} dB, prior {value['prior_nll']:.2f} nats a code"
    )


def table(records: Records) -> str:
    """Return the Markdown page."""
    lines = [
        "# Autoencoders on real data",
        "",
        "Made by `python benchmarks/autoencoders.py`, whose head says what the numbers are; every",
        "line's full record is in `autoencoders.jsonl`. ± is one standard error.",
        *rows_table("autoencoders", ROWS, records, describe),
    ]
    for row in ROWS:
        if row.name in records:
            shown = f"the first {SHOWN} samples, in order"
            if row.score == "codes":
                shown = f"{SHOWN // 2} test images in even steps, each row above what came back"
            lines += [
                "",
                f"{row.what}: {shown}.",
                "",
                f"![{row.name}](autoencoders-{row.name}.png)",
            ]
    if records:
        lines += ["", measured(records)]
    return "\n".join([*lines, ""])


BENCH = Bench(stem="autoencoders", rows=ROWS, run=run_row, describe=describe, table=table)

if __name__ == "__main__":
    raise SystemExit(command(BENCH, __doc__ or ""))
