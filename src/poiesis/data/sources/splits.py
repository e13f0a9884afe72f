"""Train, validation and test parts of sets of rows: deterministic, stratified, recorded."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from poiesis.data.codecs import ImageCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet, TensorSplit
from poiesis.data.sources.captions import tokenize, with_examples
from poiesis.errors import ConfigError, suggest
from poiesis.rng import generator, mix
from poiesis.spec import Attributes, Captions, Classes, Condition, Picture

__all__ = ["Images", "Rows", "assemble", "bernoulli", "stratified"]

TEST_SHARE = 0.1
VALIDATION_SHARE = 0.1
# As customary: 55,000 of MNIST's images train, and so of the set made to replace it.
VALIDATION_IMAGES = {"mnist": 5000, "fashion-mnist": 5000}


class Rows(Protocol):
    """Rows of one part, in memory or not."""

    y: Tensor | None
    """Classes (n,) or captions (n, length), int64; attributes (n, k), float32; pictures (n, c, h,
    w), uint8."""

    def __len__(self) -> int: ...

    def take(self, positions: Tensor) -> Any:
        """Return a split of the rows at these positions."""
        ...

    def binarize(self, kind: str, part: str) -> Rows:
        """Return the rows as bits; see `bernoulli`."""
        ...


@dataclass
class MemoryRows:
    """Rows in one tensor, of images uint8 (n, c, h, w)."""

    x: Tensor
    y: Tensor | None
    levels: int = 256

    def __len__(self) -> int:
        return len(self.x)

    def take(self, positions: Tensor) -> TensorSplit:
        """Return these rows in memory."""
        if len(positions) == len(self):
            return TensorSplit(self.x, self.y)
        return TensorSplit(self.x[positions], None if self.y is None else self.y[positions])

    def binarize(self, kind: str, part: str) -> MemoryRows:
        """Return the rows as bits, made in pieces to spare memory."""
        out = torch.empty_like(self.x)
        for rows in torch.arange(len(self)).split(1024):
            out[rows] = to_bits(self.x[rows], kind, part, rows, self.levels)
        return MemoryRows(out, self.y, 2)


@dataclass
class Images:
    """A set as found: its parts, of which "all" stands for a set without official ones."""

    name: str
    parts: dict[str, Any]
    codec: Any
    classes: tuple[str, ...] = ()
    steps: list[str] = field(default_factory=list)
    """What was done to the pictures, for the variant's name."""
    skipped: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    rows: str = "images"
    """What messages call the rows."""
    captions: Captions | None = None
    """The words, where the rows' y are captions."""
    attributes: tuple[str, ...] = ()
    """Names of the columns of y, where that holds attributes instead of classes."""
    paired: bool = False
    """Whether y holds pictures."""


def bernoulli(part: str, rows: Tensor, dims: int) -> np.ndarray:
    """Return uniform numbers in [0, 1), shape (len(rows), dims), each a hash of its place alone.

    A splitmix64 finaliser of (seed 0, part, row, value): so that a set is binarised alike whether
    it is held in memory or streamed.
    """
    start = np.uint64(mix("binarize", 0, part))
    row = rows.numpy().astype(np.uint64)[:, None] * np.uint64(1 << 32)
    with np.errstate(over="ignore"):
        z = (row + np.arange(dims, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_bits(x: Tensor, kind: str, part: str, rows: Tensor, levels: int) -> Tensor:
    """Return levels (b, c, h, w) as uint8 bits: drawn ("once") or from half the maximum on."""
    if kind == "threshold":
        return (x.int() * 2 >= levels - 1).to(torch.uint8)
    share = x.reshape(len(x), -1).numpy() / (levels - 1)
    bits = bernoulli(part, rows, share.shape[1]) < share
    return torch.from_numpy(bits.astype(np.uint8)).reshape(x.shape)


def stratified(y: Tensor | None, n: int, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Return sorted positions of the rest and of one part per share, the same mix of classes each.

    A part has round(share * n) rows, spread over the classes by largest remainders; a class of two
    or more gives the first part at least one and keeps at least one.
    """
    y = torch.zeros(n, dtype=torch.int64) if y is None else y
    labels, sizes = (t.numpy() for t in y.unique(return_counts=True))
    counts = np.zeros((len(shares), len(labels)), np.int64)
    for place, share in enumerate(shares):
        quota = share * sizes
        counts[place] = np.floor(quota)
        left = round(share * n) - counts[place].sum()
        counts[place][np.argsort(counts[place] - quota, kind="stable")[:left]] += 1
        if place == 0 and share > 0:
            counts[place] = counts[place].clip(min=1)
        counts[place] = counts[place].clip(max=sizes - counts[:place].sum(0) - 1)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for column, label in enumerate(labels.tolist()):
        members = (y == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator("split", seed, label))
        sections = [*counts[:, column].tolist(), int(sizes[column] - counts[:, column].sum())]
        for part, piece in zip([*parts[1:], parts[0]], members[order].split(sections), strict=True):
            part.append(piece)
    return [torch.cat(part).sort().values for part in parts]


def _fingerprint(part: str, positions: Tensor) -> str:
    digest = hashlib.sha256(part.encode())
    digest.update(positions.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _named(images: Images, config: DataConfig) -> tuple[str, ...]:
    """Return the chosen classes in the set's order; raises ConfigError for unknown ones."""
    if len(images.classes) < 2:
        raise ConfigError(f"data.classes chooses among classes, but {images.name} has none")
    for name in config.classes:
        if name not in images.classes:
            hint = suggest(name, images.classes) or f"; it has: {', '.join(images.classes)}"
            raise ConfigError(f"data.classes: {images.name} has no class {name!r}{hint}")
    return tuple(name for name in images.classes if name in config.classes)


def _keep(
    chosen: dict[str, tuple[str, Tensor]], parts: dict[str, Any], kept: list[int]
) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Any]]:
    """Return the picks and parts of the classes numbered `kept` alone, renumbered from 0."""
    numbers = torch.full((max(kept) + 1,), -1)
    numbers[kept] = torch.arange(len(kept))
    picks, labels = {}, {}
    for part, rows in parts.items():
        labels[part] = torch.where(rows.y <= max(kept), numbers[rows.y.clamp(max=max(kept))], -1)
    for split, (part, pick) in chosen.items():
        picks[split] = part, pick[labels[part][pick] >= 0]
    one = len(kept) == 1
    return picks, {
        part: dataclasses.replace(rows, y=None if one else labels[part])
        for part, rows in parts.items()
    }


def _condition(classes: tuple[str, ...], attributes: tuple[str, ...]) -> Condition | None:
    if attributes:
        return Attributes(names=attributes)
    return Classes(count=len(classes), names=classes) if len(classes) > 1 else None


def assemble(images: Images, config: DataConfig) -> DataSet:
    """Return the data set: bits where asked, official parts kept, missing ones cut, all recorded.

    Without official parts 10% are the test part; validation is cut from training.
    """
    parts, steps, codec = dict(images.parts), list(images.steps), images.codec

    def strata(rows: Rows) -> Tensor | None:
        # Each combination of attributes would be a class of its own, most of them of few rows.
        # So would captions.
        return None if images.attributes or images.captions or images.paired else rows.y

    if config.pairs != "none" and not images.paired:
        raise ConfigError(
            f"data.pairs is for image files that hold two pictures; {images.name} has none"
        )
    for option in ("attributes", "binarize") if images.paired else ():
        if getattr(config, option) not in ("", "none"):
            raise ConfigError(f"data.{option} is not for pairs of pictures; leave it out")
    if config.binarize != "none":
        parts = {part: rows.binarize(config.binarize, part) for part, rows in parts.items()}
        kind = "Bernoulli-binarised once with seed 0"
        steps.append(kind if config.binarize == "once" else "binarised at half the maximum")
        codec = ImageCodec(**{**vars(codec), "levels": 2})

    chosen: dict[str, tuple[str, Tensor]] = {
        part: (part, torch.arange(len(rows))) for part, rows in parts.items()
    }
    share = VALIDATION_SHARE if config.validation is None else config.validation
    if "all" in parts:
        rows = parts["all"]
        pieces = stratified(strata(rows), len(rows), (share, TEST_SHARE), config.split_seed)
        chosen = dict(
            zip(("train", "validation", "test"), (("all", p) for p in pieces), strict=True)
        )
    elif "validation" not in parts and share > 0:
        rows = parts["train"]
        if config.validation is None and images.name in VALIDATION_IMAGES:
            share = VALIDATION_IMAGES[images.name] / len(rows)
        pieces = stratified(strata(rows), len(rows), (share,), config.split_seed)
        chosen["train"], chosen["validation"] = (("train", p) for p in pieces)
    if config.split_seed and any(part in ("all", "train") for part, _ in chosen.values()):
        steps.append(f"split with seed {config.split_seed}")
    classes = images.classes
    if config.classes:
        # After the split, so that a part holds the same images of a class as in the whole set.
        classes = _named(images, config)
        steps.append(f"class{'es' * (len(classes) > 1)} {', '.join(classes)} only")
        chosen, parts = _keep(chosen, parts, [images.classes.index(name) for name in classes])
    part, train = chosen["train"]
    if config.limit is not None and config.limit < len(train):
        order = torch.randperm(len(train), generator=generator("limit", config.split_seed))
        chosen["train"] = part, train[order[: config.limit]].sort().values
        steps.append(f"{config.limit:,} training {images.rows}")

    ordered = {s: chosen[s] for s in ("train", "validation", "test") if s in chosen}
    ordered = {split: pick for split, pick in ordered.items() if len(pick[1])}
    condition = _condition(classes, images.attributes)
    if images.paired:
        condition = Picture(channels=codec.channels, size=codec.size)
    captions = images.captions
    if config.captions and captions is None:
        if not isinstance(condition, Classes):
            raise ConfigError(f"data.captions takes class names, but {images.name} has no classes")
        captions, names, _ = tokenize({"all": classes}, images.name)
        parts = {k: dataclasses.replace(rows, y=names["all"][rows.y]) for k, rows in parts.items()}
        steps.append("class names as captions")
    if captions is not None:
        part, held_out = list(ordered.values())[-1]
        condition = with_examples(captions, parts[part].y[held_out])
    return DataSet(
        name=images.name,
        variant=", ".join([images.name, *steps]),
        spec=codec.spec,
        condition=condition,
        codec=codec,
        splits={split: parts[part].take(pick) for split, (part, pick) in ordered.items()},
        skipped=images.skipped,
        notes={
            **images.notes,
            "counts": {split: len(pick) for split, (_, pick) in ordered.items()},
            "sha256": {split: _fingerprint(part, pick) for split, (part, pick) in ordered.items()},
        },
    )
