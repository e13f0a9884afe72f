"""Images: PIL picture ↔ uint8 levels (c, h, w), c from 1 (grey) to 4 (RGB and alpha)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.config import check
from poiesis.data.provenance import write_png
from poiesis.errors import DataError
from poiesis.spec import Grid

__all__ = ["ImageCodec", "convert", "fit", "native_mode"]

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def native_mode(image: Image.Image, name: object = "image") -> str:
    """Return L, LA, RGB or RGBA, whichever holds the picture without loss.

    A palette is only an encoding: RGB, or RGBA where it has transparency. Raises DataError for
    colours (CMYK) that none of them holds exactly.
    """
    if image.mode == "P":
        return "RGBA" if "transparency" in image.info else "RGB"
    modes = {"1": "L", "PA": "RGBA", "YCbCr": "RGB", **{mode: mode for mode in MODES.values()}}
    if image.mode not in modes:
        raise DataError(f"{name}: has the colours {image.mode}; use --data.channels 3")
    return modes[image.mode]


def convert(image: Image.Image, channels: int | None, name: object = "image") -> Image.Image:
    """Return the picture in its native mode, or in the one with so many channels.

    When alpha is dropped, what it hides turns white.
    """
    mode = native_mode(image, name) if channels is None else MODES[channels]
    if image.mode == mode:
        return image
    if image.mode == "P":
        image = image.convert(native_mode(image))
    if mode in ("L", "RGB") and image.mode in ("LA", "PA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert(mode)


def fit(
    image: Image.Image, resize: int | None, crop: int | None, name: object = "image"
) -> Image.Image:
    """Return the picture with its shorter side resized, then its centre square cut out.

    Shrinking averages areas, enlarging is bicubic. crop: default the resized side; without either
    the picture is returned as it is.
    """
    if resize is not None:
        width, height = image.size
        share = resize / min(width, height)
        size = (max(resize, round(width * share)), max(resize, round(height * share)))
        if size != image.size:
            box = Image.Resampling.BOX if share < 1 else Image.Resampling.BICUBIC
            image = image.resize(size, box)
        crop = resize if crop is None else crop
    if crop is None:
        return image
    width, height = image.size
    if min(width, height) < crop:
        what = f"{width} x {height} pixels are fewer than the crop of {crop}"
        raise DataError(f"{name}: {what}; use --data.resize {crop} or a smaller --data.crop")
    left, top = (width - crop) // 2, (height - crop) // 2
    return image.crop((left, top, left + crop, top + crop))


@dataclass(frozen=True, kw_only=True)
class ImageCodec:
    """Images of one size; resize, crop and channels are those that the data was read with."""

    channels: int
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
    size: tuple[int, int]
    """Height and width."""
    levels: int = 256
    """Number of levels; they spread evenly over 0…255 in pictures."""
    resize: int | None = None
    """Shorter side that pictures are resized to."""
    crop: int | None = None
    """Centre square that is cut out of them."""

    def __post_init__(self) -> None:
        check("codec.channels", self.channels, low=1, high=4)
        check("codec.levels", self.levels, low=2, high=256)
        for side in self.size:
            check("codec.size", side, low=1, high=65_536)

    @property
    def suffix(self) -> str:
        """PNG holds every image exactly, and its recipe."""
        return ".png"

    @property
    def shown(self) -> int:
        """Pictures that a preview shows well."""
        return 64

    @property
    def spec(self) -> Grid:
        """Levels (c, h, w)."""
        return Grid(channels=self.channels, size=self.size, levels=self.levels)

    def encode(self, raw: Image.Image) -> Tensor:
        """Return a picture as uint8 levels (c, h, w); raises DataError for another size."""
        image = fit(convert(raw, self.channels), self.resize, self.crop)
        if image.size != self.size[::-1]:
            have, want = (f"{w} x {h}" for w, h in (image.size, self.size[::-1]))
            raise DataError(f"the image has {have} pixels, not {want}; resize or crop it first")
        pixels = np.array(image).reshape(*self.size, self.channels)
        if self.levels < 256:
            pixels = np.rint(pixels / 255 * (self.levels - 1)).astype(np.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def decode(self, tensor: Tensor) -> Image.Image:
        """Return the picture of levels (c, h, w); 0…levels-1 are scaled to 0…255."""
        if tuple(tensor.shape) != self.spec.shape:
            raise DataError(f"levels of shape {tuple(tensor.shape)} are not {self.spec}")
        pixels = tensor.permute(1, 2, 0).cpu().numpy()
        if self.levels < 256:
            pixels = np.rint(pixels * (255 / (self.levels - 1)))
        pixels = np.ascontiguousarray(pixels.astype(np.uint8))
        return Image.frombytes(MODES[self.channels], (self.size[1], self.size[0]), pixels.tobytes())

    def write(self, raw: Image.Image, path: Path, recipe: dict[str, Any] | None = None) -> None:
        """Write a PNG, with the recipe inside."""
        write_png(raw, path, recipe)

    def preview(self, raws: list[Image.Image], columns: int | None = None) -> Image.Image:
        """Return pictures side by side in an RGB sheet; small ones enlarged.

        columns: pictures in a row; default so many that the sheet is nearly square.
        """
        height, width = self.size
        factor = max(1, 56 // max(height, width))
        gap = max(2, height * factor // 8)
        cell_w, cell_h = width * factor + gap, height * factor + gap
        columns = columns or max(1, math.ceil(math.sqrt(len(raws))))
        rows = max(1, math.ceil(len(raws) / columns))
        sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), (128, 128, 128))
        for place, raw in enumerate(raws):
            tile = convert(raw, 3)
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            row, column = divmod(place, columns)
            sheet.paste(tile, (column * cell_w + gap, row * cell_h + gap))
        return sheet

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {"kind": "image", **dataclasses.asdict(self), "size": list(self.size)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ImageCodec:
        """Return the codec of these fields."""
        return cls(**{**fields, "size": tuple(fields["size"])})
