"""Given pictures made anew: as variants (`edit`), or where a mask covers them (`inpaint`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from poiesis.apply.inputs import Inputs, Progress, open_inputs
from poiesis.config import check
from poiesis.data.codecs import ImageCodec
from poiesis.errors import CapabilityError, DataError, RunError
from poiesis.files import read_bytes, read_image
from poiesis.models.capabilities import require
from poiesis.models.trained import Trained, load
from poiesis.rng import Noise
from poiesis.sampling.counting import counting, drawn
from poiesis.spec import Classes

__all__ = ["REGIONS", "SHOWN", "Edited", "edit", "inpaint", "opened", "write"]

SHOWN = 10
"""Pictures in before-after.png."""
REGIONS: dict[str, tuple[float, float, float, float]] = {
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 1, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 1),
    "centre": (0.25, 0.25, 0.75, 0.75),
}
"""Masks by name: left, top, right and bottom edge, in shares of width and height."""


@dataclass(frozen=True)
class Edited:
    """Native rows (n, c, h, w), uint8: those given, what the model saw of them, and the result.

    Of each given picture there are `variants` results in a row. evaluations: of a network for each
    result, None for a model that has no steps.
    """

    inputs: Inputs
    before: Tensor
    shown: Tensor
    after: Tensor
    variants: int
    evaluations: float | None
    paths: list[Path]


def edit(
    run: str | Path,
    source: str = "",
    *,
    out: str | Path | None = None,
    strength: float = 0.5,
    variants: int = 1,
    label: str | None = None,
    prompt: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    split: str = "test",
    limit: int | None = None,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Edited:
    """Make variants of pictures: some noise is added and the model takes it away (SDEdit).

    source, split, limit: as in `open_inputs`. strength: in (0, 1], how much is made anew. variants:
    of each picture. label: the class to turn them into; default their own, where it is known, else
    none. prompt: the caption to turn them into, for a model that learned captions; default none.
    options: the model's sampling options. out: a folder for the pictures and a sheet
    before-after.png; nothing is written before all is done. Raises CapabilityError for a model that
    can't edit.
    """
    check("strength", strength, low=0, high=1, open_low=True)

    def work(model: Any, x: Tensor, noise: Noise, y: Tensor | None, chosen: Any) -> Tensor:
        return model.edit(x, noise, y, chosen, strength=strength)

    trained = opened(run, "edit", checkpoint, device)
    inputs = open_inputs(trained, source, split=split, limit=limit)
    before, after, each = _each(
        trained,
        inputs,
        work,
        variants,
        label,
        prompt,
        options,
        seed,
        batch_size,
        "edited",
        progress,
    )
    return _done(trained, Edited(inputs, before, before, after, variants, each, []), out)


def inpaint(
    run: str | Path,
    source: str = "",
    *,
    mask: str | Path = "centre",
    out: str | Path | None = None,
    resamples: int = 5,
    variants: int = 1,
    label: str | None = None,
    prompt: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    split: str = "test",
    limit: int | None = None,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Edited:
    """Fill in what a mask covers; every other pixel comes back bit for bit.

    mask: left, right, top, bottom or centre, or a picture of the data's size, white where the
    pictures are to be filled in. resamples: how often a step is repeated so that old and new fit.
    The rest as for `edit`. Raises CapabilityError for a model that can't inpaint.
    """
    check("resamples", resamples, low=1, high=1000)
    trained = opened(run, "inpaint", checkpoint, device)
    inputs = open_inputs(trained, source, split=split, limit=limit)
    covered = _mask(trained, mask)
    # In the view, what pads the picture is known as well.
    seen = trained.view.apply((covered * (trained.data_spec.levels - 1)).to(torch.uint8)[None])
    seen = (seen > seen.min()).to(trained.model.device)

    def work(model: Any, x: Tensor, noise: Noise, y: Tensor | None, chosen: Any) -> Tensor:
        return model.inpaint(x, seen, noise, y, chosen, resamples=resamples)

    before, after, each = _each(
        trained,
        inputs,
        work,
        variants,
        label,
        prompt,
        options,
        seed,
        batch_size,
        "filled in",
        progress,
    )
    known = before.repeat_interleave(variants, 0)
    after = torch.where(covered.bool(), after, known)
    gray = torch.full_like(before, (trained.data_spec.levels - 1) // 2)
    shown = torch.where(covered.bool(), gray, before)
    return _done(trained, Edited(inputs, before, shown, after, variants, each, []), out)


def _done(trained: Trained, found: Edited, out: str | Path | None) -> Edited:
    if out is not None:
        above = [list(map(trained.codec.decode, found.shown[:SHOWN]))]
        variants = found.variants
        found.paths.extend(
            write(trained, found.inputs, found.after, variants, above, [], Path(out))
        )
    return found


def opened(run: str | Path, capability: str, checkpoint: str, device: str) -> Trained:
    """Open a run of pictures whose model has a capability; raises CapabilityError for others."""
    trained = load(run, checkpoint=checkpoint, device=device)
    require(trained.model, capability)
    if not isinstance(trained.codec, ImageCodec):
        raise CapabilityError(f"this {trained.name} learned {trained.data_spec}, no pictures")
    return trained


@torch.no_grad()
def _each(
    trained: Trained,
    inputs: Inputs,
    work: Callable[[Any, Tensor, Noise, Tensor | None, Any], Tensor],
    variants: int,
    label: str | None,
    prompt: str | None,
    options: dict[str, Any] | None,
    seed: int,
    batch_size: int,
    what: str,
    progress: Progress | None,
) -> tuple[Tensor, Tensor, float | None]:
    """Return native rows before and after, and the evaluations that each of the latter took.

    The noise of each depends on (seed, place) alone.
    """
    check("variants", variants, low=1, high=10_000)
    check("batch_size", batch_size, low=1)
    model: Any = trained.model
    chosen = trained.options(**(options or {}))
    asked = trained.asked(1, label, prompt)
    before, after = [], []
    with counting() as count:
        for start in range(0, len(inputs), max(1, batch_size // variants)):
            end = min(len(inputs), start + max(1, batch_size // variants))
            rows = inputs.fetch(start, end)
            x = trained.view.apply(rows).to(model.device).repeat_interleave(variants, 0)
            y = None
            if asked is not None:
                y = asked.to(model.device).repeat_interleave(len(x), 0)
            elif inputs.labels is not None and isinstance(model.condition, Classes):
                y = torch.tensor(inputs.labels[start:end], device=model.device)
                y = y.repeat_interleave(variants, 0)
            noise = Noise(seed, range(start * variants, end * variants), device=model.device)
            before.append(rows)
            after.append(trained.view.invert(work(model, x, noise, y, chosen).cpu()))
            drawn(len(x))
            if progress is not None:
                progress(what, end - start, len(inputs))
    return torch.cat(before), torch.cat(after), count.each


def _mask(trained: Trained, mask: str | Path) -> Tensor:
    """Return the mask (1, h, w), float32, 1 where pictures are to be filled in."""
    height, width = trained.data_spec.size
    if str(mask) in REGIONS:
        left, top, right, bottom = REGIONS[str(mask)]
        covered = torch.zeros(1, height, width)
        rows = slice(round(top * height), round(bottom * height))
        covered[:, rows, round(left * width) : round(right * width)] = 1
        return covered
    path = Path(mask).expanduser()
    if not path.is_file():
        names = ", ".join(REGIONS)
        raise DataError(f"mask {str(mask)!r} is no file and none of {names}; give one of them")
    picture = read_image(read_bytes(path), str(path)).convert("L")
    if picture.size != (width, height):
        have = f"{picture.width} x {picture.height}"
        raise DataError(f"{path}: is {have} px, the pictures are {width} x {height}; resize it")
    pixels = torch.tensor(list(picture.tobytes())).view(1, height, width)
    covered = (pixels > 127).float()
    if not covered.any():
        raise DataError(f"{path}: covers nothing; paint white what is to be filled in")
    return covered


def write(
    trained: Trained,
    inputs: Inputs,
    after: Tensor,
    variants: int,
    above: list[list[Any]],
    below: list[list[Any]],
    out: Path,
) -> list[Path]:
    """Write native rows `after`, so many variants of each input, and a sheet before-after.png.

    above, below: lines of raw pictures about the first results on the sheet, each of `SHOWN`, or
    as many as there are inputs. Raises DataError for inputs of one name, RunError where it can't.
    """
    codec = trained.codec
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in inputs.names]
    if len(set(stems)) < len(stems):
        raise DataError(f"{inputs.where}: two files differ in their ending alone; rename one")
    several = variants > 1
    paths = [
        out / (f"{stem}-{variant + 1}{codec.suffix}" if several else f"{stem}{codec.suffix}")
        for stem in stems
        for variant in range(variants)
    ]
    columns = min(SHOWN, len(inputs))
    own = [after[i::variants][:columns] for i in range(min(4, variants))]
    lines = [*above, *([codec.decode(row) for row in rows] for rows in own), *below]
    sheet: Image.Image = codec.preview([raw for line in lines for raw in line], columns)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for row, path in zip(after, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            codec.write(codec.decode(row), path)
        sheet.save(out / "before-after.png")
    except OSError as error:
        raise RunError(f"can't write to {str(out)!r}: {error.strerror or error}") from None
    return paths
