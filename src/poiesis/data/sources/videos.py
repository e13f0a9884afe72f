"""Clips: animations, films, strips of frames and folders of numbered frames, cut into windows.

Each window of consecutive frames is a row; parts are cut by clip, so that no two windows of a clip
are in different ones. Shape letters: t frames, h height, w width, c channels.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.data.codecs import VideoCodec
from poiesis.data.codecs.image import convert, fit
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.arrays import describe
from poiesis.data.sources.images import Found, arrange
from poiesis.data.sources.splits import Images, assemble
from poiesis.errors import ConfigError, DataError
from poiesis.files import (
    ANIMATION_SUFFIXES,
    FILM_SUFFIXES,
    IMAGE_SUFFIXES,
    USUAL_RATE,
    is_animation,
    read_clip,
    read_image,
)

__all__ = ["SUFFIXES", "ClipSplit", "clips_in", "open_clips", "refuse_options"]

SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *ANIMATION_SUFFIXES, *FILM_SUFFIXES)))
"""Endings of files that may be clips, or images."""
_FEWEST = 3


class ClipSplit:
    """Windows of consecutive frames, all of each clip's; the frames are in memory once.

    frames: uint8 (all frames, c, h, w). starts, clip: int64 (n,), each window's first frame and the
    number of its clip. length, step: frames of a window, and from one of them to the next.
    """

    def __init__(
        self, clips: list[np.ndarray], y: Tensor | None, *, length: int, step: int
    ) -> None:
        counts = [len(clip) - (length - 1) * step for clip in clips]
        firsts = np.cumsum([0, *[len(clip) for clip in clips[:-1]]])
        runs = [np.arange(n) + first for n, first in zip(counts, firsts, strict=True)]
        self.frames = torch.from_numpy(np.concatenate(clips))
        self.starts = torch.from_numpy(np.concatenate(runs))
        self.clip = torch.arange(len(clips)).repeat_interleave(torch.tensor(counts))
        self.y = None if y is None else y[self.clip]
        self._offsets = torch.arange(length) * step

    def __len__(self) -> int:
        return len(self.starts)

    def fetch(
        self, positions: Tensor, epochs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the windows at `positions`, uint8 (b, c, t, h, w)."""
        where = self.starts[positions, None] + self._offsets
        x = self.frames.index_select(0, where.flatten()).unflatten(0, where.shape)
        return x.transpose(1, 2).contiguous(), None if self.y is None else self.y[positions]


@dataclass
class _Clips:
    """Clips of one part, uint8 (t, c, h, w) each."""

    clips: list[np.ndarray]
    y: Tensor | None
    length: int
    step: int

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, positions: Tensor) -> ClipSplit:
        """Return all windows of these clips."""
        chosen = [self.clips[place] for place in positions.tolist()]
        y = None if self.y is None else self.y[positions]
        return ClipSplit(chosen, y, length=self.length, step=self.step)

    def binarize(self, kind: str, part: str) -> Any:
        """Refuse."""
        raise ConfigError("data.binarize is for images; video has all its levels")


def refuse_options(config: DataConfig) -> None:
    """Raise ConfigError for options that video can't have."""
    if config.channels == 4:
        raise ConfigError("data.channels = 4, but video is grey (1) or RGB (3)")
    if config.attributes:
        raise ConfigError("data.attributes is for tables and images; video has classes")


def clips_in(found: Found, config: DataConfig) -> Found | None:
    """Return the clips among files of `SUFFIXES`; None where they are still images.

    Films come before animations; of the latter those with the ending whose first file moves.
    """
    if config.clips != "files":
        return found
    films = [name for name in found.names if name.lower().endswith(FILM_SUFFIXES)]
    if films:
        return Found(found.where, films, found.read, found.ignored)
    for suffix in ANIMATION_SUFFIXES:
        names = [name for name in found.names if name.lower().endswith(suffix)]
        if names and is_animation(found.read(names[0])):
            return Found(found.where, names, found.read, found.ignored)
    return None


class _Reader:
    """Reads one clip as the options say: uint8 (t, h, w, c), and its frames a second."""

    def __init__(self, found: Found, config: DataConfig) -> None:
        self.found, self.config = found, config
        self.frames: dict[str, list[str]] = {}
        if config.clips == "folders":
            for name in found.names:
                self.frames.setdefault(str(PurePosixPath(name).parent), []).append(name)
            if "." in self.frames:
                what = f"{self.frames['.'][0]} lies in no folder of its clip"
                raise DataError(f"{found.where}: {what}; give each clip's frames a folder")

    @property
    def clips(self) -> list[str]:
        """Names of the clips."""
        return sorted(self.frames) if self.frames else self.found.names

    def read(self, clip: str, most: int) -> tuple[np.ndarray, float, bytes]:
        """Return frames, rate and the hash of a clip's bytes; raises DataError."""
        name = f"{self.found.where}/{clip}"
        if self.frames:
            names = sorted(self.frames[clip], key=_numbers)
            images = [self.found.read(file) for file in names]
            frames = [self._pixels(name)(read_image(data, name)) for data in images]
            return _together(frames, name), USUAL_RATE, hashlib.sha256(b"".join(images)).digest()
        data = self.found.read(clip)
        digest = hashlib.sha256(data).digest()
        if self.config.clips == "strips":
            strip = read_image(data, name)
            side = strip.height
            if strip.width % side:
                what = f"has {strip.width} x {side} pixels, no row of square frames"
                raise DataError(f"{name}: {what}; use --skip-bad to leave it out")
            boxes = [(at, 0, at + side, side) for at in range(0, strip.width, side)]
            frames = [self._pixels(name)(strip.crop(box)) for box in boxes]
            return np.stack(frames), USUAL_RATE, digest
        frames, rate = read_clip(data, name, self._pixels(name), most=most)
        return frames, rate, digest

    def _pixels(self, name: str) -> Callable[[Image.Image], np.ndarray]:
        channels, resize, crop = self.config.channels or 3, self.config.resize, self.config.crop

        def pixels(frame: Image.Image) -> np.ndarray:
            image = fit(convert(frame, channels, name), resize, crop, name)
            return np.array(image).reshape(image.height, image.width, -1)

        return pixels


def _numbers(name: str) -> list[Any]:
    """Return a key that sorts frame 10 after frame 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _together(frames: list[np.ndarray], name: str) -> np.ndarray:
    if len({frame.shape for frame in frames}) > 1:
        raise DataError(f"{name}: has frames of several sizes; use --data.resize N")
    return np.stack(frames)


def open_clips(found: Found, name: str, config: DataConfig) -> DataSet:
    """Return all windows of data.frames frames of the clips, by the layout of their paths.

    That is as for images: folders are classes, train/, val/ and test/ official parts. Clips that
    are grey throughout are learned as one channel. Raises DataError for clips that differ in size,
    are too short or too many for memory, ConfigError for options that don't fit.
    """
    refuse_options(config)
    reader = _Reader(found, config)
    need = (config.frames - 1) * config.frame_step + 1
    clips: dict[str, list[tuple[str, np.ndarray]]] = {}
    shapes: Counter[tuple[int, ...]] = Counter()
    rates: Counter[float] = Counter()
    examples: dict[tuple[int, ...], str] = {}
    skipped: list[str] = []
    digest, size, budget = hashlib.sha256(), 0, int(config.memory * 1e9)
    for part, files in arrange(Found(found.where, reader.clips, found.read)).items():
        for clip, label in files:
            try:
                frames, rate, own = reader.read(clip, budget)
                if len(frames) < need:
                    way = f"--data.frames {max(2, len(frames))}, or --skip-bad to leave it out"
                    what = f"has {len(frames)} frames, fewer than the {need} of a window"
                    raise DataError(f"{found.where}/{clip}: {what}; use {way}")
            except DataError as error:
                if not config.skip_bad:
                    raise
                skipped.append(str(error))
                continue
            digest.update(own)
            size += frames.nbytes
            if size > budget:
                what = f"the frames take more than --data.memory {config.memory} GB"
                raise DataError(f"{found.where}: {what}: raise it, resize, or give fewer clips")
            shapes[frames.shape[1:]] += 1
            rates[round(rate, 3)] += 1
            examples.setdefault(frames.shape[1:], clip)
            clips.setdefault(part, []).append((label, frames))
    if sum(shapes.values()) < _FEWEST:
        count = sum(shapes.values())
        what = f"{count} clip{'s' * (count != 1)}" + (f" ({skipped[0]})" if skipped else "")
        raise DataError(f"{found.where}: {what}: parts are cut by clip; give {_FEWEST} or more")
    if len(shapes) > 1:
        listed = ", ".join(
            f"{n} of {s[1]}x{s[0]} ({examples[s]})" for s, n in shapes.most_common(3)
        )
        raise DataError(f"{found.where}: clips of different sizes: {listed}; use --data.resize N")
    everything = [frames for rows in clips.values() for _, frames in rows]
    grey = config.channels is None and all(_is_grey(frames) for frames in everything)
    height, width, channels = next(iter(shapes))
    film = found.names[0].lower().endswith(FILM_SUFFIXES)
    codec = VideoCodec(
        channels=1 if grey else channels,
        frames=config.frames,
        size=(height, width),
        rate=rates.most_common(1)[0][0] / config.frame_step,
        format="mp4" if film and config.clips == "files" else "gif",
        resize=config.resize,
        crop=config.crop,
    )
    classes = tuple(sorted({label for rows in clips.values() for label, _ in rows}))
    classes = classes if len(classes) > 1 else ()
    parts = {
        part: _Clips(
            [frames[..., : codec.channels].transpose(0, 3, 1, 2) for _, frames in rows],
            torch.tensor([classes.index(label) for label, _ in rows]) if classes else None,
            config.frames,
            config.frame_step,
        )
        for part, rows in clips.items()
    }
    every = f", every {_ordinal(config.frame_step)}" if config.frame_step > 1 else ""
    steps = [f"windows of {config.frames} frames{every}", *describe(config)]
    notes = {
        "origin": str(found.where),
        "ignored": found.ignored,
        "frames": sum(map(len, everything)),
        "frames a second": codec.rate * config.frame_step,
        "content": digest.hexdigest(),
    }
    images = Images(name, parts, codec, classes, steps, skipped, notes, rows="clips")
    data = assemble(images, config)
    data.notes["clips"] = data.notes["counts"]
    data.notes["counts"] = {split: len(rows) for split, rows in data.splits.items()}
    return data


def _is_grey(frames: np.ndarray) -> bool:
    return bool((frames == frames[..., :1]).all())


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")
