"""Samples as files: drawn from a run with their recipe inside, and made again from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from poiesis import config as configs
from poiesis import processes
from poiesis.data.dataset import TableCodec
from poiesis.errors import PoiesisWarning, RunError
from poiesis.models.pictures import show
from poiesis.models.trained import Progress, Trained, load, load_exact
from poiesis.sampling.counting import counting
from poiesis.spec import Captions, Tokens

__all__ = ["reproduce", "sample"]


def sample(
    run: str | Path,
    n: int = 64,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    checkpoint: str = "auto",
    weights: Literal["average", "raw"] = "average",
    label: str | int | None = None,
    prompt: str | None = None,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    batch_size: int = 64,
    shard_size: int | None = None,
    format: Literal["gif", "mp4"] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> list[Path]:
    """Draw n samples and write each to a file in `out`, its recipe inside; returns the paths.

    format: of video, default that of the data the run learned from.
    out: default the run's folder samples/seed-<seed>. All but texts also get an overview, grid.png.
    Rows of a table come as one file, samples.csv, or the .csv that `out` names. Everything is drawn
    before the first file is written. The recipe says how often the network was asked for a sample
    where that is done step by step. More than 10,000 samples (rows: 1,000,000), or any number
    with a shard_size, come as zip files (rows: csv files) of so many each, with a manifest, and an
    interrupted call goes on where it stopped (`poiesis.models.bulk`). Several processes (torchrun)
    share the work.
    """
    from poiesis.models import bulk

    processes.join()
    configs.check("shard_size", shard_size, low=1)
    trained = load(run, checkpoint=checkpoint, weights=weights, device=device)
    trained.write_as(format)
    folder = Path(out) if out is not None else trained.run.path / "samples" / f"seed-{seed}"
    how = {"seed": seed, "label": label, "prompt": prompt, "stop": list(stop), "weights": weights}
    if format is not None:
        how["format"] = format
    codec = trained.codec
    table = isinstance(codec, TableCodec)
    most = bulk.TABLE_SHARD_SIZE if table else bulk.SHARD_SIZE
    if shard_size is not None or n > most:
        return bulk.sample_shards(
            trained,
            n,
            folder,
            shard_size=shard_size or most,
            batch_size=batch_size,
            progress=progress,
            how=how,
            options=options,
        )
    how |= {"batch_size": batch_size, "options": options}
    start, end = processes.share(n, batch_size)
    raws = []
    taken: list[float] = []
    with counting() as count:
        before = 0

        def finished(samples: int) -> None:
            # By batch: a sampler that chooses its steps takes as many as the batch needs.
            nonlocal before
            taken.extend([(count.rows - before) / samples] * samples)
            before = count.rows
            if progress is not None:
                progress(samples)

        if end > start:
            raws = trained.sample(
                end - start,
                seed=seed,
                first=start,
                label=label,
                prompt=prompt,
                stop=stop,
                on_text=on_text,
                batch_size=batch_size,
                progress=finished,
                **options,
            )
    if table:
        return [_write_table(trained, codec, raws, taken, n, folder, how)]
    captioned = isinstance(trained.model.condition, Captions)
    captions = trained.class_names(n, label, prompt) if captioned else None
    digits = max(5, len(str(n - 1)))
    paths = [folder / f"{index:0{digits}d}{codec.suffix}" for index in range(n)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, raw in enumerate(raws, start):
            first = index // batch_size * batch_size
            recipe = trained.recipe(index, first, min(batch_size, n - first), **how)
            if captions is not None:
                recipe["caption"] = captions[index]
            if count.each:
                recipe["evaluations"] = taken[index - start]
            codec.write(raw, paths[index], recipe)
        if not isinstance(trained.data_spec, Tokens) and processes.main():
            most = max(100, codec.shown) if codec.suffix == ".png" else codec.shown
            show(trained.model, codec, raws[:most]).save(folder / "grid.png")
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"can't write samples to {str(folder)!r}: {reason}") from None
    processes.barrier()
    return paths


def _write_table(
    trained: Trained,
    codec: TableCodec,
    own: list[Any],
    taken: list[float],
    n: int,
    out: Path,
    how: dict[str, Any],
) -> Path:
    """Write the rows of all processes to one file, and an overview beside it; return its path."""
    raws = [raw for part in processes.of_all(own) for raw in part]
    evaluations = sum(each for part in processes.of_all(taken) for each in part) / n
    named = out.suffix == codec.suffix
    path = out if named else out / f"samples{codec.suffix}"
    grid = out.with_suffix(".png") if named else out / "grid.png"
    try:
        if processes.main():
            path.parent.mkdir(parents=True, exist_ok=True)
            classes = trained.class_names(n, how["label"])
            recipe = trained.recipe(None, 0, n, **how)
            if evaluations:
                recipe["evaluations"] = evaluations
            codec.write_table(raws, path, recipe, classes=classes)
            show(trained.model, codec, raws[: codec.shown]).save(grid)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"can't write samples to {str(path)!r}: {reason}") from None
    processes.barrier()
    return path


def reproduce(
    file: str | Path, out: str | Path, *, run: str | Path | None = None, device: str = "auto"
) -> Path:
    """Make a generated file again from the recipe it holds, byte for byte on the same machine.

    run: where the run lies now, if it moved. Raises RunError if the run holds another model.
    """
    from poiesis.data.provenance import read_recipe

    recipe = read_recipe(file)
    try:
        first, count = recipe["batch"]
        index, seed, options = recipe["index"], recipe["seed"], recipe["options"]
        where, model_hash = run or recipe["run"], recipe["model_hash"]
    except (KeyError, TypeError, ValueError):
        raise RunError(f"the recipe in {str(file)!r} is incomplete") from None
    trained = load_exact(
        where, model_hash, recipe["step"], file=file, weights=recipe["weights"], device=device
    )
    if recipe.get("threads") != torch.get_num_threads():
        warnings.warn(
            f"made with {recipe.get('threads')} threads, now {torch.get_num_threads()}: the bytes "
            "may differ in the last digits",
            PoiesisWarning,
            stacklevel=2,
        )
    raws = trained.sample(
        count,
        seed=seed,
        first=first,
        label=recipe["label"],
        prompt=recipe["prompt"],
        stop=recipe["stop"],
        batch_size=recipe["batch_size"],
        **options,
    )
    if index is None and isinstance(trained.codec, TableCodec):
        classes = trained.class_names(count, recipe["label"])
        trained.codec.write_table(raws, Path(out), recipe, classes=classes)
    else:
        trained.codec.write(raws[index - first], Path(out), recipe)
    return Path(out)
