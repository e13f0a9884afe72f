"""Audio: windows of 16-bit mono samples ↔ float32 (1, n), in units of the training part's RMS."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.config import check
from poiesis.data.provenance import write_sidecar
from poiesis.errors import DataError
from poiesis.files import make_wav
from poiesis.spec import Grid

__all__ = ["AudioCodec", "log_spectrogram"]

_TOP = 32767
_TILE, _GAP = (180, 64), 6
"""Width, and height of both the waveform and the spectrogram, of a tile in a preview, in px."""
_FLOOR = 80.0
"""dB below the loudest that a spectrogram shows."""


def log_spectrogram(x: np.ndarray, frame: int = 128) -> np.ndarray:
    """Return the power of samples (…, n) by frequency and time in dB, (…, frame / 2 + 1, t).

    Hann windows that overlap by half, at least one (silence is added behind); 0 dB is the power
    of white noise of variance 1, the floor is -100 dB.
    """
    hop = frame // 2
    lack = max(0, frame - x.shape[-1])
    x = np.pad(x.astype(np.float64), [(0, 0)] * (x.ndim - 1) + [(0, lack)])
    frames = np.lib.stride_tricks.sliding_window_view(x, frame, axis=-1)[..., ::hop, :]
    window = np.hanning(frame + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window)) ** 2 / np.sum(window**2)
    return np.moveaxis(10 * np.log10(power + 1e-10), -1, -2)


@dataclass(frozen=True, kw_only=True)
class AudioCodec:
    """Windows of one length and sampling rate."""

    rate: int
    """Samples a second."""
    length: int
    """Samples of a window."""
    scale: float
    """RMS of the training part, in 16-bit steps: a value of 1 in the tensors."""
    mono: bool = False
    """Whether files of several channels are averaged."""

    kind: ClassVar[str] = "audio"
    """Name in the saved description."""

    def __post_init__(self) -> None:
        check("codec.rate", self.rate, low=1)
        check("codec.length", self.length, low=16, high=1_048_576)
        check("codec.scale", self.scale, low=0, high=32768, open_low=True)

    @property
    def suffix(self) -> str:
        """16-bit PCM."""
        return ".wav"

    @property
    def shown(self) -> int:
        """Windows that a preview shows well."""
        return 16

    @property
    def spec(self) -> Grid:
        """One channel of so many samples."""
        return Grid(channels=1, size=(self.length,), domain="real")

    def signal(self, name: object, rate: int, samples: np.ndarray) -> np.ndarray:
        """Return int16 samples (n, channels) as (n,); raises DataError unless rate, channels fit.

        name: what messages call them.
        """
        if rate != self.rate:
            way = f"resample it to {self.rate} Hz"
            raise DataError(f"{name}: has {rate} samples a second, not {self.rate}; {way}")
        if samples.shape[1] > 1 and not self.mono:
            way = "average them with --data.channels 1 in training, or give mono files"
            raise DataError(f"{name}: has {samples.shape[1]} channels; {way}")
        return np.rint(samples.mean(1)).astype(np.int16)

    def native(self, waves: Tensor) -> Tensor:
        """Return windows (b, 1, n) in units of the training part's RMS as rows: as they are."""
        return waves

    def waves(self, native: Tensor) -> Tensor:
        """Return rows (b, 1, n) as samples (b, n) in units of the training part's RMS."""
        return native[:, 0]

    def encode(self, raw: np.ndarray) -> Tensor:
        """Return int16 samples (n,), of any n, as float32 (1, n)."""
        if raw.ndim != 1 or raw.dtype != np.int16:
            raise DataError(
                f"{raw.dtype} samples of shape {raw.shape} are not int16 of one channel"
            )
        return torch.from_numpy((raw / self.scale).astype(np.float32))[None]

    def decode(self, tensor: Tensor) -> np.ndarray:
        """Return values (1, n) as int16 samples (n,), rounded; what is too loud is clipped."""
        if tensor.ndim != 2 or len(tensor) != 1:
            raise DataError(f"values of shape {tuple(tensor.shape)} are not one channel of samples")
        values = tensor[0].detach().cpu().double().numpy() * self.scale
        return np.rint(np.nan_to_num(values)).clip(-_TOP - 1, _TOP).astype(np.int16)

    def write(self, raw: np.ndarray, path: Path, recipe: dict[str, Any] | None = None) -> None:
        """Write a WAV file, and its recipe beside it."""
        Path(path).write_bytes(make_wav(raw, self.rate))
        if recipe is not None:
            write_sidecar(path, recipe)

    def preview(self, raws: Sequence[np.ndarray], columns: int | None = None) -> Image.Image:
        """Return waveforms, each over its spectrogram (low frequencies below), as an RGB sheet.

        columns: tiles in a row; default so many that the sheet is nearly square.
        """
        columns = columns or max(1, math.ceil(math.sqrt(len(raws) / 2)))
        rows = max(1, math.ceil(len(raws) / columns))
        width, height = _TILE[0] + _GAP, 2 * _TILE[1] + _GAP
        sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), (128, 128, 128))
        loudest = max((int(np.abs(raw.astype(np.int32)).max(initial=1)) for raw in raws), default=1)
        levels = [log_spectrogram(raw / self.scale) for raw in raws]
        top = max((float(level.max()) for level in levels), default=0.0)
        for place, (raw, level) in enumerate(zip(raws, levels, strict=True)):
            row, column = divmod(place, columns)
            x, y = column * width + _GAP, row * height + _GAP
            sheet.paste(_waveform(raw, loudest), (x, y))
            sheet.paste(_heat(level, top), (x, y + _TILE[1]))
        return sheet

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> AudioCodec:
        """Return the codec of these fields."""
        return cls(**fields)


def _waveform(raw: np.ndarray, loudest: int) -> Image.Image:
    """Return the span of the samples at each pixel column, blue on white."""
    width, height = _TILE
    cuts = np.linspace(0, len(raw), width + 1).astype(int)
    middle = (height - 1) / 2
    pixels = np.full((height, width, 3), 255, np.uint8)
    for column in range(width):
        part = raw[cuts[column] : max(cuts[column] + 1, cuts[column + 1])]
        if len(part):
            low, high = (middle * (1 - int(v) / loudest) for v in (part.max(), part.min()))
            pixels[round(low) : round(high) + 1, column] = (59, 130, 196)
    return Image.fromarray(pixels)


def _heat(level: np.ndarray, top: float) -> Image.Image:
    from matplotlib import colormaps

    share = ((level - top) / _FLOOR + 1).clip(0, 1)[::-1]
    colours = (colormaps["magma"](share)[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(colours)).resize(_TILE, Image.Resampling.BILINEAR)
