"""Audio as pictures: windows of samples ↔ uint8 (1, bands, frames), power by pitch and time.

Bands are evenly spaced in mel, levels in dB; the phase is left out and found again from what is
there. Every model of grey images learns these, and gives sound. Shape letters: b batch, n samples,
t frames, f frequencies, m bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poiesis.config import check
from poiesis.data.codecs.audio import AudioCodec
from poiesis.errors import DataError
from poiesis.rng import generator
from poiesis.spec import Grid

__all__ = ["RANGE", "SpectrogramCodec", "griffin_lim", "mel_filters", "sound_of", "spectrum"]

RANGE = 80.0
"""dB from the loudest value to silence, the range of the levels."""
_TOP = 255
_SECONDS = 0.064
"""Length of a frame, to the nearest power of two in samples: harmonics of a voice are resolved."""
_OVERLAP = 4
"""Frames that a sample lies in."""
_ROUNDS = 32
"""Of Griffin and Lim's method; more change little that is heard."""
_MOMENTUM = 0.99
"""Perraudin et al., A fast Griffin-Lim algorithm (doi:10.1109/WASPAA.2013.6701851)."""
_FITS = 30
_ROWS = 256
"""Recordings turned to sound at a time."""


@dataclass(frozen=True, kw_only=True)
class SpectrogramCodec(AudioCodec):
    """Windows of one length and sampling rate as levels by pitch (low ones last) and time."""

    bands: int = 64
    """Bands of frequency, rows of the picture."""
    loudest: float = 40.0
    """dB of the highest level, 0 being amplitude 1 in units of the training part's RMS."""

    kind = "spectrogram"

    def __post_init__(self) -> None:
        super().__post_init__()
        check("codec.bands", self.bands, low=8, high=512)
        check("codec.loudest", self.loudest, low=-200, high=200)

    @property
    def frame(self) -> int:
        """Samples of a frame, a power of two of at least 32."""
        return 2 ** max(5, round(math.log2(_SECONDS * self.rate)))

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.frame // _OVERLAP

    @property
    def spec(self) -> Grid:
        """One channel of levels."""
        return Grid(channels=1, size=(self.bands, -(-self.length // self.hop)))

    def native(self, waves: Tensor) -> Tensor:
        """Return windows (b, 1, n) in units of the training part's RMS as rows (b, 1, m, t)."""
        decibels = (self.loudness(waves) - self.loudest) / RANGE + 1
        return (decibels.clamp(0, 1) * _TOP).round().to(torch.uint8)

    def loudness(self, waves: Tensor) -> Tensor:
        """Return amplitudes of windows (b, 1, n) by band and time in dB, (b, 1, m, t)."""
        rows = []
        for part in waves[:, 0].double().split(_ROWS):
            lack = -part.shape[1] % self.hop
            amplitude = spectrum(F.pad(part, (0, lack)), self.frame).abs()
            rows.append(mel_filters(self.bands, self.frame, self.rate) @ amplitude)
        amplitudes = torch.cat(rows)[:, None].flip(2)
        return 20 * torch.log10(amplitudes.clamp(min=1e-9))

    def decibels(self, native: Tensor) -> Tensor:
        """Return levels as dB, float32, of the same shape."""
        return (native.float() / _TOP - 1) * RANGE + self.loudest

    def waves(self, native: Tensor) -> Tensor:
        """Return rows (b, 1, m, t) as samples (b, n) in units of the training part's RMS."""
        found = []
        filters = mel_filters(self.bands, self.frame, self.rate).float()
        for part in native[:, 0].float().split(_ROWS):
            amplitudes = torch.where(part > 0, 10 ** (self.decibels(part) / 20), 0.0).flip(1)
            found.append(griffin_lim(_unfold_bands(amplitudes, filters), self.frame))
        return torch.cat(found)[:, : self.length] if found else torch.zeros(0, self.length)

    def encode(self, raw: np.ndarray) -> Tensor:
        """Return int16 samples (n,) as uint8 (1, m, t)."""
        return self.native(super().encode(raw)[None])[0]

    def decode(self, tensor: Tensor) -> np.ndarray:
        """Return levels (1, m, t) as int16 samples (n,), rounded; what is too loud is clipped."""
        if tensor.shape != self.spec.shape:
            raise DataError(f"levels of shape {tuple(tensor.shape)} are not those of a {self.spec}")
        return super().decode(self.waves(tensor[None].cpu()))


def spectrum(x: Tensor, frame: int) -> Tensor:
    """Return the complex spectrum (b, f, t) of samples (b, n), n a multiple of frame / 4.

    Frame t is centred on the t-th piece of frame / 4 samples, under a Hann window whose squares
    sum to 1, so that white noise of variance 1 has power 1.
    """
    hop = frame // _OVERLAP
    around = (frame - hop) // 2
    frames = F.pad(x, (around, frame - hop - around)).unfold(1, frame, hop)
    return torch.fft.rfft(frames * _window(frame).to(x)).transpose(1, 2)


def sound_of(spectra: Tensor, frame: int) -> Tensor:
    """Return the samples (b, n) whose `spectrum` is nearest to the given one (b, f, t)."""
    window = _window(frame).to(spectra.real)
    frames = torch.fft.irfft(spectra.transpose(1, 2), n=frame) * window
    hop = frame // _OVERLAP
    around = (frame - hop) // 2
    sound = _added(frames) / _added((window**2).expand(1, frames.shape[1], -1))
    return sound[:, around : around + frames.shape[1] * hop]


def _added(frames: Tensor) -> Tensor:
    """Return the sum (b, n + 3 hops) of overlapping frames (b, t, frame)."""
    b, t, frame = frames.shape
    pieces = frames.reshape(b, t, _OVERLAP, frame // _OVERLAP)
    total = pieces.new_zeros(b, t + _OVERLAP - 1, frame // _OVERLAP)
    for place in range(_OVERLAP):
        total[:, place : place + t] += pieces[:, :, place]
    return total.flatten(1)


def griffin_lim(amplitudes: Tensor, frame: int, rounds: int = _ROUNDS) -> Tensor:
    """Return samples (b, n) whose spectrum has about these amplitudes (b, f, t).

    Griffin and Lim (doi:10.1109/TASSP.1984.1164317), with momentum. The first phases are the same
    random ones for each sound, so that equal amplitudes sound the same.
    """
    shape = amplitudes.shape[1:]
    angle = 2 * math.pi * torch.rand(shape, generator=generator("phase", 0), dtype=torch.float64)
    spectra = torch.polar(amplitudes, angle.to(amplitudes).expand_as(amplitudes))
    before = torch.zeros_like(spectra)
    for _ in range(rounds):
        consistent = spectrum(sound_of(spectra, frame), frame)
        ahead = consistent + _MOMENTUM * (consistent - before)
        before = consistent
        spectra = amplitudes * ahead / ahead.abs().clamp(min=1e-12)
    return sound_of(spectra, frame)


def _unfold_bands(bands: Tensor, filters: Tensor) -> Tensor:
    """Return amplitudes (b, f, t) ≥ 0 whose sums by band are these (b, m, t), in least squares.

    By multiplicative updates (Lee and Seung, 1999), which keep all amplitudes from being negative.
    """
    wanted, both = filters.T @ bands, filters.T @ filters
    found = wanted.clone()
    for _ in range(_FITS):
        found = found * wanted / (both @ found).clamp(min=1e-12)
    return found


@lru_cache(maxsize=8)
def _window(frame: int) -> Tensor:
    window = torch.hann_window(frame, dtype=torch.float64)
    return window / window.square().sum().sqrt()


@lru_cache(maxsize=8)
def mel_filters(bands: int, frame: int, rate: int) -> Tensor:
    """Return triangular filters (m, f) evenly spaced in mel, each of sum 1, float64.

    mel = 2595 log10(1 + Hz/700) (O'Shaughnessy, Speech Communication, 1987).
    """
    hertz = torch.arange(frame // 2 + 1, dtype=torch.float64) * rate / frame
    top = 2595 * math.log10(1 + rate / 1400)
    corners = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    corners = 700 * (10 ** (corners / 2595) - 1)
    low, middle, high = (corners[i : bands + i, None] for i in range(3))
    # Where bands are narrower than a frequency's step, each still holds the nearest frequency.
    step = rate / frame
    rising = (hertz - low) / (middle - low).clamp(min=step)
    falling = (high - hertz) / (high - middle).clamp(min=step)
    filters = torch.minimum(rising, falling).clamp(min=0)
    nearest = (middle / step).round().long().clamp(max=frame // 2)
    empty = filters.sum(1, keepdim=True) == 0
    filters = torch.where(empty, torch.zeros_like(filters).scatter(1, nearest, 1.0), filters)
    return filters / filters.sum(1, keepdim=True)
