"""Image folders and zip files of images: which files there are, decoded into memory or streamed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.data.codecs import ImageCodec
from poiesis.data.codecs.image import MODES, convert, fit, native_mode
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.arrays import describe
from poiesis.data.sources.attributes import attributes_of_files
from poiesis.data.sources.captions import TABLES, caption_of, read_captions, tokenize
from poiesis.data.sources.splits import Images, MemoryRows, assemble, to_bits
from poiesis.errors import DataError
from poiesis.files import IMAGE_SUFFIXES, Zip, image_header, read_bytes, read_image

__all__ = ["Found", "StreamSplit", "arrange", "list_folder", "list_zip", "open_files", "open_parts"]

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
CHANNELS = {mode: count for count, mode in MODES.items()}
# EXIF: from 5 on the picture lies on its side.
ORIENTATION = 0x0112
SIDEWAYS = 5


@dataclass
class Found:
    """Files of one kind by name, and how to read one."""

    where: object
    """What messages call the place."""
    names: list[str]
    read: Callable[[str], bytes]
    ignored: dict[str, int] = field(default_factory=dict)
    """How many files of other kinds lie there, by ending."""
    tables: list[str] = field(default_factory=list)
    """Files by name that may hold captions."""


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1] in (
        "Thumbs.db",
        "desktop.ini",
    )


def _sift(
    where: object,
    names: Sequence[str],
    read: Callable[[str], bytes],
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
) -> Found:
    seen = sorted(name for name in names if not _hidden(name))
    chosen = [name for name in seen if name.lower().endswith(suffixes)]
    other = Counter(PurePosixPath(name).suffix.lower() or "none" for name in seen)
    for name in chosen:
        other[PurePosixPath(name).suffix.lower()] -= 1
    tables = [name for name in seen if PurePosixPath(name).name in TABLES]
    return Found(where, chosen, read, {kind: n for kind, n in sorted(other.items()) if n}, tables)


def list_folder(path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Found:
    """Return the files with such endings below a folder, links to folders followed once.

    Raises OSError.
    """

    def refuse(error: OSError) -> None:
        raise error

    names: list[str] = []
    visited: set[str] = set()
    for folder, inner, files in os.walk(path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            inner.clear()
            continue
        visited.add(real)
        below = Path(folder).relative_to(path)
        names += [(below / file).as_posix() for file in files]
    return _sift(path, names, lambda name: read_bytes(path / name), suffixes)


def list_zip(path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Found:
    """Return the files with such endings in a zip file; raises DataError if there are none."""
    archive = Zip(path)
    found = _sift(path, archive.names, archive.read, suffixes)
    if not found.names:
        raise DataError(f"{path}: holds no images; give a zip of {', '.join(IMAGE_SUFFIXES)}")
    return found


def open_files(found: Found, name: str, config: DataConfig) -> DataSet:
    """Return the images by the layout of their paths.

    train/, val/ and test/ on top are official parts; folders (in them) are classes; without
    folders there are none. Folders that everything lies in are passed through, a lone train/ too.
    Captions of a table beside the images come before classes.
    """
    parts, captions = arrange(found), read_captions(found)
    if captions:
        parts = {
            part: [(file, caption_of(found, captions, file)) for file, _ in files]
            for part, files in parts.items()
        }
    return open_parts(found, parts, name, config, captioned=bool(captions))


def arrange(found: Found) -> dict[str, list[tuple[str, str]]]:
    """Return part → (name, class) of each file; the class is "" without folders."""
    split = {name: PurePosixPath(name).parts for name in found.names}
    while len({p[0] for p in split.values()}) == 1 and min(map(len, split.values())) > 1:
        split = {name: p[1:] for name, p in split.items()}
    folders = {p[0] for p in split.values() if len(p) > 1}
    official = {PARTS[f.lower()] for f in folders if f.lower() in PARTS}
    parts: dict[str, list[tuple[str, str]]] = {}
    for name, path in split.items():
        part = "all"
        if "train" in official:
            part = PARTS.get(path[0].lower(), "") if len(path) > 1 else ""
            if not part:
                raise DataError(f"{found.where}: {name} lies beside train/; move it into a part")
            path = path[1:]
        parts.setdefault(part, []).append((name, path[0] if len(path) > 1 else ""))
    for part, files in parts.items():
        flat = [name for name, label in files if not label]
        if flat and len(flat) < len(files):
            what = f"{flat[0]} lies beside the folders of the classes"
            raise DataError(f"{found.where}: {what}; move it into one, or all into one folder")
        if part != "train" and "train" in parts:
            strange = {label for _, label in files} - {label for _, label in parts["train"]}
            if strange:
                what = f"{part} has the class {min(strange)!r}, which train has not"
                if "" in strange:
                    what = f"{part} has no class folders, train has"
                raise DataError(f"{found.where}: {what}; use the same class folders in both")
    return parts


class _Reader:
    """Decodes one named image as the options say."""

    def __init__(self, found: Found, config: DataConfig) -> None:
        self.found, self.config = found, config

    @property
    def paired(self) -> bool:
        """Whether an image is two."""
        return self.config.pairs != "none"

    def pixels(self, name: str) -> np.ndarray:
        """Return uint8 (c, h, w); of a pair (2 c, h, w), first the one to learn."""
        config = self.config
        full = f"{self.found.where}/{name}"
        image = convert(read_image(self.found.read(name), full), config.channels, full)
        parts = [image]
        if self.paired:
            half = self._half(image.width, full)
            parts = [image.crop((left, 0, left + half, image.height)) for left in (0, half)]
            parts = parts[::-1] if config.pairs == "left-to-right" else parts
        found = []
        for part in parts:
            part = fit(part, config.resize, config.crop, full)
            found.append(np.array(part).reshape(part.height, part.width, -1).transpose(2, 0, 1))
        return np.concatenate(found)

    def _half(self, width: int, full: str) -> int:
        if width % 2:
            raise DataError(f"{full}: is {width} px wide: no two pictures of one width; crop it")
        return width // 2

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that `pixels` would have, from the header alone."""
        config = self.config
        full = f"{self.found.where}/{name}"
        image = image_header(self.found.read(name), full)
        width, height = image.size
        if image.getexif().get(ORIENTATION, 1) >= SIDEWAYS:
            width, height = height, width
        if self.paired:
            width = self._half(width, full)
        if config.resize is not None or config.crop is not None:
            side = config.crop or config.resize or 0
            smaller = config.resize or min(width, height)
            if smaller < side:
                fit(Image.new("L", (width, height)), config.resize, config.crop, full)
            width = height = side
        channels = config.channels or CHANNELS[native_mode(image, full)]
        return channels * (1 + self.paired), height, width


@dataclass
class StreamRows:
    """Rows that are decoded when they are asked for."""

    reader: _Reader
    names: list[str]
    y: Tensor | None
    kind: str = "none"
    part: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, positions: Tensor) -> StreamSplit:
        """Return a split that streams these rows."""
        return StreamSplit(self, positions)

    def binarize(self, kind: str, part: str) -> StreamRows:
        """Return the rows as bits."""
        return StreamRows(self.reader, self.names, self.y, kind, part)


class StreamSplit:
    """Rows read from their files by a few threads at each fetch; the same rows every time."""

    def __init__(self, rows: StreamRows, positions: Tensor) -> None:
        self.rows = rows
        self.positions = positions
        self._pool = ThreadPoolExecutor(rows.reader.config.workers, "poiesis-read")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def y(self) -> Tensor | None:
        """Classes of all rows, int64."""
        return None if self.rows.y is None else self.rows.y[self.positions]

    def fetch(
        self, positions: Tensor, epochs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rows at `positions`; raises DataError for a file that went bad."""
        where = self.positions[positions]
        names = [self.rows.names[place] for place in where.tolist()]
        pixels = list(self._pool.map(self.rows.reader.pixels, names))
        x = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, dtype=torch.uint8)
        if self.rows.kind != "none":
            x = to_bits(x, self.rows.kind, self.rows.part, where, 256)
        if self.rows.reader.paired:
            x, y = x.chunk(2, dim=1)
            return x, y
        return x, None if self.rows.y is None else self.rows.y[where]


@dataclass
class _Pass:
    """What one pass over all files of a part found."""

    kept: list[int] = field(default_factory=list)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    examples: dict[tuple[int, ...], str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def _each(
    names: Sequence[str], work: Callable[[str], np.ndarray | tuple[int, ...]]
) -> Iterator[tuple[int, np.ndarray | tuple[int, ...] | DataError]]:
    """Yield (place, result or DataError) of the work on each name, in order, done by threads."""

    def run(chunk: Sequence[str]) -> list[np.ndarray | tuple[int, ...] | DataError]:
        out: list[np.ndarray | tuple[int, ...] | DataError] = []
        for name in chunk:
            try:
                out.append(work(name))
            except DataError as error:
                out.append(error)
        return out

    threads = min(8, os.cpu_count() or 1)
    # A few hundred files are under way at a time, so that memory does not grow with the set.
    wave = 64 * threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), wave):
            block = names[start : start + wave]
            chunks = [block[at : at + 32] for at in range(0, len(block), 32)]
            place = start
            for results in pool.map(run, chunks):
                for result in results:
                    yield place, result
                    place += 1


def open_parts(
    found: Found,
    parts: dict[str, list[tuple[str, str]]],
    name: str,
    config: DataConfig,
    *,
    captioned: bool = False,
) -> DataSet:
    """Return the images of each part, given as (name, class or "") lists; or (name, caption)."""
    reader = _Reader(found, config)
    everything = [file for files in parts.values() for file, _ in files]
    channels, height, width = _first_shape(reader, everything, config)
    size = len(everything) * channels * height * width
    in_memory = size <= config.memory * 1e9
    rows: dict[str, MemoryRows | StreamRows] = {}
    labels: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    seen = _Pass()
    for part, files in parts.items():
        names = [file for file, _ in files]
        out = np.empty((len(names) if in_memory else 0, channels, height, width), np.uint8)
        kept = []
        # Broken pixels show only in decoding: a streamed set is decoded once to know what to skip.
        work = reader.pixels if in_memory or config.skip_bad else reader.shape
        for place, result in _each(names, work):
            if isinstance(result, DataError):
                if not config.skip_bad:
                    raise result
                seen.skipped.append(str(result))
                continue
            shape = result if isinstance(result, tuple) else result.shape
            seen.shapes[shape] += 1
            seen.examples.setdefault(shape, names[place])
            if in_memory and len(seen.shapes) == 1 and shape == out.shape[1:]:
                out[place] = result
            kept.append(place)
        labels[part] = [files[place][1] for place in kept]
        held[part] = [names[place] for place in kept]
        if in_memory:
            whole = torch.from_numpy(out if len(kept) == len(names) else out[kept])
            x, y = whole.chunk(2, dim=1) if reader.paired else (whole, None)
            rows[part] = MemoryRows(x, y)
        else:
            rows[part] = StreamRows(reader, [names[place] for place in kept], None)
    if len(seen.shapes) > 1:
        raise DataError(_mixed(found, seen, 1 + reader.paired))
    channels //= 1 + reader.paired
    attributes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    captions, left_out = None, {}
    if config.attributes and not reader.paired:
        for part, files in held.items():
            rows[part].y, attributes = attributes_of_files(config.attributes, files)
    elif captioned and not reader.paired:
        captions, tokens, count = tokenize(labels, found.where)
        left_out["words left out"] = count
        for part, y in tokens.items():
            rows[part].y = y
    elif not reader.paired:
        classes = _label(found, rows, labels, seen.skipped, config)
    codec = ImageCodec(
        channels=channels, size=(height, width), resize=config.resize, crop=config.crop
    )
    notes = {"origin": str(found.where), "ignored": found.ignored, "streamed": not in_memory}
    done = describe(config)
    if reader.paired:
        done.append(f"pairs, {config.pairs.replace('-', ' ')}")
    images = Images(
        name,
        rows,
        codec,
        classes,
        done,
        seen.skipped,
        notes | left_out,
        attributes=attributes,
        captions=captions,
        paired=reader.paired,
    )
    return assemble(images, config)


def _first_shape(reader: _Reader, names: Sequence[str], config: DataConfig) -> tuple[int, ...]:
    """Return the shape of the first image that can be read."""
    error = None
    for name in names:
        try:
            return reader.pixels(name).shape
        except DataError as found:
            if not config.skip_bad:
                raise
            error = error or found
    raise DataError(f"{reader.found.where}: no image can be read, the first because: {error}")


def _mixed(found: Found, seen: _Pass, pictures: int) -> str:
    """Describe the sizes or colours that occur, with the option that makes them one."""
    sizes: Counter[str] = Counter()
    colours: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for shape, count in seen.shapes.items():
        size, colour = f"{shape[2]}x{shape[1]}", MODES[shape[0] // pictures]
        sizes[size] += count
        colours[colour] += count
        examples.setdefault(size, seen.examples[shape])
        examples.setdefault(colour, seen.examples[shape])
    kinds, what, way = (
        (sizes, "sizes", "--data.resize N or --data.crop N")
        if len(sizes) > 1
        else (colours, "colours", "--data.channels 3 (or 1, or 4)")
    )
    ranked = kinds.most_common()
    listed = ", ".join(f"{n:,} of {kind}" for kind, n in ranked[:4])
    rest = f" and {len(ranked) - 4} more" if len(ranked) > 4 else ""
    rare = ranked[-1][0]
    return (
        f"{found.where}: images of different {what}: {listed}{rest} "
        f"(such as {examples[rare]}, {rare}); use {way}"
    )


def _label(
    found: Found,
    rows: dict[str, MemoryRows | StreamRows],
    labels: dict[str, list[str]],
    skipped: list[str],
    config: DataConfig,
) -> tuple[str, ...]:
    """Number the classes into the rows' y and return their names; leave out those too small."""
    main = "all" if "all" in rows else "train"
    cut = main == "all" or "validation" not in rows
    need = 2 if cut and config.validation != 0 else 1
    counts = Counter({label: 0 for part in labels.values() for label in part})
    counts.update(labels[main])
    small = sorted(label for label, count in counts.items() if count < need)
    for label in small:
        kind = f"the class {label!r}" if label else "the set"
        what = f"{kind} has {counts[label]} image{'s' * (counts[label] != 1)}, fewer than {need}"
        if not config.skip_bad or len(small) == len(counts):
            way = "add some, or use --skip-bad to leave the class out"
            raise DataError(f"{found.where}: {what}; {way if label else 'add some'}")
        skipped.append(f"{found.where}/{label}: {what}")
    classes = tuple(sorted(set(counts) - set(small)))
    for part, names in labels.items():
        kept = [place for place, label in enumerate(names) if label in classes]
        held = rows[part]
        if len(kept) < len(names):
            if isinstance(held, MemoryRows):
                held.x = held.x[kept]
            else:
                held.names = [held.names[place] for place in kept]
        if len(classes) > 1:
            held.y = torch.tensor([classes.index(names[place]) for place in kept])
    return classes if len(classes) > 1 else ()
