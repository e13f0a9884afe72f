"""Pictures of samples: what the codec draws, for two features with what the model sees.

Used for the grids of training, of `sample` and of reports, so that all of them look alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.data.codecs import VectorCodec
from poiesis.data.codecs.plane import Field
from poiesis.data.dataset import Split
from poiesis.data.views import View
from poiesis.models.base import GenerativeModel
from poiesis.models.capabilities import of
from poiesis.spec import Attributes, Picture

__all__ = ["plane_fields", "show"]

_COLUMNS = 8
"""Samples in a row where each has its picture above and the real image below."""
_BEHIND = 2048
_ROWS = 4096
_TERMS = 16
"""Importance samples of a bound: one draws a VAE's density far too thin off its means."""
_DEPTH = 12.0
"""Nats below the highest density that a map shows: e^-12 of it is nothing to see."""


def show(
    model: GenerativeModel, codec: Any, raws: Sequence[Any], data: Split | None = None
) -> Image.Image:
    """Return a picture of raw samples; of vectors over rows of `data`, where they are given.

    Of vectors of two features with a map of what the model can say of each place: how real it
    looks to a discriminator, how likely it is. Images made from pictures stand between these and
    the real images.
    """
    if isinstance(getattr(model, "condition", None), Picture):
        return _beside(model, codec, raws)
    if not isinstance(codec, VectorCodec):
        return codec.preview(raws)
    behind = None
    if data is not None:
        rows = torch.linspace(0, len(data) - 1, min(len(data), _BEHIND)).round().long()
        behind = list(codec.decode(data.fetch(rows)[0]))
    fields = plane_fields(model, codec) if len(codec.columns) == 2 else []
    return codec.preview(raws, behind=behind, fields=fields)


def _beside(model: Any, codec: Any, raws: Sequence[Image.Image]) -> Image.Image:
    """Return samples of the kept examples in turn: rows of pictures, samples, real images."""
    images, conditions = model.examples()
    view = View(codec.spec, model.spec)
    pictures, real = (
        [codec.decode(row) for row in view.invert(rows.cpu())]
        for rows in (model.task.picture(conditions), images)
    )
    tiles = []
    for start in range(0, len(raws), _COLUMNS):
        places = range(start, min(start + _COLUMNS, len(raws)))
        tiles += [pictures[place % len(pictures)] for place in places]
        tiles += [raws[place] for place in places]
        tiles += [real[place % len(real)] for place in places]
    return codec.preview(tiles, min(_COLUMNS, len(raws)))


def plane_fields(model: GenerativeModel, codec: VectorCodec) -> list[Field]:
    """Return the maps that a model of two features can draw, in the user's units."""
    able, found = of(model), []
    if "discriminate" in able:

        def realness(x: Tensor, condition: Tensor | None) -> Tensor:
            return model.discriminate(x, condition)  # type: ignore[operator]

        # A place is as real as it looks for the condition that it fits best.
        values = _over_conditions(model, codec, realness, lambda v: v.amax(0))
        found.append(Field(title="discriminator", unit="looks real", values=values))
    if "log_prob" in able:
        # One standardised unit is std of the user's.
        shift = sum(map(math.log, codec.std))

        def density(x: Tensor, condition: Tensor | None) -> Tensor:
            found = model.log_prob(x, condition, samples=_TERMS)  # type: ignore[operator]
            return found.nats - shift

        # All conditions are taken to be as likely.
        values = _over_conditions(
            model, codec, density, lambda v: v.logsumexp(0) - math.log(v.size(0))
        )
        found.append(Field(title="density", unit="log p, nats", values=values, depth=_DEPTH))
    return found


def _over_conditions(
    model: GenerativeModel,
    codec: VectorCodec,
    function: Callable[[Tensor, Tensor | None], Tensor],
    reduce: Callable[[Tensor], Tensor],
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of rows (n, 2) in the user's units: `function`, reduced over conditions."""

    conditions: list[Tensor | None] = [None]
    if model.condition is not None:
        # Each class; or none of the attributes, and each of them alone.
        kinds = model.condition.count + isinstance(model.condition, Attributes)
        drawn = model.default_condition(0, kinds)
        assert drawn is not None
        conditions = list(drawn.to(model.device).split(1))

    @torch.no_grad()
    def values(rows: np.ndarray) -> np.ndarray:
        training = model.training
        model.eval()
        out = []
        for x in codec.encode(rows).split(_ROWS):
            x = x.to(model.device)
            each = [
                function(x, row if row is None else row.expand(len(x), *row.shape[1:]))
                for row in conditions
            ]
            out.append(reduce(torch.stack([v.double() for v in each])).cpu())
        model.train(training)
        return torch.cat(out).numpy()

    return values
