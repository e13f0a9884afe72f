"""Recordings of any length for models of short windows: cut, put together again.

Neighbouring windows overlap by half and are faded into each other, so that no seam is heard.
Shape letters: n samples, w windows, t samples of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from poiesis.data.codecs import AudioCodec
from poiesis.data.sources.audio import windows
from poiesis.data.sources.images import Found, list_folder
from poiesis.errors import DataError
from poiesis.files import WAVE_SUFFIXES, parse_wav, read_bytes

__all__ = ["Recordings", "cut", "join", "open_recordings"]


@dataclass(frozen=True)
class Recordings:
    """WAV files: their names and signals (1, n), float32, in the codec's units."""

    where: str
    names: list[str]
    signals: list[Tensor]


def open_recordings(codec: AudioCodec, path: Path, limit: int | None = None) -> Recordings:
    """Read a WAV file or all below a folder; raises DataError for those unlike the training data.

    limit: the first so many.
    """
    if path.is_dir():
        found = list_folder(path, WAVE_SUFFIXES)
    elif path.name.lower().endswith(WAVE_SUFFIXES):
        found = Found(path.parent, [path.name], lambda _: read_bytes(path))
    else:
        raise DataError(f"{path}: is no WAV file; give one, or a folder of them")
    names = found.names[:limit]
    if not names:
        raise DataError(f"{path}: holds no WAV files; give a file or folder of .wav")
    signals = []
    for name in names:
        where = f"{found.where}/{name}"
        signal = codec.signal(where, *parse_wav(found.read(name), where))
        if not len(signal):
            raise DataError(f"{where}: holds no samples; leave it out")
        signals.append(AudioCodec.encode(codec, signal))
    return Recordings(str(path), names, signals)


def _hop(length: int) -> int:
    return (length + 1) // 2


def cut(signal: Tensor, length: int) -> Tensor:
    """Return windows (w, 1, t) of a signal (1, n) that overlap by half, each sample in two.

    Silence is added at both ends.
    """
    hop = _hop(length)
    return torch.from_numpy(windows(np.pad(signal[0].numpy(), (hop, hop)), length, hop).copy())[
        :, None
    ]


def join(parts: Tensor, n: int) -> Tensor:
    """Return the signal (1, n) of windows (w, 1, t), as `cut` made them, faded into each other.

    With the weights sin²(pi (i + 1/2) / t), divided by their sum at each sample, which for even t
    is 1 already.
    """
    length = parts.shape[2]
    hop = _hop(length)
    fade = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    total = np.zeros(hop * (len(parts) - 1) + length)
    weight = np.zeros_like(total)
    for place, part in enumerate(parts[:, 0].double().numpy()):
        span = slice(place * hop, place * hop + length)
        total[span] += fade * part
        weight[span] += fade
    return torch.from_numpy((total / weight)[hop : hop + n].astype(np.float32))[None]
