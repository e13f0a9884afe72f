"""Text: str ↔ int64 tokens, which are characters, bytes, or byte pairs (BPE).

BPE works on bytes (Radford et al. 2019, GPT-2; Sennrich et al. 2016, arXiv:1508.07909), so that
bytes and BPE can express any text; characters only what the training text held.
"""

from __future__ import annotations

import functools
import json
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from poiesis.data.provenance import write_sidecar
from poiesis.errors import DataError
from poiesis.spec import Tokens

__all__ = ["TextCodec"]

# A text is fed to the BPE library in pieces that it can work on side by side.
PIECE = 1 << 16
# Of a preview: characters a line, lines a text, pixels a line.
COLUMNS, LINES, LEADING = 80, 12, 15


def _pieces(text: str) -> list[str]:
    """Cut a text behind newlines into pieces of about PIECE characters."""
    cuts, start = [], 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        cuts.append(text[start:end])
        start = end
    return cuts


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans Mono, which comes with matplotlib; Pillow's own font knows ASCII only."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono.ttf", 11)


class TextCodec:
    """Text as tokens; made by `characters`, `bytes` or `bpe`."""

    def __init__(self, kind: Literal["characters", "bytes", "bpe"], model: str = "") -> None:
        """`model`: the alphabet in code-point order, nothing for bytes, the tokenizer's JSON."""
        self.kind = kind
        self.model = model
        if kind == "characters" and not model:
            raise DataError("the text is empty: there are no characters to learn")

    @classmethod
    def learn(
        cls, kind: Literal["characters", "bytes", "bpe"], text: str, vocabulary: int = 2048
    ) -> TextCodec:
        """Return the codec of this kind for a text; `vocabulary` is the size for BPE.

        BPE may find fewer pairs than asked in a short text.
        """
        if kind == "characters":
            return cls(kind, "".join(map(chr, np.unique(_codes(text)))))
        if kind == "bytes":
            return cls(kind)
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(_pieces(text), trainer)
        return cls(kind, tokenizer.to_str())

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self.model)
        except Exception:  # the library raises bare Exception
            raise DataError("the saved BPE tokenizer is damaged; train again") from None

    @functools.cached_property
    def _alphabet(self) -> np.ndarray:
        return _codes(self.model)

    @functools.cached_property
    def vocabulary(self) -> int:
        """Number of tokens."""
        if self.kind == "bytes":
            return 256
        return len(self.model) if self.kind == "characters" else self._tokenizer.get_vocab_size()

    @property
    def suffix(self) -> str:
        """Plain UTF-8 text."""
        return ".txt"

    @property
    def shown(self) -> int:
        """Texts that a preview shows well."""
        return 4

    @property
    def spec(self) -> Tokens:
        """A stream of tokens."""
        return Tokens(vocabulary=self.vocabulary, length=0, stream=True)

    def encode(self, raw: str) -> Tensor:
        """Return tokens (t,), int64; raises DataError for a character that was never seen."""
        if self.kind == "bytes":
            tokens = np.frombuffer(raw.encode("utf-8"), np.uint8)
        elif self.kind == "bpe":
            pieces = self._tokenizer.encode_batch(_pieces(raw), add_special_tokens=False)
            tokens = np.concatenate([np.zeros(0, np.int64), *(piece.ids for piece in pieces)])
        else:
            codes = _codes(raw)
            tokens = np.searchsorted(self._alphabet, codes)
            strange = self._alphabet[tokens.clip(max=len(self._alphabet) - 1)] != codes
            if strange.any():
                where = int(strange.argmax())
                kinds = "".join(sorted(set(np.array(list(raw))[strange])))[:20]
                raise DataError(
                    f"the character {raw[where]!r} at {where} is not among the "
                    f"{self.vocabulary} that were learned (strange ones: {kinds!r}): "
                    "leave it out, or train with --data.tokenizer bytes or bpe"
                )
        return torch.from_numpy(tokens.astype(np.int64))

    def decode(self, tensor: Tensor) -> str:
        """Return the text of tokens (t,); bytes that are no UTF-8 become U+FFFD."""
        if self.kind == "bpe":
            return self._tokenizer.decode(tensor.tolist(), skip_special_tokens=False)
        tokens = tensor.cpu().numpy()
        if self.kind == "bytes":
            return tokens.astype(np.uint8).tobytes().decode("utf-8", "replace")
        return self._alphabet[tokens].tobytes().decode("utf-32-le", "surrogatepass")

    def write(self, raw: str, path: Path, recipe: dict[str, Any] | None = None) -> None:
        """Write a UTF-8 file, newlines untouched, and its recipe beside it."""
        Path(path).write_bytes(raw.encode("utf-8"))
        if recipe is not None:
            write_sidecar(path, recipe)

    def preview(self, raws: list[str], columns: int | None = None) -> Image.Image:
        """Return the texts below one another as a picture, each cut to twelve lines.

        columns: not used, texts have none.
        """
        font = _font()
        blocks = []
        for raw in raws:
            kept = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in raw)
            lines = [
                part
                for line in kept.splitlines()
                for part in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]
            ]
            blocks.append([*lines[:LINES], *(["…"] if len(lines) > LINES else [])] or [""])
        rows = sum(len(block) + 1 for block in blocks)
        picture = Image.new("RGB", (COLUMNS * 7 + 16, rows * LEADING + 8), "white")
        draw, y = ImageDraw.Draw(picture), 8
        for block in blocks:
            for line in block:
                draw.text((8, y), line, fill="black", font=font)
                y += LEADING
            draw.line((8, y + 5, picture.width - 8, y + 5), fill="silver")
            y += LEADING
        return picture

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the alphabet or tokenizer, JSON-ready."""
        model = json.loads(self.model) if self.kind == "bpe" else self.model
        return {"kind": "text", "tokens": self.kind, "model": model}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TextCodec:
        """Return the codec of these fields."""
        kind, model = fields["tokens"], fields["model"]
        if kind not in ("characters", "bytes", "bpe"):
            raise ValueError(f"tokens of kind {kind!r}")
        return cls(kind, json.dumps(model) if kind == "bpe" else model)
