"""Tokens to text as they come: never half a character, and stop strings found wherever they lie.

A tokenizer's decoder turns tokens into bytes (or into a string, with U+FFFD in place of a broken
character); one character may be spread over several tokens and one token may hold several
characters. Both classes here take that decoder as a function and know nothing of models.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from poiesis.errors import ConfigError

__all__ = ["StopStrings", "TextStream"]

TokenDecoder = Callable[[Sequence[int]], str | bytes]
"""Tokens → their text: bytes, or a string with U+FFFD for characters that are not complete."""

_BROKEN = "\ufffd"


class TextStream:
    """Turn a growing list of tokens into text, piece by piece, whole characters only.

    Put together, the pieces and the final `flush` are the text of all tokens decoded at once
    (invalid UTF-8 as U+FFFD).
    """

    def __init__(self, decode: TokenDecoder) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._done = 0
        # The piece before is decoded again with each new one: decoders may join neighbours.
        self._start = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take one token; return the text that became complete with it (often of one token)."""
        self._tokens.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """Return what is left at the end; an unfinished character becomes U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self._tokens[self._start : self._done])
        now = self._decode(self._tokens[self._start :])
        if isinstance(now, bytes):
            self._start, self._done = self._done, len(self._tokens)
            return self._utf8.decode(now[len(before) :], final)
        # Decoders of strings show an unfinished character as U+FFFD: wait for its other bytes,
        # which no character has more than four of.
        pending = len(self._tokens) - self._done
        if not final and now.endswith(_BROKEN) and pending < 4:
            return ""
        self._start, self._done = self._done, len(self._tokens)
        return now[len(before) :]


class StopStrings:
    """End a text at the first of some strings, wherever tokens and characters are cut.

    `push` each token, and `flush` at the end: the pieces they return never show a part of a stop
    string, and joined they are the text before it. `stopped` tells whether one was found.
    """

    def __init__(self, stop: Sequence[str], decode: TokenDecoder) -> None:
        if any(not text for text in stop):
            raise ConfigError("a stop string is empty: give at least one character")
        self._stop = tuple(stop)
        self._stream = TextStream(decode)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; return the text that is certain to precede any stop string."""
        return self._take(self._stream.push(token))

    def flush(self) -> str:
        """Return the held-back end of a text that no stop string ended."""
        text = self._take(self._stream.flush()) + self._held
        self._held = ""
        return text

    def _take(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
