"""Captions of images: tables of them, the words of the training part, the tokens of every part."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poiesis.errors import DataError
from poiesis.files import decode_text
from poiesis.spec import Captions

if TYPE_CHECKING:
    from poiesis.data.sources.images import Found

__all__ = [
    "EXAMPLES",
    "MOST_WORDS",
    "TABLES",
    "caption_of",
    "read_captions",
    "tokenize",
    "with_examples",
]

TABLES = ("metadata.csv", "captions.csv", "captions.txt")
"""Names of files that may hold captions, of the images in their folder or below."""
_FILE = ("file_name", "file", "image")
_TEXT = ("text", "caption")

EXAMPLES = 64
"""Held-out captions that a run keeps, to show what it can do."""
MOST_WORDS = 64
"""Words of a caption that are read."""


def read_captions(found: Found) -> dict[str, str]:
    """Return file name → caption, its first, of the tables beside images; raises DataError.

    A table has a header, with a column file_name, file or image and a column text or caption;
    others are no tables of captions.
    """
    captions: dict[str, str] = {}
    for name in found.tables:
        text = decode_text(found.read(name), f"{found.where}/{name}").removeprefix("\ufeff")
        head = text.partition("\n")[0]
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=head.count))
        try:
            header = [cell.strip() for cell in rows.fieldnames or ()]
            rows.fieldnames = header
            file = next((column for column in _FILE if column in header), None)
            caption = next((column for column in _TEXT if column in header), None)
            if file is None or caption is None:
                continue
            for row in rows:
                path = (PurePosixPath(name).parent / (row[file] or "").strip()).as_posix()
                captions.setdefault(path, row[caption] or "")
        except csv.Error as error:
            way = "save it as a plain csv file"
            raise DataError(f"{found.where}/{name}: line {rows.line_num}: {error}; {way}") from None
    return captions


def caption_of(found: Found, captions: Mapping[str, str], file: str) -> str:
    """Return the caption of an image; raises DataError if it has none."""
    if file not in captions:
        raise DataError(
            f"{found.where}/{file}: has no caption in {' or '.join(found.tables)}, others have; "
            "add a row for it, with an empty caption if need be"
        )
    return captions[file]


def tokenize(
    texts: Mapping[str, Sequence[str]], where: object
) -> tuple[Captions, dict[str, Tensor], int]:
    """Return the words of the training texts, the tokens (n, length) of each part's, and a count.

    The words are those of "train", or of "all" without it; words that only other parts have and
    those after the 64th are left out, and counted. Raises DataError, naming `where`, for no words.
    """
    words = {part: [Captions.split(text) for text in each] for part, each in texts.items()}
    main = words["train" if "train" in words else "all"]
    known = sorted({word for caption in main for word in caption[:MOST_WORDS]})
    if not known:
        raise DataError(f"{where}: its captions hold no words; write some, or remove the captions")
    number = {word: place for place, word in enumerate(known, start=1)}
    length = min(MOST_WORDS, max(len(caption) for part in words.values() for caption in part))
    tokens = {}
    left_out = 0
    for part, captions in words.items():
        y = torch.full((len(captions), length), Captions.none)
        for row, caption in enumerate(captions):
            kept = [number[word] for word in caption[:length] if word in number]
            left_out += len(caption) - len(kept)
            y[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        tokens[part] = y
    return Captions(words=tuple(known), length=length), tokens, left_out


def with_examples(captions: Captions, tokens: Tensor) -> Captions:
    """Return the captions with examples out of tokens (n, length), spread evenly over them."""
    texts = list(dict.fromkeys(map(captions.text, tokens.tolist())))
    picked = torch.linspace(0, len(texts) - 1, min(EXAMPLES, len(texts))).round().long().tolist()
    return dataclasses.replace(captions, examples=tuple(texts[place] for place in picked))
