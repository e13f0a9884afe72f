"""Video: uint8 frames (t, h, w, c), c 1 (grey) or 3 (RGB) ↔ uint8 levels (c, t, h, w)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.config import check
from poiesis.data.provenance import write_sidecar
from poiesis.errors import ConfigError, DataError
from poiesis.files import USUAL_RATE, check_ffmpeg, make_gif, make_mp4, pictures_of
from poiesis.spec import Grid

__all__ = ["FORMATS", "VideoCodec"]

FORMATS = ("gif", "mp4")
_SHOWN = 8
"""Frames of a clip in a preview."""
_SIDE = 48
"""Pixels up to which small frames are enlarged in previews."""
_GREY = 128


@dataclass(frozen=True, kw_only=True)
class VideoCodec:
    """Windows of so many frames of one size; resize and crop are those the data was read with."""

    channels: int
    """1 grey, 3 RGB."""
    frames: int
    """Frames of a window."""
    size: tuple[int, int]
    """Height and width."""
    rate: float = USUAL_RATE
    """Frames of a window that make a second."""
    format: Literal["gif", "mp4"] = "gif"
    """What samples are written as."""
    resize: int | None = None
    """Shorter side that frames are resized to."""
    crop: int | None = None
    """Centre square that is cut out of them."""

    def __post_init__(self) -> None:
        check("codec.channels", self.channels, low=1, high=3)
        check("codec.frames", self.frames, low=2, high=4096)
        check("codec.rate", self.rate, low=0, high=1000, open_low=True)
        if self.format not in FORMATS:
            raise ConfigError(f"no video format {self.format!r}; known: {', '.join(FORMATS)}")
        for side in self.size:
            check("codec.size", side, low=1, high=65_536)

    @property
    def suffix(self) -> str:
        """The ending of the format."""
        return f".{self.format}"

    @property
    def shown(self) -> int:
        """Clips that a preview shows well."""
        return 16

    @property
    def spec(self) -> Grid:
        """Levels (c, t, h, w)."""
        return Grid(channels=self.channels, size=(self.frames, *self.size))

    def check_format(self) -> None:
        """Raise DataError where this machine can't write the format."""
        if self.format == "mp4":
            check_ffmpeg()

    def encode(self, raw: np.ndarray) -> Tensor:
        """Return frames (t, h, w, c) as levels (c, t, h, w); raises DataError for other ones."""
        shape = (self.frames, *self.size, self.channels)
        if getattr(raw, "dtype", None) != np.uint8 or raw.shape != shape:
            what = f"{raw.dtype} {raw.shape}" if isinstance(raw, np.ndarray) else type(raw).__name__
            raise DataError(f"a clip of {what} is not one of uint8 frames {shape}")
        return torch.from_numpy(raw.transpose(3, 0, 1, 2).copy())

    def decode(self, tensor: Tensor) -> np.ndarray:
        """Return the frames (t, h, w, c) of levels (c, t, h, w)."""
        if tuple(tensor.shape) != self.spec.shape:
            raise DataError(f"levels of shape {tuple(tensor.shape)} are not {self.spec}")
        return tensor.permute(1, 2, 3, 0).cpu().numpy().astype(np.uint8)

    def write(self, raw: np.ndarray, path: Path, recipe: dict[str, Any] | None = None) -> None:
        """Write a film where the path ends in .mp4, else a GIF, and its recipe beside it.

        A GIF holds grey frames exactly, and colours by a palette of 256 for each frame.
        """
        make = make_mp4 if Path(path).suffix == ".mp4" else make_gif
        Path(path).write_bytes(make(pictures_of(raw), self.rate))
        if recipe is not None:
            write_sidecar(path, recipe)

    def preview(self, raws: list[np.ndarray], columns: int | None = None) -> Image.Image:
        """Return clips as an RGB sheet, each a strip of its frames from left to right.

        Of long clips every second frame is shown, or every third, and so on, up to 8 of them.
        columns: strips in a row; default one.
        """
        step = math.ceil(self.frames / _SHOWN)
        strips = [np.concatenate([self._enlarged(f) for f in raw[::step]], 1) for raw in raws]
        return Image.fromarray(_sheet(strips, columns or 1))

    def animate(self, raws: list[np.ndarray], columns: int | None = None) -> bytes:
        """Return the bytes of a GIF in which all these clips run side by side.

        columns: clips in a row; default so many that the sheet is nearly square.
        """
        columns = columns or max(1, math.ceil(math.sqrt(len(raws))))
        sheets = [
            _sheet([self._enlarged(raw[number]) for raw in raws], columns)
            for number in range(self.frames)
        ]
        if self.channels == 1:
            sheets = [sheet[..., 0] for sheet in sheets]  # exact in a GIF
        return make_gif([Image.fromarray(sheet) for sheet in sheets], self.rate)

    def _enlarged(self, frame: np.ndarray) -> np.ndarray:
        """Return a frame (h, w, c) as RGB, enlarged by a whole factor, with a line at its right."""
        factor = max(1, _SIDE // max(self.size))
        big = frame.repeat(factor, 0).repeat(factor, 1)
        rgb = np.broadcast_to(big, (*big.shape[:2], 3))
        return np.pad(rgb, ((0, 0), (0, 1), (0, 0)), constant_values=_GREY)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {"kind": "video", **dataclasses.asdict(self), "size": list(self.size)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VideoCodec:
        """Return the codec of these fields."""
        return cls(**{**fields, "size": tuple(fields["size"])})


def _sheet(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Lay out tiles of one shape (h, w, 3) on grey, row by row, with gaps between them."""
    height, width, _ = tiles[0].shape
    gap = max(2, height // 8)
    rows = math.ceil(len(tiles) / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, _GREY, np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        y, x = row * (height + gap) + gap, column * (width + gap) + gap
        sheet[y : y + height, x : x + width] = tile
    return sheet
