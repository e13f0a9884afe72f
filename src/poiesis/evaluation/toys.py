"""Toys: generated rows against the true modes or curves, which are known."""

from __future__ import annotations

import math

from torch import Tensor

from poiesis.data.codecs import VectorCodec
from poiesis.data.dataset import DataSet
from poiesis.data.toys import Toy
from poiesis.evaluation.passport import Number, Passport
from poiesis.metrics import mean_estimate
from poiesis.metrics.modes import WITHIN, count_modes, curve_distances, within_round

__all__ = ["evaluate_toy"]


def evaluate_toy(
    generated: Tensor, codec: VectorCodec, toy: Toy, data: DataSet, *, seed: int = 0
) -> list[Number]:
    """Return what native rows (n, 2) make of a toy's modes or curves, in the toy's own units.

    Of modes: how many are covered, the share of high-quality rows, the divergence of the rows'
    modes from all alike. Of curves: that share, and the mean distance. What true rows would score
    is in the passport, as `true`.
    """
    x = codec.decode(generated)

    def passport(**settings: int | float | str) -> Passport:
        return Passport(
            data=data.name,
            variant=data.variant,
            split="",
            n_real=0,
            n_generated=len(x),
            seed=seed,
            settings={"what": toy.summary, **settings},
        )

    if toy.modes is None:
        distances = curve_distances(x, toy.shapes)
        good = mean_estimate((distances <= WITHIN * toy.sigma).double(), low=0, high=1)
        near = passport(within=WITHIN, true=round(within_round(dims=1), 4))
        # Off the curve a true row is half-normal; the mean of such is sigma sqrt(2 / pi).
        far = passport(true=round(toy.sigma * math.sqrt(2 / math.pi), 4))
        distance = mean_estimate(distances, low=0)
        return [
            Number.of("high_quality", good, near, higher_is_better=True),
            Number.of("curve_distance", distance, far, higher_is_better=False),
        ]
    found = count_modes(x, toy.modes, toy.sigma)
    modes = len(toy.modes)
    near = passport(within=WITHIN, true=round(within_round(), 4))
    return [
        Number(
            name="modes_covered",
            value=float(found.covered),
            higher_is_better=True,
            unit=f"of {modes}",
            passport=passport(within=WITHIN, true=modes),
        ),
        Number.of("high_quality", found.high_quality, near, higher_is_better=True),
        # Of n true rows it is on average (modes - 1) / 2n, as 2n KL is then chi-squared.
        Number.of(
            "mode_kl",
            found.kl,
            passport(true=round((modes - 1) / (2 * len(x)), 5)),
            higher_is_better=False,
            unit="nats",
        ),
    ]
