"""Sample grids on the way: what the model draws, always from the same noise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poiesis.data.views import View
from poiesis.errors import PoiesisError
from poiesis.models.pictures import show
from poiesis.runs import write_atomic
from poiesis.spec import Picture
from poiesis.training import distribution

if TYPE_CHECKING:
    from poiesis.training.engine import Engine

__all__ = ["draw", "write"]

SAMPLES = 64
PICTURES = 16
"""Samples that are shown with the pictures they were made from."""


def draw(engine: Engine) -> list[Any]:
    """Return raw samples from an engine's averaged weights."""
    engine.settle()
    codec = engine.data.codec
    view = View(engine.data.spec, engine.model.spec)
    count = SAMPLES if codec.suffix == ".png" else codec.shown
    if isinstance(engine.model.condition, Picture):
        count = PICTURES
    with engine.average.applied(), distribution.whole_networks(engine.sharded):
        drawn = engine.model.sample(count, seed=engine.seed, precision=engine.config.precision)
    engine.model.train()
    return [codec.decode(row) for row in view.invert(drawn)]


def write(engine: Engine) -> Path | None:
    """Write the sample grid of an engine's step into its run; None where there is none."""
    assert engine.run is not None
    path = engine.run.path / "samples" / f"step-{engine.step:08d}.png"
    try:
        raws = draw(engine)
        with engine.average.applied(), distribution.whole_networks(engine.sharded):
            shown = show(engine.model, engine.data.codec, raws, engine.data.splits["train"])
        if not engine.main:
            return None
        picture = io.BytesIO()
        shown.save(picture, format="PNG")
    except PoiesisError as error:
        engine.say(f"no sample grid at step {engine.step}: {error}")
        return None
    write_atomic(path, picture.getvalue())
    if raws and isinstance(raws[0], str):
        write_atomic(path.with_suffix(".txt"), "\n\n---\n\n".join(raws))
    return path
