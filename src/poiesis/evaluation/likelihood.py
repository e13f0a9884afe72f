"""Likelihood of held-out data: nats and bits per dimension, for text bits per character."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from poiesis import processes
from poiesis.data.dataset import DataSet, TextSplit
from poiesis.data.loader import Loader
from poiesis.evaluation.passport import Number, Passport
from poiesis.metrics import Estimate, mean_estimate
from poiesis.models.capabilities import LogProb
from poiesis.rng import Noise
from poiesis.sampling.counting import counting
from poiesis.spec import Spec

__all__ = ["evaluate_likelihood"]


def evaluate_likelihood(
    model: Any,
    view: Spec,
    data: DataSet,
    *,
    split: str,
    rows: int = 1000,
    samples: int | None = None,
    batch_size: int = 50,
    seed: int = 0,
) -> list[Number]:
    """Return the likelihood numbers of a model with `log_prob` on a split of a data set.

    For data that are not a text: nats per sample and bits per dimension (of a density, relative to
    the units of the model's view). For a text: nats per token, perplexity and bits per character,
    over windows of the model's context. rows: at most so many samples or windows, spread evenly.
    samples: the importance samples or bound terms of the model; None is its own default. The kind
    (exact, bound or estimate) is part of the passport, so a bound is never ranked with a value.
    """
    loader = Loader(data.splits[split], data.spec, view, batch_size=batch_size, device=model.device)
    options = {} if samples is None else {"samples": samples}
    is_text = isinstance(data.splits[split], TextSplit)
    own: dict[int, tuple[LogProb, list[int], int]] = {}
    for number, (x, condition, _) in enumerate(loader.in_order(rows)):
        if number % processes.size() != processes.rank():
            continue
        with torch.no_grad():
            noise = Noise(seed + number, range(len(x)), device=model.device)
            known = model.condition_on(x, condition, noise)
            with counting() as count:
                found = model.log_prob(x, known, seed=seed + number, **options)
        error = None if found.error is None else found.error.cpu()
        lengths = [len(data.codec.decode(row[1:].cpu())) for row in x] if is_text else []
        found = dataclasses.replace(found, nats=found.nats.cpu(), error=error)
        own[number] = found, lengths, count.rows
    everyone = {number: done for part in processes.of_all(own) for number, done in part.items()}
    in_order = (everyone[number] for number in sorted(everyone))
    batches, counts, asked = zip(*in_order, strict=True)
    found = batches[0]  # a loader has at least one row
    nats = -torch.cat([batch.nats.double() for batch in batches])
    characters = [count for some in counts for count in some]
    settings: dict[str, Any] = {
        "kind": found.kind,
        "measure": found.measure,
        "dims": found.dims,
        "detail": found.detail,
        "samples": samples,
    }
    if found.error is not None:
        # Noise of the estimate itself: independent between samples, so it averages out.
        settings["has_estimation_noise"] = True
    passport = Passport(
        data=data.name,
        variant=data.variant,
        split=split,
        n_real=len(nats),
        n_generated=0,
        seed=seed,
        settings=settings,
    )

    def number_of(name: str, estimate: Estimate, unit: str) -> Number:
        number = Number.of(name, estimate, passport, higher_is_better=False, unit=unit)
        return dataclasses.replace(number, evaluations=sum(asked) / len(nats) or None)

    if not is_text:
        bits = nats / (found.dims * math.log(2))
        return [
            number_of("nll", mean_estimate(nats), f"nats, {found.kind}"),
            number_of("bits_per_dim", mean_estimate(bits), f"bits, {found.kind}"),
        ]
    per_token = nats / found.dims
    perplexity = math.exp(per_token.mean())
    return [
        number_of("nll_per_token", mean_estimate(per_token), f"nats, {found.kind}"),
        number_of(
            "perplexity",
            Estimate(value=perplexity, parts=((perplexity * per_token).numpy(),), low=1),
            found.kind,
        ),
        number_of("bits_per_char", _ratio(nats / math.log(2), characters), f"bits, {found.kind}"),
    ]


def _ratio(values: Tensor, weights: Iterable[int]) -> Estimate:
    """Return sum(values) / sum(weights), with contributions to first order."""
    w = torch.tensor(list(weights), dtype=torch.float64)
    value = float(values.sum() / w.sum())
    return Estimate(value=value, parts=(((values - value * w) / w.mean()).numpy(),))
