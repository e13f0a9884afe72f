"""Samples by the million: shard files, a manifest, any number of processes, resumable.

    OUT/manifest.json            what was asked of which weights, and every shard with its hash
    OUT/shard-00000.zip …        the samples as files, stored, in order; the same bytes every time
                                 (rows of a table: shard-00000.csv)
    OUT/.done-00000.jsonl        while it runs: the shards that process 0 has finished

A shard is written beside its place and renamed into it, then noted; so after a crash the same
command goes on with the first shard that is not noted. Shard k belongs to process k mod processes.
Only one batch is in memory at a time.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from poiesis import processes
from poiesis.data.dataset import TableCodec
from poiesis.errors import RunError
from poiesis.models.trained import Trained
from poiesis.runs import sha256, write_atomic
from poiesis.sampling import counting

__all__ = ["SHARD_SIZE", "sample_shards"]

SHARD_SIZE = 10_000
"""Samples in a shard, and the number from which on samples come in shards."""
TABLE_SHARD_SIZE = 1_000_000
"""The same for rows of a table."""
MANIFEST = "manifest.json"


def sample_shards(
    trained: Trained,
    n: int,
    folder: Path,
    *,
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    how: dict[str, Any],
    options: dict[str, Any],
) -> list[Path]:
    """Draw n samples into shards in `folder`; return the paths of all shards.

    how: seed, label, prompt, stop and weights, as `sample` takes them; options: of the model's
    sampling. Goes on where an interrupted call with the same arguments stopped. Raises RunError if
    the folder holds other samples or can't be written.
    """
    plan = {
        "n": n,
        "shard_size": shard_size,
        "batch_size": batch_size,
        "model": trained.name,
        "model_hash": trained.model_hash,
        "step": trained.step,
        "run": str(trained.run.path),
        "data": trained.variant,
        **how,
        "options": options,
    }
    plan = json.loads(json.dumps(plan))
    done = processes.by_main(lambda: _begin(folder, plan))
    drawing = {k: how[k] for k in ("seed", "label", "prompt", "stop")}
    count = -(-n // shard_size)
    note = folder / f".done-{processes.rank():05d}.jsonl"
    for number in range(processes.rank(), count, processes.size()):
        first = number * shard_size
        size = min(shard_size, n - first)
        suffix = trained.codec.suffix if isinstance(trained.codec, TableCodec) else ".zip"
        path = folder / f"shard-{number:0{max(5, len(str(count - 1)))}d}{suffix}"
        if path.name not in done:
            try:
                with counting.counting() as taken:
                    _write_shard(
                        trained, path, first, size, n, batch_size, progress, drawing, options
                    )
                entry = {"file": path.name, "first": first, "count": size, "sha256": sha256(path)}
                if taken.each:
                    entry["evaluations"] = taken.each
                _append(note, entry)
            except OSError as error:
                reason = error.strerror or str(error)
                raise RunError(
                    f"can't write {str(path)!r}: {reason}; the same command goes on from here"
                ) from None
        else:
            # What is there already counts as well: it is a part of the result.
            counting.asked(round(done[path.name].get("evaluations", 0) * size))
            counting.drawn(size)
            if progress is not None:
                progress(size)
    processes.barrier()
    shards = processes.by_main(lambda: _conclude(folder, plan))
    return [folder / shard["file"] for shard in shards]


def _begin(folder: Path, plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Write the manifest, or check that the one there asks for the same.

    Returns the notes of whole shards by their names.
    """
    path = folder / MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except OSError as error:
        raise RunError(f"can't use {str(folder)!r}: {error.strerror or error}") from None
    except ValueError:
        raise RunError(f"{str(path)!r} is damaged: remove it or choose another --out") from None
    if stored is None:
        write_atomic(path, json.dumps({"samples": plan, "shards": []}, indent=1))
        return {}
    before = stored.get("samples", {}) if isinstance(stored, dict) else {}
    for key in sorted({*plan, *before} - {"run"}):
        if before.get(key) != plan.get(key):
            raise RunError(
                f"{str(folder)!r} holds samples with {key} = {before.get(key)!r}, not "
                f"{plan.get(key)!r}: choose another --out, or the same settings to go on"
            )
    noted = _noted(folder, stored)
    return {shard["file"]: shard for shard in noted if _is_whole(folder, shard)}


def _noted(folder: Path, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the shards noted as finished; a line cut short by a crash is none."""
    shards = list(stored.get("shards", []))
    for path in sorted(folder.glob(".done-*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                shards.append(json.loads(line))
            except ValueError:
                continue
    return [s for s in shards if isinstance(s, dict) and {"file", "sha256"} <= s.keys()]


def _is_whole(folder: Path, shard: dict[str, Any]) -> bool:
    path = folder / Path(str(shard["file"])).name
    return path.is_file() and sha256(path) == shard["sha256"]


def _conclude(folder: Path, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Write the manifest with all shards and remove the notes made on the way."""
    stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    shards = {shard["file"]: shard for shard in _noted(folder, stored)}
    ordered = [shards[name] for name in sorted(shards)]
    write_atomic(folder / MANIFEST, json.dumps({"samples": plan, "shards": ordered}, indent=1))
    for path in folder.glob(".done-*.jsonl"):
        path.unlink(missing_ok=True)
    return ordered


def _append(path: Path, entry: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_shard(
    trained: Trained,
    path: Path,
    first: int,
    size: int,
    n: int,
    batch_size: int,
    progress: Callable[[int], None] | None,
    drawing: dict[str, Any],
    options: dict[str, Any],
) -> None:
    digits = max(5, len(str(n - 1)))
    temporary = path.with_name(f".{path.name}.tmp")
    if isinstance(trained.codec, TableCodec):
        raws = trained.sample(
            size, first=first, batch_size=batch_size, progress=progress, **drawing, **options
        )
        classes = trained.class_names(first + size, drawing["label"])
        own = None if classes is None else classes[first:]
        trained.codec.write_table(raws, temporary, classes=own)
        _sync(temporary)
        os.replace(temporary, path)
        return
    with tempfile.TemporaryDirectory() as scratch, open(temporary, "wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for start in range(first, first + size, batch_size):
                count = min(batch_size, first + size - start)
                with counting.counting() as taken:
                    raws = trained.sample(
                        count, first=start, batch_size=batch_size, **drawing, **options
                    )
                for index, raw in enumerate(raws, start):
                    recipe = {"model_hash": trained.model_hash, "index": index, **drawing}
                    if taken.each:
                        recipe["evaluations"] = taken.each
                    _add(trained, archive, Path(scratch), f"{index:0{digits}d}", raw, recipe)
                if progress is not None:
                    progress(count)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _add(
    trained: Trained,
    archive: zipfile.ZipFile,
    scratch: Path,
    name: str,
    raw: Any,
    recipe: dict[str, Any],
) -> None:
    """Add the files that a codec writes for one sample, without times, so that bytes repeat."""
    trained.codec.write(raw, scratch / f"{name}{trained.codec.suffix}", recipe)
    written: Sequence[Path] = sorted(scratch.iterdir())
    for path in written:
        archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
        path.unlink()
