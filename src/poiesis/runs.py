"""The run folder: layout, atomic writes, checkpoints that survive a crash.

    runs/<data>-<model>/<time>/
      config.yaml      what was asked for, in full       env.json      what it ran on
      data.json        native spec, view, codec, splits  schedule.json  the resolved steps
      metrics.jsonl    one line per interval             samples/      grids over time
      parts/           runs this one was built on        report.html
      health.json      what is normal, and when we looked  alarms.jsonl  what was not
      sampling.json    its own sampling options, if any  import.json    where it came from, if so
      checkpoints/     step-XXXXXXXX/ with safetensors, JSON and SHA256 of each; latest, best;
                       average-XXXXXXXX/, snapshots of averaged weights

A checkpoint is written to a temporary folder beside its place, every file synced to disk, then
renamed into place, the parent synced, then `latest` flipped; so at every moment there is a whole
checkpoint to go on from. One of the same step that is there already is first renamed aside and
found there until the new one is in place. Reading verifies the hashes and falls back to the
checkpoint before.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poiesis import processes
from poiesis.config import load_yaml, save_yaml
from poiesis.errors import PoiesisWarning, RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "Run", "environment", "sha256", "write_atomic"]

_NAME = re.compile(r"(step|best|healthy|average)-(\d{8,})")
"""Name of a checkpoint's folder: its kind and its step."""
_ASIDE = re.compile(r"\.((?:step|best|healthy|average)-\d{8,})\.old")
"""Where a checkpoint waits while another of the same name takes its place."""

_KINDS = {"latest": "step", "best": "best", "healthy": "healthy"}
"""Pointer → kind of the checkpoints that it points to."""

SHARDS = "shards"
"""Folder within a checkpoint of what several processes wrote, each its own part."""

Files = Mapping[str, Any]
"""File name → tensors by name (``.safetensors``) or a JSON value (``.json``)."""


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_WAYS = {
    errno.ENOSPC: "free some space and use --resume",
    errno.EDQUOT: "free some space and use --resume",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and use --resume",
}


def _explain(error: OSError, path: Path) -> RunError:
    reason = error.strerror or str(error)
    way = _WAYS.get(error.errno or 0, "check the folder")
    return RunError(f"can't write {str(path)!r}: {reason}; {way}")


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file so that a crash leaves the old or the new one, never a part; raises RunError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write(temporary, data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _explain(error, path) from error


def dump_json(value: Any) -> str:
    """Return JSON text; numbers that JSON lacks (NaN, infinity) become null."""

    def clean(item: Any) -> Any:
        if isinstance(item, float) and (item != item or item in (float("inf"), float("-inf"))):
            return None
        if isinstance(item, Mapping):
            return {str(k): clean(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(v) for v in item]
        return item

    return json.dumps(clean(value), indent=1, ensure_ascii=False)


def _aside_name(path: Path) -> str | None:
    """Return the name of a checkpoint that was put aside, None if the path is none."""
    found = _ASIDE.fullmatch(path.name)
    return found[1] if found else None


def _step(path: Path) -> int:
    """Return the step in a checkpoint's name, be it in its place or aside."""
    return int((_aside_name(path) or path.name).rsplit("-", 1)[1])


def _crowded(paths: Sequence[Path], keep: int) -> list[Path]:
    """Return all but `keep` of the paths, in order of step: those nearest to their neighbours."""
    left, out = list(paths), []
    while len(left) > max(2, keep):
        steps = [_step(path) for path in left]
        gaps = [abs(steps[i + 1] - steps[i - 1]) for i in range(1, len(steps) - 1)]
        out.append(left.pop(1 + gaps.index(min(gaps))))
    return out


class Checkpoint:
    """One written checkpoint, its hashes verified when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            hashes = json.loads((path / "manifest.json").read_text())["sha256"]
            self.hashes: dict[str, str] = {name: str(value) for name, value in hashes.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise RunError(f"the checkpoint {str(path)!r} has no readable manifest") from None
        for name, expected in self.hashes.items():
            if name.removeprefix(SHARDS + "/") != Path(name).name:
                raise RunError(f"the checkpoint {str(path)!r} names a file outside it: {name!r}")
            try:
                found = sha256(path / name)
            except (OSError, ValueError):
                raise RunError(f"the checkpoint {str(path)!r} lacks {name!r}") from None
            if found != expected:
                raise RunError(f"the checkpoint file {str(path / name)!r} is damaged")

    @property
    def step(self) -> int:
        """Training step after which it was written."""
        return _step(self.path)

    def tensors(
        self, name: str, like: Callable[[str], Tensor | None] = lambda key: None
    ) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file, on the CPU; empty if it was not written.

        What was written in parts by several processes is put together, or split again as the
        tensor like(its name) is.
        """
        from safetensors.torch import load

        found = load((self.path / name).read_bytes()) if name in self.hashes else {}
        if any(file.startswith(SHARDS) for file in self.hashes):
            prefix = f"{name.removesuffix('.safetensors')}/"
            found |= processes.load_shards(self.path / SHARDS, prefix, like)
        return found

    def json(self, name: str) -> Any:
        """Return the value of a JSON file."""
        return json.loads((self.path / name).read_text())


class Run:
    """A run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path | None, data: str, model: str) -> Run:
        """Make a new run folder; the default place is runs/<data>-<model>/<time>/."""
        if path is None:
            stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
            label = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(data).stem or "data")
            path = Path("runs") / f"{label}-{model}" / stamp
            while path.exists():
                path = path.with_name(path.name + "+")
        path = Path(path)
        if (path / "config.yaml").exists():
            raise RunError(
                f"{str(path)!r} already holds a run: continue it with --resume {path}, "
                "or choose another --out"
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            (path / "samples").mkdir(exist_ok=True)
        except OSError as error:
            raise _explain(error, path) from None
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder, or the newest run inside a folder; raises RunError."""
        path = Path(path)
        if (path / "config.yaml").is_file():
            return cls(path)
        if not path.exists():
            raise RunError(f"there is no run folder {str(path)!r}; train one with: poiesis train")
        found = sorted(path.glob("**/config.yaml"), key=lambda p: p.stat().st_mtime)
        if not path.is_dir() or not found:
            raise RunError(f"{str(path)!r} holds no run (no config.yaml); give a run folder")
        return cls(found[-1].parent)

    # -- small files ---------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return config.yaml as a dict."""
        return load_yaml(self.path / "config.yaml")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml."""
        if not processes.main():
            return
        write_atomic(self.path / "config.yaml", save_yaml(config))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file into the run."""
        if not processes.main():
            return
        write_atomic(self.path / name, dump_json(value))

    def read_json(self, name: str, default: Any = None) -> Any:
        """Read a JSON file of the run; `default` if there is none; raises RunError if damaged."""
        path = self.path / name
        if not path.exists():
            return default
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise RunError(f"{str(path)!r} is damaged: not valid JSON") from None

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if not processes.main():
            return
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(json.loads(dump_json(line))) + "\n")
        except OSError as error:
            raise _explain(error, self.path / "metrics.jsonl") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a last line cut short by a crash is left out."""
        return self._lines("metrics.jsonl")

    def alarms(self) -> list[dict[str, Any]]:
        """Return the lines of alarms.jsonl, oldest first: what went wrong, and since when."""
        return self._lines("alarms.jsonl")

    def write_alarms(self, alarms: Sequence[Mapping[str, Any]]) -> None:
        """Write alarms.jsonl."""
        if not processes.main():
            return
        text = "".join(json.dumps(line) + "\n" for line in alarms)
        write_atomic(self.path / "alarms.jsonl", text)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        lines = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]

    def rewind(self, step: int) -> None:
        """Drop metrics, grids and snapshots after `step`, which a resumed run will write again."""
        if not processes.main():
            return
        if (self.path / "metrics.jsonl").exists():
            kept = [line for line in self.metrics() if line.get("step", 0) <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomic(self.path / "metrics.jsonl", text)
        for path in (self.path / "samples").glob("step-*"):
            digits = path.stem.removeprefix("step-")
            if digits.isdecimal() and int(digits) > step:
                path.unlink(missing_ok=True)
        for later, path in self.snapshots().items():
            if later > step:
                shutil.rmtree(path, ignore_errors=True)

    def drop_best_after(self, step: int) -> bool:
        """Drop the best and the healthy checkpoint where later; return whether the best was."""
        dropped = {}
        for kind in ("healthy", "best"):
            later = [path for path in self._checkpoints(kind) if _step(path) > step]
            if later:
                (self.path / "checkpoints" / kind).unlink(missing_ok=True)
            for path in later:
                shutil.rmtree(path, ignore_errors=True)
            dropped[kind] = bool(later)
        return dropped["best"]

    # -- checkpoints ---------------------------------------------------------------------------

    def save_checkpoint(
        self,
        step: int,
        files: Files,
        *,
        kind: str = "step",
        pointer: str | None = "latest",
        keep: int = 2,
        shards: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write a checkpoint atomically, flip `pointer` to it, keep the newest `keep` of its kind.

        Of snapshots (kind average) those are kept that spread widest over the run.

        shards: tensors split over the processes, named "file stem/name". All processes call this:
        each writes its parts of them, the main one the rest. Raises RunError (a full disk, say);
        the checkpoints before stay whole.
        """
        from safetensors.torch import save

        folder = self.path / "checkpoints"
        final = folder / f"{kind}-{step:08d}"
        temporary, aside = folder / f".{final.name}.tmp", folder / f".{final.name}.old"
        hashes = {}
        try:
            if processes.main():
                for leftover in folder.glob(".*.tmp"):  # of saves that a crash cut short
                    shutil.rmtree(leftover, ignore_errors=True)
                temporary.mkdir(parents=True, exist_ok=True)
            if shards:
                processes.barrier()
                processes.save_shards(temporary / SHARDS, shards)
            if not processes.main():
                processes.barrier()
                return final
            for path in sorted(temporary.glob(f"{SHARDS}/*")):
                hashes[f"{SHARDS}/{path.name}"] = sha256(path)
            for name, value in files.items():
                if name.endswith(".safetensors"):
                    # Contiguous copies: safetensors stores neither strides nor shared memory.
                    data = save(
                        {k: v.detach().cpu().contiguous().clone() for k, v in value.items()}
                    )
                else:
                    data = json.dumps(value).encode()
                hashes[name] = hashlib.sha256(data).hexdigest()
                _write(temporary / name, data)
            _write(temporary / "manifest.json", json.dumps({"sha256": hashes}).encode())
            _sync_folder(temporary)
            if final.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(final, aside)
            os.replace(temporary, final)
            _sync_folder(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _explain(error, final) from error
        if pointer is not None:
            write_atomic(folder / pointer, final.name)
        self._prune(kind, step, keep)
        processes.barrier()
        return final

    def _prune(self, kind: str, step: int, keep: int) -> None:
        """After a save of `step`, keep the newest `keep` up to it; those after it are of no use.

        Later ones are left from before a fall back to an earlier checkpoint: the run took another
        way since, or will write them again.
        """
        found = self._checkpoints(kind)
        later = [path for path in found if _step(path) > step]
        kept = found[len(later) :]
        surplus = _crowded(kept, keep) if kind == "average" else kept[keep:]
        for path in later + surplus:
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.path / "checkpoints").glob(f".{kind}-*.old"):
            shutil.rmtree(path, ignore_errors=True)

    def _checkpoints(self, kind: str) -> list[Path]:
        """Return the folders of one kind, newest first, where they lie now."""
        folder = self.path / "checkpoints"
        names = {path.name for path in folder.glob(f"{kind}-*") if _NAME.fullmatch(path.name)}
        names |= {name for path in folder.glob(f".{kind}-*") if (name := _aside_name(path))}
        return sorted((self._place(name) for name in names), key=_step, reverse=True)

    def snapshots(self) -> dict[int, Path]:
        """Return step → folder of the snapshots of averaged weights, newest first."""
        return {_step(path): path for path in self._checkpoints("average")}

    def _place(self, name: str) -> Path:
        """Return where a checkpoint lies: aside, if a crash came before its successor."""
        folder = self.path / "checkpoints"
        final, aside = folder / name, folder / f".{name}.old"
        return aside if aside.exists() and not final.exists() else final

    def has_checkpoint(self, which: str = "latest") -> bool:
        """Return whether there is a `latest` or `best` checkpoint."""
        return bool(self._checkpoints(_KINDS[which]))

    def checkpoint(self, which: str | int = "latest") -> Checkpoint:
        """Open `latest`, `best` or a step's checkpoint; raises RunError.

        A damaged one is reported by a warning and the whole one before it is opened.
        """
        if isinstance(which, int) or which.isdecimal():
            path = self._place(f"step-{int(which):08d}")
            if not path.exists():
                steps = ", ".join(str(_step(p)) for p in self._checkpoints("step")) or "none"
                raise RunError(
                    f"{str(self.path)!r} has no checkpoint of step {which}; it has: {steps}"
                )
            return Checkpoint(path)
        if which not in _KINDS or (which != "latest" and not self.has_checkpoint(which)):
            raise RunError(f"{str(self.path)!r} has no checkpoint {which!r}; use latest")
        candidates, problems = self._candidates(which)
        for path in candidates:
            try:
                found = Checkpoint(path)
            except RunError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                warnings.warn(f"{problem}; going back to {path.name}", PoiesisWarning, stacklevel=2)
            return found
        detail = f" ({problems[0]})" if problems else ""
        raise RunError(f"{str(self.path)!r} has no whole checkpoint yet{detail}")

    def _candidates(self, which: str) -> tuple[list[Path], list[str]]:
        """Return what to open for a pointer, the best choice first, and what is wrong with it."""
        pointer = self.path / "checkpoints" / which
        candidates, problems = [], []
        if pointer.is_file():
            name = pointer.read_bytes().decode(errors="replace").strip()
            if _NAME.fullmatch(name):
                candidates.append(self._place(name))
            else:
                problems.append(f"{str(pointer)!r} is damaged: it names no checkpoint")
        others = self._checkpoints(_KINDS[which])
        others += self._checkpoints("step") if which != "latest" else []
        return candidates + [path for path in others if path not in candidates], problems


def environment() -> dict[str, Any]:
    """Return what a result depends on: versions, processor, threads, device."""
    import torch

    packages = ("poiesis", "torch", "numpy", "pillow", "tokenizers", "safetensors")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.*)", info.read_text())
        processor = found.group(1) if found else processor
    return {
        "versions": versions,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes.size(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
