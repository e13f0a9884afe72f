"""What is trained and scored by quality.py: the rows of its table, their budgets and gates."""

from __future__ import annotations

from collections.abc import Callable

from budget import Row, Values, all_of, within

__all__ = ["ROWS"]


def better_than(other: str) -> Callable[[Values, dict[str, Values]], bool | None]:
    """Return a gate: lower FID than another row."""

    def reached(own: Values, others: dict[str, Values]) -> bool | None:
        return own["fid"] < others[other]["fid"] if other in others else None

    return reached


CLASSES = within("smallest_class", low=0.04)
FAITHFUL = all_of(within("precision", low=0.6), within("recall", low=0.6), CLASSES)
ROWS = [
    Row(
        name="vae",
        what="VAE, MNIST binarised once",
        model="vae",
        data="mnist",
        options={"binarize": "once"},
        minutes=6,
        score="importance",
        gate="≤ 91 nats",
        reached=within("nll", high=91),
    ),
    Row(
        name="nanogpt",
        what="transformer, nanoGPT's recipe, 2,000 steps",
        model="transformer",
        preset="nanogpt",
        data="tinyshakespeare",
        steps=2000,
        score="text",
        gate="1.88 … 1.91 nats",
        reached=within("nll_per_token", 1.88, 1.91),
    ),
    Row(
        name="modern",
        what="transformer, modern recipe, as large and as many tokens",
        model="transformer",
        preset="modern",
        data="tinyshakespeare",
        steps=2000,
        score="text",
        gate="≤ 1.62 nats",
        reached=within("nll_per_token", high=1.62),
    ),
    Row(
        name="text-6min",
        what="transformer, 6 minutes",
        model="transformer",
        data="tinyshakespeare",
        minutes=6,
        score="text",
        gate="≤ 1.51 nats",
        reached=within("nll_per_token", high=1.51),
    ),
    Row(
        name="text-25min",
        what="transformer, 25 minutes",
        model="transformer",
        preset="long",
        data="tinyshakespeare",
        minutes=25,
        score="text",
        gate="≤ 1.46 nats",
        reached=within("nll_per_token", high=1.46),
    ),
    Row(
        name="mnist-ddpm-classes",
        what="DDPM, MNIST",
        model="ddpm",
        data="mnist",
        minutes=8,
        samples=2000,
        gate="precision, recall ≥ 0.6",
        reached=FAITHFUL,
    ),
    Row(
        # Without classes, as the textbook loop is: else it would be told to balance them.
        name="mnist-ddpm",
        what="DDPM, MNIST, without classes",
        model="ddpm",
        data="mnist",
        changes={"conditional": False},
        minutes=8,
        samples=2000,
        gate="precision, recall ≥ 0.6; no class < 4%; FID better than plain",
        reached=all_of(FAITHFUL, better_than("mnist-ddpm-plain")),
    ),
    Row(
        name="mnist-ddpm-plain",
        what="textbook DDPM, MNIST",
        model="plain ddpm",
        data="mnist",
        minutes=8,
        samples=2000,
    ),
    Row(
        name="mnist-dcgan",
        what="DCGAN, MNIST",
        model="dcgan",
        data="mnist",
        minutes=8,
        gate="no class < 4%; FID better than plain",
        reached=all_of(CLASSES, better_than("mnist-dcgan-plain")),
    ),
    Row(
        name="mnist-dcgan-plain",
        what="textbook DCGAN, MNIST",
        model="plain dcgan",
        data="mnist",
        minutes=8,
    ),
    Row(
        name="fashion-ddpm",
        what="DDPM, Fashion-MNIST, without classes",
        model="ddpm",
        data="fashion-mnist",
        changes={"conditional": False},
        minutes=8,
        samples=2000,
        gate="FID better than plain",
        reached=better_than("fashion-ddpm-plain"),
    ),
    Row(
        name="fashion-ddpm-plain",
        what="textbook DDPM, Fashion-MNIST",
        model="plain ddpm",
        data="fashion-mnist",
        minutes=8,
        samples=2000,
    ),
    Row(
        name="digits-pixels",
        what="pixel transformer, digits",
        model="transformer",
        data="digits",
        minutes=4,
        score="bits",
    ),
    Row(
        name="mnist14-pixels",
        what="pixel transformer, MNIST at 14 px",
        model="transformer",
        data="mnist",
        options={"resize": 14},
        minutes=8,
        score="bits",
    ),
]
