"""Pictures made into images of another kind: larger, in colour, of another domain.

Written against the capability `translate`: what a model takes is its `source`, which `upscale` asks
to be smaller than what it makes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poiesis.apply.edit import SHOWN, opened, write
from poiesis.apply.inputs import Inputs, Progress, open_inputs
from poiesis.config import check
from poiesis.data.codecs import ImageCodec
from poiesis.data.views import View
from poiesis.errors import CapabilityError
from poiesis.metrics.fidelity import SMALLEST, psnr, ssim
from poiesis.models.trained import Trained
from poiesis.rng import Noise
from poiesis.sampling.counting import counting, drawn
from poiesis.spec import Grid

__all__ = ["Translated", "translate", "upscale"]


@dataclass(frozen=True)
class Translated:
    """Native rows: the pictures given (n, c', h', w'), and the images made, (n, c, h, w), uint8.

    Of each picture there are `variants` images in a row. real: what they should be, where that is
    known, and how close they are to it: psnr in dB and ssim, psnr_plain and ssim_plain of what one
    would make of the pictures without a model. evaluations: of a network for each image, None for a
    model that has no steps.
    """

    inputs: Inputs
    given: Tensor
    made: Tensor
    real: Tensor | None
    numbers: dict[str, float]
    variants: int
    evaluations: float | None
    paths: list[Path]


def translate(
    run: str | Path,
    source: str = "",
    *,
    out: str | Path | None = None,
    variants: int = 1,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    split: str = "test",
    limit: int | None = None,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Translated:
    """Make images of pictures with a model that learned to: grey ones in colour, maps as photos.

    source, split, limit: as in `open_inputs`; pictures in files are what the model takes, while of
    a data set the pictures are made, or taken from its pairs. variants: of each picture. options:
    the model's sampling options. out: a folder for the images, by the same names, and a sheet
    before-after.png; nothing is written before all is done. Raises CapabilityError for a model that
    can't translate, DataError for pictures that it does not take.
    """
    return _made(
        _able(run, checkpoint, device),
        source,
        out=out,
        variants=variants,
        options=options,
        seed=seed,
        split=split,
        limit=limit,
        batch_size=batch_size,
        progress=progress,
    )


def upscale(
    run: str | Path,
    source: str = "",
    *,
    out: str | Path | None = None,
    variants: int = 1,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    split: str = "test",
    limit: int | None = None,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Translated:
    """Make pictures larger with a model that learned to, by the factor that it learned.

    All as for `translate`. Raises CapabilityError for a model that makes nothing larger.
    """
    trained = _able(run, checkpoint, device)
    if _factor(trained) == 1:
        raise CapabilityError(
            f"this {trained.name} makes images as large as its pictures: use poiesis translate, or "
            "train one with --model.task upscale-4"
        )
    return _made(
        trained,
        source,
        out=out,
        variants=variants,
        options=options,
        seed=seed,
        split=split,
        limit=limit,
        batch_size=batch_size,
        progress=progress,
    )


def _able(run: str | Path, checkpoint: str, device: str) -> Trained:
    trained = opened(run, "translate", checkpoint, device)
    if getattr(trained.model, "source", None) is None:
        raise CapabilityError(
            f"this {trained.name} learned to translate nothing; train one with --model.task "
            "upscale-4 or colourise, or on pairs (--data.pairs left-to-right)"
        )
    return trained


def _factor(trained: Trained) -> int:
    """Return how many times as large as the pictures the images are."""
    model: Any = trained.model
    return model.spec.size[0] // model.source.size[0]


def _codec(trained: Trained) -> ImageCodec:
    """Return what reads the pictures that the model takes."""
    codec, factor = trained.codec, _factor(trained)
    assert isinstance(codec, ImageCodec)
    model: Any = trained.model
    codec = dataclasses.replace(codec, channels=model.source.channels)
    if factor == 1:
        return codec
    height, width = codec.size
    return dataclasses.replace(
        codec, size=(height // factor, width // factor), resize=None, crop=None
    )


@torch.no_grad()
def _made(
    trained: Trained,
    source: str,
    *,
    out: str | Path | None,
    variants: int,
    options: dict[str, Any] | None,
    seed: int,
    split: str,
    limit: int | None,
    batch_size: int,
    progress: Progress | None,
) -> Translated:
    check("variants", variants, low=1, high=10_000)
    check("batch_size", batch_size, low=1)
    model: Any = trained.model
    chosen = trained.options(**(options or {}))
    codec = _codec(trained)
    inputs = open_inputs(trained, source, split=split, limit=limit, codec=codec)
    from_files = bool(source) and Path(source).expanduser().exists()
    native = codec.spec
    view = View(native, model.source)
    given, made, real, plain = [], [], [], []
    step = max(1, batch_size // variants)
    with counting() as count:
        for start in range(0, len(inputs), step):
            end = min(len(inputs), start + step)
            rows = inputs.fetch(start, end)
            if from_files:
                x = view.apply(rows)
            else:
                real.append(rows)
                y = None if inputs.pictures is None else inputs.pictures(start, end)
                x = model.given(trained.view.apply(rows), trained.view.condition(y))
                rows = view.invert(x)
                plain.append(trained.view.invert(model.plain(x)))
            given.append(rows)
            noise = Noise(seed, range(start * variants, end * variants), device=model.device)
            x = x.to(model.device).repeat_interleave(variants, 0)
            made.append(trained.view.invert(model.translate(x, noise, chosen).cpu()))
            drawn(len(x))
            if progress is not None:
                progress("made", end - start, len(inputs))
    found = Translated(
        inputs,
        torch.cat(given),
        torch.cat(made),
        torch.cat(real) if real else None,
        {},
        variants,
        count.each,
        [],
    )
    if found.real is not None:
        found.numbers.update(_numbers(found.made, torch.cat(plain), found.real, trained.data_spec))
    if out is not None:
        above = [[codec.decode(row) for row in found.given[:SHOWN]]]
        below = [] if found.real is None else [list(map(trained.codec.decode, found.real[:SHOWN]))]
        paths = write(trained, inputs, found.made, variants, above, below, Path(out))
        found.paths.extend(paths)
    return found


def _numbers(made: Tensor, plain: Tensor, real: Tensor, spec: Grid) -> dict[str, float]:
    """Return how close images, and plain ones, are to the real ones; the mean over variants."""
    wanted = real.repeat_interleave(len(made) // len(real), 0)
    peak = spec.levels - 1
    numbers = {"psnr": psnr(made, wanted, peak=peak).value}
    numbers["psnr_plain"] = psnr(plain, real, peak=peak).value
    if min(spec.size) >= SMALLEST:
        numbers["ssim"] = ssim(made, wanted, peak=peak).value
        numbers["ssim_plain"] = ssim(plain, real, peak=peak).value
    return numbers
