"""Text sources: a file, a folder of files, the source code of the running Python."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poiesis.data.codecs import TextCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet, TextSplit
from poiesis.errors import DataError
from poiesis.files import read_text

__all__ = ["assemble_text", "open_files", "open_stdlib"]

SUFFIXES = (
    *(".txt", ".md", ".rst", ".tex", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".log"),
    *(".py", ".c", ".h", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".sql"),
    *(".yaml", ".yml", ".toml", ".smi", ".abc", ".srt"),
)
VALIDATION_SHARE = 0.1


def _smallest(tokens: Tensor, vocabulary: int) -> Tensor:
    kinds = ((256, torch.uint8), (1 << 15, torch.int16), (1 << 31, torch.int32))
    return tokens.to(next(dtype for bound, dtype in kinds if vocabulary <= bound))


def assemble_text(
    name: str,
    parts: dict[str, str],
    config: DataConfig,
    *,
    skipped: Sequence[str] = (),
    notes: dict[str, Any] | None = None,
) -> DataSet:
    """Return the data set of texts by part; without validation, the last tenth of train is it.

    The alphabet is that of all parts; byte pairs are learned on the training part alone.
    """
    parts = dict(parts)
    share = VALIDATION_SHARE if config.validation is None else config.validation
    if "validation" not in parts and share > 0:
        text = parts["train"]
        cut = len(text) - int(len(text) * share)
        parts["train"], parts["validation"] = text[:cut], text[cut:]
    steps = []
    if config.limit is not None and config.limit < len(parts["train"]):
        parts["train"] = parts["train"][: config.limit]
        steps.append(f"{config.limit:,} training characters")
    if not parts["train"]:
        raise DataError(f"{config.source}: the text is empty; give a file with text")
    whole = "".join(parts.values()) if config.tokenizer == "characters" else parts["train"]
    codec = TextCodec.learn(config.tokenizer, whole, config.vocabulary)
    kind = f"BPE {codec.vocabulary}" if config.tokenizer == "bpe" else config.tokenizer
    vocabulary = codec.vocabulary
    tokens = {part: _smallest(codec.encode(text), vocabulary) for part, text in parts.items()}
    ordered = [part for part in ("train", "validation", "test") if part in parts]
    return DataSet(
        name=name,
        variant=", ".join([name, kind, *steps]),
        spec=codec.spec,
        condition=None,
        codec=codec,
        splits={part: TextSplit(tokens[part]) for part in ordered},
        skipped=list(skipped),
        notes={
            **(notes or {}),
            "counts": {part: len(tokens[part]) for part in ordered},
            "characters": {part: len(parts[part]) for part in ordered},
            "sha256": {
                part: hashlib.sha256(parts[part].encode("utf-8")).hexdigest() for part in ordered
            },
        },
    )


def _join(texts: Sequence[str]) -> str:
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)


def _read_all(paths: Sequence[Path], config: DataConfig) -> tuple[list[str], list[str]]:
    texts, skipped = [], []
    for path in paths:
        try:
            texts.append(read_text(path))
        except DataError as error:
            if not config.skip_bad:
                raise
            skipped.append(str(error))
    return texts, skipped


def open_files(path: Path, name: str, config: DataConfig) -> DataSet:
    """Return a text file, or all text files below a folder in the order of their paths."""
    if path.is_file():
        return assemble_text(name, {"train": read_text(path)}, config)
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    ]
    chosen = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not chosen:
        kinds = Counter(file.suffix.lower() or "no ending" for file in files).most_common(3)
        has = ", ".join(f"{n} {kind}" for kind, n in kinds) if kinds else "it is empty"
        raise DataError(f"{path}: holds neither images nor text ({has}); give another folder")
    texts, skipped = _read_all(chosen, config)
    ignored = len(files) - len(chosen)
    notes = {"files": len(texts), "ignored": ignored}
    if not texts:
        raise DataError(f"{path}: none of its {len(chosen)} text files can be read; {skipped[0]}")
    return assemble_text(name, {"train": _join(texts)}, config, skipped=skipped, notes=notes)


def open_stdlib(config: DataConfig) -> DataSet:
    """Return the source files of the running Python's standard library, tests left out.

    Their order is that of hashes of their paths, so that the end (for validation) and the start
    (--data.limit) are both mixed; it is the same wherever the same Python version runs.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not left_out & set(path.relative_to(root).parts)
    )
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    texts, skipped = _read_all([root / name for name in names], config)
    if not texts:
        raise DataError(f"{root}: has no Python source files; use another text")
    version = platform.python_version()
    notes = {"files": len(texts), "python": version}
    data = assemble_text(
        "python-stdlib", {"train": _join(texts)}, config, skipped=skipped, notes=notes
    )
    data.variant += f", Python {version}"
    return data
