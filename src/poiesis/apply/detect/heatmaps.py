"""Heat maps: where in an image the reconstruction errs, on one scale for all of them.

Shape letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.apply.detect.observe import difference
from poiesis.models.trained import Trained

__all__ = ["coloured", "each", "error_maps", "full_scale", "png", "sheet"]

_COLOURS = "inferno"
_SMALLEST = 128
"""Pixels a side that a map of its own has at least."""


@torch.no_grad()
def error_maps(trained: Trained, native: Tensor) -> tuple[Tensor, Tensor]:
    """Return reconstructions (n, c, h, w), native, and the mean absolute errors (n, h, w)."""
    model: Any = trained.model
    x = trained.view.apply(native).to(model.device)
    back = trained.view.invert(model.reconstruct(x).cpu())
    return back, difference(trained, native, back).abs().mean(1)


def full_scale(errors: Tensor) -> float:
    """Return the error that gets the brightest colour: 99.9% of a normal image's are below it."""
    return max(1e-6, float(np.quantile(errors.numpy(), 0.999)))


def coloured(error: Tensor, scale: float) -> Image.Image:
    """Return an error map (h, w) as a picture, enlarged by a whole factor where it is small."""
    from matplotlib import colormaps

    rgb = colormaps[_COLOURS]((error / scale).clamp(0, 1).numpy(), bytes=True)[..., :3]
    factor = max(1, -(-_SMALLEST // max(error.shape)))
    height, width = error.shape
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def sheet(
    trained: Trained,
    native: Tensor,
    titles: Sequence[str],
    scale: float,
    *,
    gap: int,
    heading: str,
) -> bytes:
    """Return a PNG: each image over its reconstruction over its map, and the scale of colours.

    gap: a wider space is left after so many columns.
    """
    from matplotlib.figure import Figure

    back, errors = error_maps(trained, native)
    columns = len(native)
    widths = [1.0] * columns
    if 0 < gap < columns:
        widths.insert(gap, 0.3)
    height, width = native.shape[2:]
    figure = Figure(
        figsize=(0.95 * sum(widths) + 1.5, 3.3 * min(1.5, height / width) + 0.9),
        layout="constrained",
        dpi=110,
    )
    axes = figure.subplots(3, len(widths), squeeze=False, width_ratios=widths)
    for place in range(len(widths)):
        if 0 < gap < columns and place == gap:
            for axis in axes[:, place]:
                axis.set_visible(False)
            continue
        row = place - (0 < gap < columns and place > gap)
        for axis, levels in zip(axes[:2, place], (native[row], back[row]), strict=True):
            axis.imshow(np.asarray(trained.codec.decode(levels)), cmap="gray", vmin=0, vmax=255)
        axes[2, place].imshow(errors[row].numpy(), cmap=_COLOURS, vmin=0, vmax=scale)
        axes[0, place].set_title(titles[row], fontsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis, name in zip(axes[:, 0], ("input", "reconstruction", "error"), strict=True):
        axis.set_ylabel(name, fontsize=8)
    bar = figure.colorbar(axes[2, 0].images[0], ax=axes[2, -1], fraction=0.1, extend="max")
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(heading, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def each(
    trained: Trained, fetch: Callable[[int, int], Tensor], n: int, scale: float, *, batch_size: int
) -> Iterator[Image.Image]:
    """Yield the coloured map of each image in turn."""
    for start in range(0, n, batch_size):
        for error in error_maps(trained, fetch(start, min(n, start + batch_size)))[1]:
            yield coloured(error, scale)
