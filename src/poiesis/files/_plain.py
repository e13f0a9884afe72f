"""Plain and compressed files, text, JSON; and what all of this room shares."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from poiesis.errors import DataError

GIB = 1 << 30
MAX_FILE = 4 * GIB
MAX_JSON = GIB // 4
# Deflate reaches 1032:1 on zeros, real data rarely 50:1; small members may still be nearly empty.
MAX_RATIO = 200
RATIO_FREE = 16 << 20

SKIP = "use --skip-bad to leave such files out"
AGAIN = "fetch it again"
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, struct.error)


def bad(name: object, what: str, way_out: str = AGAIN) -> DataError:
    """Return the error of a bad file."""
    return DataError(" ".join(f"{name}: {what}; {way_out}".split()))


def os_error(path: object, error: OSError) -> DataError:
    """Return the error of a file that the system can't read."""
    return bad(path, f"can't be read ({error.strerror or error})", "check the path")


def exactly(stream: IO[bytes], size: int) -> bytes:
    """Read up to `size` bytes in pieces, so that memory follows the data and not the claim."""
    parts, left = [], size
    while left > 0 and (part := stream.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@contextlib.contextmanager
def open_stream(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, through gzip, bzip2 or xz where its first bytes say so."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
        start = file.peek(6)
    except OSError as error:
        raise os_error(path, error) from None
    with file:
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as stream:
                yield cast(IO[bytes], stream)
        elif start[:3] == b"BZh":
            with bz2.BZ2File(file) as stream:
                yield stream
        elif start[:6] == b"\xfd7zXZ\x00":
            with lzma.LZMAFile(file) as stream:
                yield stream
        else:
            yield file


def expansion_limit(path: str | Path) -> int:
    """Return how many bytes a compressed file may hold."""
    return max(RATIO_FREE, MAX_RATIO * Path(path).stat().st_size)


def read_bytes(path: str | Path, *, limit: int = MAX_FILE) -> bytes:
    """Return the content of a file, decompressed if it is gzip, bzip2 or xz, up to `limit` bytes.

    A compressed file may not expand by more than 200:1 beyond 16 MiB.
    """
    try:
        with open_stream(path) as stream:
            limit = min(limit, expansion_limit(path))
            data = exactly(stream, limit + 1)
    except DataError:
        raise
    except BROKEN as error:
        raise bad(path, f"is broken or truncated ({error})") from None
    if len(data) > limit:
        raise bad(path, f"holds more than the {limit:,} bytes allowed", "split or shrink it")
    return data


def decode_text(data: bytes, name: object, *, replace: bool = False) -> str:
    """Return UTF-8 bytes as text; invalid bytes are an error, or U+FFFD if `replace`."""
    try:
        return data.decode("utf-8", errors="replace" if replace else "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"invalid UTF-8 at byte {error.start} (line {line})"
        way = f"save it as UTF-8, or {SKIP}"
        raise bad(name, what, way) from None


def read_text(path: str | Path, *, replace: bool = False) -> str:
    """Return a UTF-8 text file as it is, newlines untouched."""
    return decode_text(read_bytes(path), path, replace=replace)


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file."""
    text = decode_text(read_bytes(path, limit=MAX_JSON), path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad(path, f"is not valid JSON ({error})", "write it again") from None
