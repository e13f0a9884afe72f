"""Chunks: consecutive samples to bytes and back, by the coder that the model can serve.

Shape letters: c channels, d numbers of a sample's latents, h height, n rows, w width.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from poiesis import registry
from poiesis.apply.compress.autoregressive import AutoregressiveCoder
from poiesis.apply.compress.container import Chunk, Method
from poiesis.apply.compress.lossless import BitsBackCoder
from poiesis.apply.compress.lossy import LatentCoder, flat, parts, step_size, unflat
from poiesis.apply.inputs import Inputs, Progress, in_batches
from poiesis.errors import CapabilityError, DataError
from poiesis.models.capabilities import of, require
from poiesis.models.trained import Trained

__all__ = ["Lossless", "Lossy", "Packer", "WrongContent", "plain"]

Done = Callable[[int], None]
_MAX_DIMS = 1 << 24


class WrongContent(DataError):
    """What was decoded is not what was encoded: another machine's arithmetic, or damage."""


class Packer(Protocol):
    """Packs rows start… of a file to a chunk and its bytes, and unpacks them."""

    def pack(self, rows: Tensor, start: int, done: Done) -> tuple[Chunk, bytes]:
        """Return the chunk of native rows, uint8 (n, c, h, w), and its bytes."""
        ...

    def unpack(self, chunk: Chunk, data: bytes, start: int, done: Done) -> Tensor:
        """Return the rows of a chunk; raises WrongContent."""
        ...


def plain(rows: Tensor) -> tuple[Chunk, bytes]:
    """Return the chunk that holds rows without a model."""
    levels = rows.contiguous().numpy().tobytes()
    data = zlib.compress(levels, 9)
    return _chunk("deflate", len(rows), data, levels), data


def _chunk(method: Method, rows: int, data: bytes, content: bytes, **more: Any) -> Chunk:
    return Chunk(
        method=method,
        rows=rows,
        size=len(data),
        crc=zlib.crc32(data),
        content=zlib.crc32(content),
        **more,
    )


def _unplain(chunk: Chunk, data: bytes, shape: tuple[int, ...]) -> Tensor:
    size = chunk.rows * math.prod(shape)
    unpack = zlib.decompressobj()
    try:
        levels = unpack.decompress(data, size + 1)
    except zlib.error:
        levels = b""
    if len(levels) != size or not unpack.eof:
        raise WrongContent("a plain chunk")
    found = torch.from_numpy(np.frombuffer(levels, np.uint8).copy())
    return found.view(chunk.rows, *shape)


def _words(data: bytes) -> np.ndarray:
    """Return bytes as a stack's words; raises WrongContent for what no stack leaves behind."""
    words = np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.uint32)
    if len(data) % 4 or not len(words) or not words[-1]:
        raise WrongContent("a chunk's words")
    return words


class Lossless:
    """With a model of the levels: bits-back coding, or one value after another."""

    def __init__(self, trained: Trained, batch_size: int, labels: Tensor | None) -> None:
        able = of(trained.model)
        coders = {"bits_back": BitsBackCoder, "conditionals": AutoregressiveCoder}
        found = [coder for name, coder in coders.items() if name in able]
        if not found:
            every = [name for name in registry.names() if set(coders) & set(_able(name))]
            raise CapabilityError(
                f"this {trained.name} gives levels no probabilities, which lossless coding needs; "
                f"models that do: {', '.join(every)}; or compress with --quality"
            )
        self.coder = found[0](trained.model, trained.view, batch_size)
        self.shape = trained.data_spec.shape
        self.labels = labels

    def pack(self, rows: Tensor, start: int, done: Done) -> tuple[Chunk, bytes]:
        """Return the chunk of rows, plain where the model would make it larger."""
        words, sizes = self.coder.encode(rows, self._part(start, len(rows)), done)
        data = words.astype("<u4").tobytes()
        chunk, unmodelled = plain(rows)
        if len(data) >= len(unmodelled):
            return chunk, unmodelled
        levels = rows.contiguous().numpy().tobytes()
        return _chunk(self.coder.method, len(rows), data, levels, batches=_runs(sizes)), data

    def unpack(self, chunk: Chunk, data: bytes, start: int, done: Done) -> Tensor:
        """Return the rows of a chunk; raises WrongContent."""
        if chunk.method == "deflate":
            rows = _unplain(chunk, data, self.shape)
        else:
            sizes = _sizes(chunk, self.coder.batch_size)
            if chunk.method != self.coder.method:
                raise WrongContent(f"a chunk in {chunk.method}")
            labels = self._part(start, chunk.rows)
            rows = self.coder.decode(_words(data), sizes, labels, done)
        if zlib.crc32(rows.contiguous().numpy().tobytes()) != chunk.content:
            raise WrongContent("a chunk's levels")
        return rows

    def _part(self, start: int, n: int) -> Tensor | None:
        return None if self.labels is None else self.labels[start : start + n]


def _able(name: str) -> list[str]:
    return of(registry.model_class(name))


class Lossy:
    """With a model that encodes and decodes: its latents on a grid of steps."""

    def __init__(
        self,
        trained: Trained,
        batch_size: int,
        labels: Tensor | None,
        step: float = 1.0,
        shapes: Mapping[str, Any] | None = None,
    ) -> None:
        require(trained.model, "encode")
        require(trained.model, "decode")
        self.trained, self.batch_size, self.labels = trained, batch_size, labels
        self.step = step
        self.shapes: dict[str, list[int]] = {}
        for name, shape in (shapes or {}).items():
            self.shapes[str(name)] = [int(side) for side in shape]
        self.numbers = np.empty((0, 0), np.int32)
        if not 0 < step < math.inf or not 1 <= self._dims() <= _MAX_DIMS:
            raise DataError(f"latents {self.shapes} in steps of {step}")

    def _dims(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values()) if self.shapes else 1

    @torch.no_grad()
    def look(self, inputs: Inputs, quality: float, progress: Progress | None) -> None:
        """Encode all inputs: the grid depends on all of their latents."""
        model: Any = self.trained.model
        batches = in_batches(
            self.trained, inputs, batch_size=self.batch_size, what="latents", progress=progress
        )
        found = [parts(model.encode(x, y)) for _, _, x, y in batches]
        latents = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        self.shapes = {name: list(values.shape[1:]) for name, values in latents.items()}
        self.step = step_size(latents, quality)
        self.numbers = flat(latents, self.step)

    def pack(self, rows: Tensor, start: int, done: Done) -> tuple[Chunk, bytes]:
        """Return the chunk of the latents of rows, plain levels where that is larger."""
        numbers = self.numbers[start : start + len(rows)]
        low, high = int(numbers.min()), int(numbers.max())
        data = LatentCoder(numbers.shape[1], low, high).encode(numbers).astype("<u4").tobytes()
        chunk, unmodelled = plain(rows)
        done(len(rows))
        if len(data) >= len(unmodelled):
            return chunk, unmodelled
        content = numbers.astype("<i4").tobytes()
        return _chunk("latents", len(rows), data, content, ranges=(low, high)), data

    @torch.no_grad()
    def unpack(self, chunk: Chunk, data: bytes, start: int, done: Done) -> Tensor:
        """Return the rows of a chunk; raises WrongContent."""
        if chunk.method == "deflate":
            return _unplain(chunk, data, self.trained.data_spec.shape)
        if chunk.method != "latents" or len(chunk.ranges) != 2 or not self.shapes:
            raise WrongContent(f"a chunk in {chunk.method}")
        coder = LatentCoder(self._dims(), *chunk.ranges)
        numbers = coder.decode(_words(data), chunk.rows)
        if zlib.crc32(numbers.astype("<i4").tobytes()) != chunk.content:
            raise WrongContent("a chunk's latents")
        model: Any = self.trained.model
        found = []
        for at in range(0, chunk.rows, self.batch_size):
            part = numbers[at : at + self.batch_size]
            labels = None
            if self.labels is not None:
                labels = self.labels[start + at : start + at + len(part)]
            x = model.decode(unflat(part, self.shapes, self.step), labels)
            found.append(self.trained.view.invert(x))
            done(len(part))
        return torch.cat(found)


def _runs(sizes: list[int]) -> tuple[int, ...]:
    """Return sizes as (size, how often it follows, next size, …)."""
    runs: list[int] = []
    for size in sizes:
        if runs and runs[-2] == size:
            runs[-1] += 1
        else:
            runs += [size, 1]
    return tuple(runs)


def _sizes(chunk: Chunk, most: int) -> list[int]:
    """Return the sizes of a chunk's batches; raises WrongContent if they aren't its rows."""
    runs = list(zip(chunk.batches[::2], chunk.batches[1::2], strict=True))
    if sum(n * count for n, count in runs) != chunk.rows or max(n for n, _ in runs) > most:
        raise WrongContent("a chunk's batches")
    return [n for n, count in runs for _ in range(count)]
