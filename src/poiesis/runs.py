"""The run folder: layout, atomic writes, checkpoints that survive a crash.

    runs/<data>-<model>/<time>/
      config.yaml      what was asked for, in full       env.json      what it ran on
      data.json        native spec, view, codec, splits  schedule.json  the resolved steps
      metrics.jsonl    one line per interval             samples/      grids over time
      parts/           runs this one was built on        report.html
      checkpoints/     step-XXXXXXXX/ with safetensors, JSON and SHA256 of each; latest, best

A checkpoint is written to a temporary folder beside its place, every file synced to disk, then
renamed into place, the parent synced, then `latest` flipped; so at every moment there is a whole
checkpoint to go on from. Reading verifies the hashes and falls back to the checkpoint before.
"""

from __future__ import annotations

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
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poiesis.config import load_yaml, save_yaml
from poiesis.errors import PoiesisWarning, RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "Run", "environment", "sha256", "write_atomic"]

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


def _explain(error: OSError, path: Path) -> RunError:
    reason = error.strerror or str(error)
    way = "free some space and use --resume" if error.errno == errno.ENOSPC else "check the folder"
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
        temporary.unlink(missing_ok=True)
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


class Checkpoint:
    """One written checkpoint, its hashes verified when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = path / "manifest.json"
        try:
            self.hashes: dict[str, str] = json.loads(manifest.read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"the checkpoint {str(path)!r} has no readable manifest") from None
        for name, expected in self.hashes.items():
            try:
                found = sha256(path / name)
            except OSError:
                raise RunError(f"the checkpoint {str(path)!r} lacks {name!r}") from None
            if found != expected:
                raise RunError(f"the checkpoint file {str(path / name)!r} is damaged")

    @property
    def step(self) -> int:
        """Training step after which it was written."""
        return int(self.path.name.rsplit("-", 1)[1])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file, on the CPU; empty if it was not written."""
        from safetensors.torch import load

        if name not in self.hashes:
            return {}
        return load((self.path / name).read_bytes())

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
        write_atomic(self.path / "config.yaml", save_yaml(config))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file into the run."""
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
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(json.loads(dump_json(line))) + "\n")
        except OSError as error:
            raise _explain(error, self.path / "metrics.jsonl") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a last line cut short by a crash is left out."""
        path = self.path / "metrics.jsonl"
        lines = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines after `step`, which a resumed run will write again."""
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(self.path / "metrics.jsonl", text)

    # -- checkpoints ---------------------------------------------------------------------------

    def save_checkpoint(
        self, step: int, files: Files, *, kind: str = "step", pointer: str = "latest", keep: int = 2
    ) -> Path:
        """Write a checkpoint atomically, flip `pointer` to it, keep the newest `keep` of its kind.

        Raises RunError (a full disk, say); the checkpoints before stay whole.
        """
        from safetensors.torch import save

        folder = self.path / "checkpoints"
        final = folder / f"{kind}-{step:08d}"
        temporary = folder / f".{final.name}.tmp"
        hashes = {}
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
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
                shutil.rmtree(final)
            os.replace(temporary, final)
            _sync_folder(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _explain(error, final) from error
        write_atomic(folder / pointer, final.name)
        for old in self._checkpoints(kind)[keep:]:
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def _checkpoints(self, kind: str = "step") -> list[Path]:
        folder = self.path / "checkpoints"
        return sorted((p for p in folder.glob(f"{kind}-*") if p.is_dir()), reverse=True)

    def has_checkpoint(self, which: str = "latest") -> bool:
        """Return whether the pointer latest or best exists."""
        return (self.path / "checkpoints" / which).is_file()

    def checkpoint(self, which: str | int = "latest") -> Checkpoint:
        """Open `latest`, `best` or a step's checkpoint; raises RunError.

        A damaged one is reported by a warning and the whole one before it is opened.
        """
        folder = self.path / "checkpoints"
        if isinstance(which, int) or which.isdigit():
            path = folder / f"step-{int(which):08d}"
            if not path.exists():
                steps = ", ".join(str(int(p.name[5:])) for p in self._checkpoints()) or "none"
                raise RunError(
                    f"{str(self.path)!r} has no checkpoint of step {which}; it has: {steps}"
                )
            return Checkpoint(path)
        candidates = []
        pointer = folder / which
        if pointer.is_file():
            candidates.append(folder / pointer.read_text().strip())
        elif which != "latest":
            raise RunError(f"{str(self.path)!r} has no checkpoint {which!r}; use latest")
        candidates += [p for p in self._checkpoints() if p not in candidates]
        problems = []
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
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
