"""WAV files: one, or all below a folder, cut into windows of one length."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poiesis.data.codecs import AudioCodec, SpectrogramCodec
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

    Without folders the classes are a part of the names, see `data.label`. All must have one
    sampling rate, which the codec keeps; values are in units of the training part's RMS, or levels
    of a spectrogram. Raises DataError for files that differ, and for several channels unless
    data.channels = 1 says to average them.
    """
    if config.channels not in (None, 1):
        raise DataError(f"data.channels = {config.channels}, but audio is learned with one: use 1")
    digest = hashlib.sha256()
    signals: dict[str, list[tuple[str, np.ndarray]]] = {}
    skipped: list[str] = []
    codec: AudioCodec | None = None
    total = 0
    arranged = arrange(found)
    if not any(label for files in arranged.values() for _, label in files):
        arranged = _by_name(found, arranged, config.label)
    elif config.label is not None:
        what = f"data.label = {config.label!r} chooses from the names of WAV files without folders"
        raise DataError(f"{what}, but {found.where} has them: leave it out")
    for part, files in arranged.items():
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
    waves = {part: (split.x / codec.scale).float()[:, None] for part, split in data.splits.items()}
    if config.audio == "spectrogram":
        own = {f.name: getattr(codec, f.name) for f in dataclasses.fields(codec)}
        codec = SpectrogramCodec(**own)
        loudest = float(codec.loudness(waves["train"]).max())
        codec = dataclasses.replace(codec, loudest=loudest)
        high, wide = codec.spec.size
        data.variant += f", as spectrograms of {high}x{wide}"
    for part, split in data.splits.items():
        split.x = codec.native(waves[part])
    return dataclasses.replace(data, codec=codec, spec=codec.spec)


def _by_name(
    found: Found, arranged: dict[str, list[tuple[str, str]]], label: str | None
) -> dict[str, list[tuple[str, str]]]:
    """Return part → (name, class) with the classes taken from names like 7_theo_12.wav."""
    if label == "0":
        return arranged
    words = {name: PurePosixPath(name).stem.split("_") for name in found.names}
    counts = {len(parts) for parts in words.values()}
    numbered = all(parts[-1].isdigit() for parts in words.values())
    if label is None:
        alike = len(counts) == 1 and min(counts) > 1 and numbered
        number = 1 if alike else 0
        # Names that are all different in it say nothing of a class.
        if alike and len({parts[0] for parts in words.values()}) > len(words) // 2:
            number = 0
    else:
        number = int(label) if label.isdigit() else 0
        if not 1 <= number <= min(counts):
            short = min(words, key=lambda name: len(words[name]))
            raise DataError(
                f"data.label = {label!r} is no part of the name {short!r}, which has {min(counts)} "
                "between underscores; count from 1, or use 0 for no class"
            )
    if not number:
        return arranged
    return {
        part: [(name, words[name][number - 1]) for name, _ in files]
        for part, files in arranged.items()
    }


def _cut(rows: list[tuple[str, np.ndarray]], classes: tuple[str, ...], length: int) -> _Blocks:
    blocks, labels = [], []
    for label, signal in rows:
        own = windows(signal, length)
        for start in range(0, len(own), _BLOCK):
            blocks.append(own[start : start + _BLOCK])
            labels.append(classes.index(label) if classes else 0)
    return _Blocks(blocks, torch.tensor(labels) if classes else None)
