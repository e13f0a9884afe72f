"""Denoising: data brought back to what a trained model can express, and how much that helped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from poiesis.apply.inputs import Inputs, Progress, in_batches, open_inputs
from poiesis.config import check
from poiesis.errors import CapabilityError, DataError, RunError
from poiesis.metrics.fidelity import psnr, ssim
from poiesis.models.autoencoders.denoising_autoencoder import Spoiling, spoil
from poiesis.models.capabilities import require
from poiesis.models.trained import Trained, load
from poiesis.rng import Noise
from poiesis.spec import Grid

__all__ = ["Denoised", "denoise"]

_SHOWN = 10


@dataclass(frozen=True)
class Denoised:
    """Native rows before and after, (n, *spec.shape), and numbers where the clean ones are known.

    psnr and ssim compare what was cleaned with the clean data, psnr_before and ssim_before the
    noisy data.
    """

    inputs: Inputs
    noisy: Tensor
    cleaned: Tensor
    clean: Tensor | None
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

    source, split, limit: as in `open_inputs`. clean: the same files without noise, by the same
    names, to compare with. add: the source is clean, spoil it first with this noise and level (as
    in the denoising autoencoder's options). out: a folder for the cleaned files and a sheet
    before-after.png; nothing is written before all is done. Raises CapabilityError for a model
    that can't reconstruct.
    """
    check("level", level, low=0, high=100 if add == "gaussian" else 1)
    if clean is not None and add is not None:
        raise DataError("give noisy data and --clean, or clean data and --add; not both")
    trained = load(run, checkpoint=checkpoint, device=device)
    require(trained.model, "reconstruct")
    if not isinstance(trained.data_spec, Grid):
        raise CapabilityError(f"this {trained.name} learned {trained.data_spec}, not images")
    inputs = open_inputs(trained, source, split=split, limit=limit)
    noisy, cleaned, wanted = _run(trained, inputs, add, level, seed, batch_size, progress)
    if clean is not None:
        wanted = _partners(open_inputs(trained, clean, split=split), inputs)
    numbers: dict[str, float] = {}
    if wanted is not None:
        peak = trained.data_spec.levels - 1
        numbers["psnr_before"] = psnr(noisy, wanted, peak=peak).value
        numbers["psnr"] = psnr(cleaned, wanted, peak=peak).value
        if min(trained.data_spec.size) >= 11:
            numbers["ssim_before"] = ssim(noisy, wanted, peak=peak).value
            numbers["ssim"] = ssim(cleaned, wanted, peak=peak).value
    found = Denoised(inputs, noisy, cleaned, wanted, numbers, [])
    if out is not None:
        found.paths.extend(_write(trained, found, Path(out)))
    return found


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
        raise DataError(
            f"{clean.where}: has no {missing[0]}, which {inputs.where} has; clean and noisy files "
            "are paired by name"
        )
    rows = [places[_stem(name)] for name in inputs.names]
    return torch.cat([clean.fetch(row, row + 1) for row in rows])


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _write(trained: Trained, found: Denoised, out: Path) -> list[Path]:
    codec = trained.codec
    paths = [out / f"{_stem(name)}{codec.suffix}" for name in found.inputs.names]
    if len(set(paths)) < len(paths):
        raise DataError(f"{found.inputs.where}: two files differ in their ending alone; rename one")
    try:
        for row, path in zip(found.cleaned, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            codec.write(codec.decode(row), path)
        columns = min(_SHOWN, len(found.cleaned))
        rows = [found.noisy, found.cleaned, *([] if found.clean is None else [found.clean])]
        raws = [codec.decode(row) for part in rows for row in part[:columns]]
        codec.preview(raws, columns).save(out / "before-after.png")
    except OSError as error:
        raise RunError(f"can't write to {str(out)!r}: {error.strerror or error}") from None
    return paths
