"""Denoising: data brought back to what a trained model can express, and how much that helped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from poiesis.apply.inputs import Inputs, Progress, in_batches, open_inputs
from poiesis.apply.recordings import cut, join, open_recordings
from poiesis.config import check
from poiesis.data.codecs import AudioCodec, ImageCodec, SpectrogramCodec, VectorCodec
from poiesis.errors import CapabilityError, DataError, RunError
from poiesis.metrics.fidelity import psnr, snr, ssim
from poiesis.models.autoencoders.denoising_autoencoder import Spoiling, spoil
from poiesis.models.capabilities import require
from poiesis.models.trained import Trained, load
from poiesis.rng import Noise

__all__ = ["Denoised", "denoise"]

Rows = Tensor | list[Tensor]
_SHOWN, _HEARD, _POINTS = 10, 4, 2000
"""Pictures, recordings and rows in before-after.png."""


@dataclass(frozen=True)
class Denoised:
    """Native rows before and after, (n, *spec.shape), and numbers where the clean ones are known.

    Of WAV files each row is a whole recording, (1, samples). psnr and ssim (sound and vectors:
    snr) compare what was cleaned with the clean data, psnr_before and so on the noisy data.
    """

    inputs: Inputs
    noisy: Rows
    cleaned: Rows
    clean: Rows | None
    numbers: dict[str, float]
    paths: list[Path]


def denoise(
    run: str | Path,
    source: str = "",
    *,
    out: str | Path | None = None,
    clean: str | None = None,
    add: Spoiling | None = None,
    level: float = 0.5,
    seed: int = 0,
    split: str = "test",
    limit: int | None = None,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Denoised:
    """Clean data with a trained model that reconstructs; best one that was trained on such noise.

    source, split, limit: as in `open_inputs`; WAV files are cleaned whole, whatever their length.
    clean: the same files without noise, by the same names (tables: by row), to compare with. add:
    the source is clean, spoil it first with this noise and level (as in the denoising
    autoencoder's options). out: a folder for the cleaned files (of a table: cleaned.csv) and a
    sheet before-after.png; nothing is written before all is done. Raises CapabilityError for a
    model that can't reconstruct.
    """
    check("level", level, low=0, high=100 if add == "gaussian" else 1)
    if clean is not None and add is not None:
        raise DataError("give noisy data and --clean, or clean data and --add; not both")
    trained = load(run, checkpoint=checkpoint, device=device)
    require(trained.model, "reconstruct")
    codec = trained.codec
    if isinstance(codec, SpectrogramCodec):
        raise CapabilityError(
            "this run learned spectrograms, which don't hold all of a recording; denoise with a "
            "model of its samples (--data.audio waveform)"
        )
    if not isinstance(codec, AudioCodec | ImageCodec | VectorCodec):
        raise CapabilityError(
            f"this {trained.name} learned {trained.data_spec}, which has no noise"
        )
    path = Path(source).expanduser()
    if isinstance(codec, AudioCodec) and source and path.exists():
        found = _whole_recordings(
            trained, codec, path, clean, add, level, seed, limit, batch_size, progress
        )
    else:
        inputs = open_inputs(trained, source, split=split, limit=limit)
        noisy, cleaned, wanted = _run(trained, inputs, add, level, seed, batch_size, progress)
        if clean is not None:
            wanted = _partners(open_inputs(trained, clean, split=split), inputs)
        found = Denoised(inputs, noisy, cleaned, wanted, {}, [])
    if found.clean is not None:
        found.numbers.update(_numbers(codec, found.noisy, found.cleaned, found.clean))
    if out is not None:
        found.paths.extend(_write(trained, found, Path(out)))
    return found


def _numbers(
    codec: AudioCodec | ImageCodec | VectorCodec,
    noisy: Rows,
    cleaned: Rows,
    clean: Rows,
) -> dict[str, float]:
    numbers: dict[str, float] = {}
    if not isinstance(codec, ImageCodec):
        # Each number counts alike: of a recording its samples, of a row its columns.
        before, after, wanted = (
            torch.cat([row.flatten() for row in rows])[:, None] for rows in (noisy, cleaned, clean)
        )
        numbers["snr_before"] = snr(before, wanted).value
        numbers["snr"] = snr(after, wanted).value
        return numbers
    before, after, wanted = (torch.stack(list(rows)) for rows in (noisy, cleaned, clean))
    peak = codec.levels - 1
    numbers["psnr_before"] = psnr(before, wanted, peak=peak).value
    numbers["psnr"] = psnr(after, wanted, peak=peak).value
    if min(codec.size) >= 11:
        numbers["ssim_before"] = ssim(before, wanted, peak=peak).value
        numbers["ssim"] = ssim(after, wanted, peak=peak).value
    return numbers


@torch.no_grad()
def _whole_recordings(
    trained: Trained,
    codec: AudioCodec,
    path: Path,
    clean: str | None,
    add: Spoiling | None,
    level: float,
    seed: int,
    limit: int | None,
    batch_size: int,
    progress: Progress | None,
) -> Denoised:
    """Clean WAV files: windows that overlap by half, reconstructed and faded into each other."""
    found = open_recordings(codec, path, limit)
    noisy, wanted = found.signals, None
    if add is not None:
        wanted, noisy = noisy, []
        for place, signal in enumerate(wanted):
            spec = dataclasses.replace(codec.spec, size=(signal.shape[1],))
            noise = Noise(seed, range(place, place + 1))
            noisy.append(spoil(signal[None], spec, noise, noise=add, level=level)[0])
    parts = [cut(signal, codec.length) for signal in noisy]
    rows = torch.cat(parts)
    inputs = Inputs(found.where, [""] * len(rows), None, lambda start, end: rows[start:end])
    _, cleaned, _ = _run(trained, inputs, None, level, seed, batch_size, progress)
    joined = [
        join(part, signal.shape[1])
        for part, signal in zip(cleaned.split([len(part) for part in parts]), noisy, strict=True)
    ]
    files = Inputs(found.where, found.names, None, lambda start, end: torch.empty(0))
    if clean is not None:
        other = open_recordings(codec, Path(clean).expanduser())
        by_name = dict(zip(map(_stem, other.names), other.signals, strict=True))
        wanted = []
        for name, signal in zip(found.names, noisy, strict=True):
            partner = by_name.get(_stem(name))
            if partner is None:
                raise _no_partner(other.where, name, found.where)
            if partner.shape != signal.shape:
                have = f"{partner.shape[1]:,} samples, the noisy one {signal.shape[1]:,}"
                raise DataError(f"{other.where}: {name} has {have}; give the same recording")
            wanted.append(partner)
    return Denoised(files, noisy, joined, wanted, {}, [])


def _no_partner(where: str, name: str, other: str) -> DataError:
    return DataError(
        f"{where}: has no {name}, which {other} has; clean and noisy files are paired by name"
    )


@torch.no_grad()
def _run(
    trained: Trained,
    inputs: Inputs,
    add: Spoiling | None,
    level: float,
    seed: int,
    batch_size: int,
    progress: Progress | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return noisy and cleaned rows, and the clean ones if the noise was added here."""
    model: Any = trained.model
    noisy, cleaned, wanted = [], [], []
    batches = in_batches(trained, inputs, batch_size=batch_size, what="cleaned", progress=progress)
    for start, end, x, y in batches:
        if add is not None:
            wanted.append(trained.view.invert(x.cpu()))
            noise = Noise(seed, range(start, end), device=x.device)
            x = spoil(x, model.spec, noise, noise=add, level=level)
        noisy.append(trained.view.invert(x.cpu()))
        cleaned.append(trained.view.invert(model.reconstruct(x, y).cpu()))
    return torch.cat(noisy), torch.cat(cleaned), torch.cat(wanted) if wanted else None


def _partners(clean: Inputs, inputs: Inputs) -> Tensor:
    """Return the clean rows by the names of the noisy ones; a suffix may differ."""
    places = {_stem(name): place for place, name in enumerate(clean.names)}
    missing = [name for name in inputs.names if _stem(name) not in places]
    if missing:
        raise _no_partner(clean.where, missing[0], inputs.where)
    rows = [places[_stem(name)] for name in inputs.names]
    return torch.cat([clean.fetch(row, row + 1) for row in rows])


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _write(trained: Trained, found: Denoised, out: Path) -> list[Path]:
    codec = trained.codec
    if isinstance(codec, VectorCodec):
        paths = [out / f"cleaned{codec.suffix}"]
    else:
        paths = [out / f"{_stem(name)}{codec.suffix}" for name in found.inputs.names]
    if len(set(paths)) < len(paths):
        raise DataError(f"{found.inputs.where}: two files differ in their ending alone; rename one")
    sets = [found.noisy, found.cleaned, *([] if found.clean is None else [found.clean])]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(codec, VectorCodec):
            noisy, cleaned = ([codec.decode(row) for row in rows] for rows in sets[:2])
            codec.write_table(cleaned, paths[0], classes=_class_names(trained, found.inputs))
            names = ("cleaned", "before")
            sheet = codec.preview(cleaned[:_POINTS], behind=noisy[:_POINTS], names=names)
        else:
            for row, path in zip(found.cleaned, paths, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                codec.write(codec.decode(row), path)
            columns = min(_SHOWN if isinstance(codec, ImageCodec) else _HEARD, len(found.cleaned))
            raws = [codec.decode(row) for rows in sets for row in rows[:columns]]
            sheet = codec.preview(raws, columns)
        sheet.save(out / "before-after.png")
    except OSError as error:
        raise RunError(f"can't write to {str(out)!r}: {error.strerror or error}") from None
    return paths


def _class_names(trained: Trained, inputs: Inputs) -> list[str] | None:
    names = trained.condition.names if trained.condition is not None else ()
    return [names[label] for label in inputs.labels] if names and inputs.labels else None
