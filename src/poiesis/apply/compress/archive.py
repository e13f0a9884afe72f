"""The verbs `compress` and `decompress`: images to a .psis file and back."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from poiesis.apply.compress.chunks import Lossless, Lossy, Packer, WrongContent, plain
from poiesis.apply.compress.container import Header, pack_names, read, to_bytes
from poiesis.apply.inputs import Inputs, Progress, in_batches, open_inputs
from poiesis.config import check
from poiesis.errors import CapabilityError, ConfigError, DataError, RunError
from poiesis.metrics.fidelity import psnr
from poiesis.models.trained import Trained, load, load_exact
from poiesis.runs import environment, write_atomic
from poiesis.spec import Grid

__all__ = ["Compressed", "Decompressed", "compress", "decompress"]

_CHUNK = 1 << 22
"""Bytes of plain levels in a chunk, about."""


@dataclass(frozen=True)
class Compressed:
    """What was compressed and what came of it.

    numbers: bytes of the file; bits_per_dim, all bytes counted; ratio of the plain levels to them;
    chunks, and plain_chunks that the model would have made larger; encode_per_second and
    decode_per_second, in images; of a lossy file psnr in dB.
    """

    inputs: Inputs
    numbers: dict[str, float]
    path: Path


@dataclass(frozen=True)
class Decompressed:
    """Names and native rows, uint8 (n, c, h, w); files written; numbers: decode_per_second."""

    names: list[str]
    rows: Tensor
    numbers: dict[str, float]
    paths: list[Path]


def compress(
    run: str | Path,
    source: str = "",
    *,
    out: str | Path,
    quality: float | None = None,
    split: str = "test",
    limit: int | None = None,
    checkpoint: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Compressed:
    """Compress images with a trained model into the file `out`, which ends in .psis.

    source, split, limit: as in `open_inputs`. quality: None is lossless, by a model that has the
    capability bits_back or conditionals; else 1…100, by one that can encode and decode. Each chunk
    is decoded and compared before the file is written. Computed on the CPU with as many threads as
    torch has now, which the file notes. Raises CapabilityError for another model, DataError for
    images that the run's format would change.
    """
    out = Path(out)
    if out.suffix != ".psis":
        raise ConfigError(f"{str(out)!r} doesn't end in .psis; name such a file")
    check("quality", quality, low=1, high=100)
    check("batch_size", batch_size, low=1, high=1024)
    trained = load(run, checkpoint=checkpoint, device="cpu")
    spec = _images(trained)
    inputs = open_inputs(trained, source, split=split, limit=limit, exact=quality is None)
    labels = _labels(trained, inputs)
    seconds = {"encode": 0.0, "decode": 0.0}
    if quality is None:
        packer: Packer = Lossless(trained, batch_size, labels)
        facts: dict[str, Any] = {}
    else:
        packer = Lossy(trained, batch_size, labels)
        with _timed(seconds, "encode"):
            packer.look(inputs, quality, progress)
        facts = {"quality": quality, "step_size": packer.step, "latents": packer.shapes}
    chunks, total_psnr = [], 0.0
    per_chunk = max(1, _CHUNK // spec.dims)
    for start in range(0, len(inputs), per_chunk):
        rows = inputs.fetch(start, min(len(inputs), start + per_chunk))
        with _timed(seconds, "encode"):
            chunk, data = packer.pack(rows, start, _advance(progress, "encoded", len(inputs)))
        try:
            with _timed(seconds, "decode"):
                advance = _advance(progress, "decoded again", len(inputs))
                found = packer.unpack(chunk, data, start, advance)
        except WrongContent:
            # The model's arithmetic isn't the same twice: keep the plain levels.
            (chunk, data), found = plain(rows), rows
        chunks.append((chunk, data))
        total_psnr += psnr(found, rows, peak=spec.levels - 1).value * len(rows)
    header = Header(
        model=trained.name,
        model_hash=trained.model_hash,
        step=trained.step,
        run=str(trained.run.path),
        machine=_machine(),
        shape=spec.shape,
        levels=spec.levels,
        rows=len(inputs),
        names=pack_names(inputs.names),
        batch_size=batch_size,
        labels=None if labels is None else tuple(labels.tolist()),
        **facts,
    )
    packed = to_bytes(header, chunks)
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, packed)
    dims = len(inputs) * spec.dims
    numbers = {
        "bytes": len(packed),
        "bits_per_dim": 8 * len(packed) / dims,
        "ratio": dims / len(packed),
        "chunks": len(chunks),
        "plain_chunks": sum(chunk.method == "deflate" for chunk, _ in chunks),
        "encode_per_second": len(inputs) / seconds["encode"],
        "decode_per_second": len(inputs) / seconds["decode"],
    }
    if quality is not None:
        numbers["psnr"] = total_psnr / len(inputs)
    return Compressed(inputs, numbers, out)


def decompress(
    file: str | Path,
    *,
    out: str | Path | None = None,
    run: str | Path | None = None,
    progress: Progress | None = None,
) -> Decompressed:
    """Return the images of a file that `compress` wrote; write them into the folder `out`.

    run: where the run lies now, if it moved. Computed with as many threads as the file notes.
    Nothing is written unless all of it was decoded and is what was encoded. Raises DataError for
    a file that is damaged or that this machine's arithmetic can't decode, RunError if the run does
    not hold the model that made it.
    """
    file = Path(file)
    archive = read(file)
    header = archive.header
    where = header.run if run is None else run
    trained = load_exact(where, header.model_hash, header.step, file=file, device="cpu")
    spec = _images(trained)
    if (spec.shape, spec.levels) != (header.shape, header.levels):
        raise DataError(f"{file}: holds {header.shape}, but {str(where)!r} learned {spec}")
    labels = None if header.labels is None else torch.tensor(header.labels)
    if (labels is None) != (trained.model.condition is None) or (
        labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < _classes(trained)
    ):
        raise DataError(f"{file}: is damaged (its classes); fetch it again")
    packer: Packer
    began, rows, start = time.perf_counter(), [], 0
    with _threads(header.machine.get("threads")):
        try:
            if header.quality is None:
                packer = Lossless(trained, header.batch_size, labels)
            else:
                size, latents = header.step_size, header.latents
                packer = Lossy(trained, header.batch_size, labels, size, latents)
            for chunk, data in archive.chunks:
                advance = _advance(progress, "decoded", header.rows)
                rows.append(packer.unpack(chunk, data, start, advance))
                start += chunk.rows
        except (WrongContent, TypeError, ValueError, RuntimeError, ConfigError) as error:
            raise _undecoded(file, header.machine, error) from None
    numbers = {"decode_per_second": header.rows / (time.perf_counter() - began)}
    found = Decompressed(archive.names, torch.cat(rows), numbers, [])
    if out is not None:
        found.paths.extend(_write(trained, found, Path(out), file))
    return found


def _images(trained: Trained) -> Grid:
    spec = trained.data_spec
    if not isinstance(spec, Grid):
        raise CapabilityError(f"this {trained.name} learned {spec}; compression takes images")
    return spec


def _labels(trained: Trained, inputs: Inputs) -> Tensor | None:
    if trained.model.condition is None:
        return None
    next(in_batches(trained, inputs, batch_size=1))  # raises where classes are not known
    return torch.tensor(inputs.labels)


def _classes(trained: Trained) -> int:
    return 0 if trained.model.condition is None else trained.model.condition.count


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[what] += time.perf_counter() - began


def _advance(progress: Progress | None, what: str, total: int) -> Callable[[int], None]:
    return lambda count: progress(what, count, total) if progress is not None else None


# -- the machine -----------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    """Return what the last bits of the arithmetic depend on."""
    here = environment()
    return {
        "torch": here["versions"]["torch"],
        "constriction": metadata.version("constriction"),
        "processor": here["processor"],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def _threads(count: Any) -> Iterator[None]:
    """Compute with as many threads as a file notes, as far as that is a sensible number."""
    before = torch.get_num_threads()
    if isinstance(count, int) and 1 <= count <= 1024:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _undecoded(file: Path, machine: dict[str, Any], error: Exception) -> DataError:
    here = _machine()
    other = [
        f"{name} {machine.get(name)} (here {value})"
        for name, value in here.items()
        if name != "threads" and machine.get(name) != value
    ]
    if other:
        return DataError(
            f"{file}: was made with {', '.join(other)}, whose arithmetic differs in the last "
            "bits, so it can't be decoded here; decompress it where it was made"
        )
    return DataError(
        f"{file}: decodes to something else than was encoded ({error}), though versions and "
        "processor are those it notes; decompress it where it was made"
    )


# -- files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"can't write to {str(path)!r}: {error.strerror or error}") from None


def _write(trained: Trained, found: Decompressed, out: Path, file: Path) -> list[Path]:
    """Write the files beside `out` first, so that they all come to be there or none."""
    codec = trained.codec
    names = [str(PurePosixPath(name).with_suffix(codec.suffix)) for name in found.names]
    if len(set(names)) < len(names):
        raise DataError(f"{file}: two of its names differ in their ending alone")
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            for name, row in zip(names, found.rows, strict=True):
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                codec.write(codec.decode(row), path)
            for name in names:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(folder) / name, out / name)
    return [out / name for name in names]
