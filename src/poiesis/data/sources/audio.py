"""WAV files: one, or all below a folder, cut into windows of one length."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poiesis.data.codecs import AudioCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet, TensorSplit
from poiesis.data.sources.images import Found, arrange
from poiesis.data.sources.splits import Images, assemble
from poiesis.errors import DataError
from poiesis.files import parse_wav

__all__ = ["open_audio", "windows"]

_BLOCK = 16
"""Windows that stay together when parts are cut: neighbours in time are too alike to test on."""


def windows(signal: np.ndarray, length: int, hop: int | None = None) -> np.ndarray:
    """Return the windows (w, length) of a signal (n,), at least one, silence added at its end.

    hop: from one to the next; default `length`, so that each sample is in one.
    """
    hop = hop or length
    count = 1 + max(0, -(-(len(signal) - length) // hop))
    padded = np.pad(signal, (0, (count - 1) * hop + length - len(signal)))
    return np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]


@dataclass
class _Blocks:
    """Runs of consecutive windows; one that is cut off keeps its windows."""

    blocks: list[np.ndarray]
    """int16 (w, length) each."""
    y: Tensor | None

    def __len__(self) -> int:
        return len(self.blocks)

    def take(self, positions: Tensor) -> TensorSplit:
        """Return the windows of these blocks."""
        chosen = [self.blocks[place] for place in positions.tolist()]
        x = torch.from_numpy(np.concatenate(chosen)) if chosen else torch.empty(0)
        if self.y is None:
            return TensorSplit(x)
        sizes = torch.tensor([len(block) for block in chosen], dtype=torch.int64)
        return TensorSplit(x, self.y[positions].repeat_interleave(sizes))

    def binarize(self, kind: str, part: str) -> Any:
        """Refuse."""
        raise DataError("data.binarize is for images; audio is not made of levels")


def open_audio(found: Found, name: str, config: DataConfig) -> DataSet:
    """Return the windows of WAV files, by the layout of their paths, as for images.

    All must have one sampling rate, which the codec keeps; values are in units of the training
    part's RMS. Raises DataError for files that differ, and for several channels unless
    data.channels = 1 says to average them.
    """
    if config.channels not in (None, 1):
        raise DataError(f"data.channels = {config.channels}, but audio is learned with one: use 1")
    digest = hashlib.sha256()
    signals: dict[str, list[tuple[str, np.ndarray]]] = {}
    skipped: list[str] = []
    codec: AudioCodec | None = None
    total = 0
    for part, files in arrange(found).items():
        for file, label in files:
            where = f"{found.where}/{file}"
            try:
                data = found.read(file)
                rate, samples = parse_wav(data, where)
                codec = codec or AudioCodec(
                    rate=rate, length=config.length, scale=1.0, mono=config.channels == 1
                )
                signal = codec.signal(where, rate, samples)
            except DataError as error:
                if not config.skip_bad:
                    raise
                skipped.append(str(error))
                continue
            digest.update(hashlib.sha256(data).digest())
            total += len(signal)
            signals.setdefault(part, []).append((label, signal))
    if codec is None:
        raise DataError(f"{found.where}: no WAV file can be read; {(skipped or ['add some'])[0]}")
    if 4 * total > config.memory * 1e9:
        raise DataError(
            f"{found.where}: {total:,} samples take {4 * total / 1e9:.1f} GB, more than "
            f"--data.memory {config.memory}: raise it, or give fewer files"
        )
    classes = tuple(sorted({label for rows in signals.values() for label, _ in rows}))
    classes = classes if len(classes) > 1 else ()
    parts = {part: _cut(rows, classes, config.length) for part, rows in signals.items()}
    if len(parts.get("all", parts.get("train", ()))) < 3:
        what = f"holds {total / codec.rate:.1f} s, too little to cut parts for testing from"
        raise DataError(f"{found.where}: {what}; add more, or use a smaller --data.length")
    steps = [f"windows of {config.length:,} samples at {codec.rate:,} Hz"]
    if codec.mono:
        steps.append("as mono")
    notes = {
        "origin": str(found.where),
        "ignored": found.ignored,
        "seconds": round(total / codec.rate, 1),
        "content": digest.hexdigest(),
    }
    data = assemble(
        Images(name, parts, codec, classes, steps, skipped, notes, rows="blocks of windows"), config
    )
    data.notes["blocks"] = data.notes["counts"]
    data.notes["counts"] = {split: len(rows) for split, rows in data.splits.items()}
    loud = float(data.splits["train"].x.double().square().mean().sqrt())
    codec = dataclasses.replace(codec, scale=max(loud, 1.0))
    for split in data.splits.values():
        split.x = (split.x / codec.scale).float()[:, None]
    return dataclasses.replace(data, codec=codec)


def _cut(rows: list[tuple[str, np.ndarray]], classes: tuple[str, ...], length: int) -> _Blocks:
    blocks, labels = [], []
    for label, signal in rows:
        own = windows(signal, length)
        for start in range(0, len(own), _BLOCK):
            blocks.append(own[start : start + _BLOCK])
            labels.append(classes.index(label) if classes else 0)
    return _Blocks(blocks, torch.tensor(labels) if classes else None)
