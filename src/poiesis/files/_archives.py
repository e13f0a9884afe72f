"""Zip and tar files, read member by member."""

from __future__ import annotations

import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from poiesis.errors import DataError
from poiesis.files._plain import (
    BROKEN,
    GIB,
    MAX_RATIO,
    RATIO_FREE,
    SKIP,
    bad,
    exactly,
    open_stream,
    os_error,
)

BOMB = "it looks like a bomb"


def safe_member(archive: object, member: str) -> str:
    """Return the path of a member with forward slashes; DataError if it leaves the archive."""
    plain = member.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if plain.startswith("/") or ".." in parts or re.match(r"^[A-Za-z]:", plain) or "\0" in plain:
        what = f"its member {member!r} points outside the archive"
        raise bad(archive, what, "such a file is not to be trusted; pack it again")
    return plain


def _total_limit(packed: int) -> int:
    return max(GIB, 100 * packed)


class Zip:
    """A zip file whose members are read one at a time; threads may share it.

    Names are checked on opening: a path that leaves the archive, a link, an encrypted member or an
    expansion beyond 200:1 (of a member above 16 MiB) or beyond 100:1 (of a total above 1 GiB)
    refuses the whole file.
    """

    def __init__(self, path: str | Path | IO[bytes], name: object = None) -> None:
        self.name = path if name is None else name
        try:
            self._zip = zipfile.ZipFile(path)
            packed = self._zip.fp.seek(0, 2) if self._zip.fp else 0
        except OSError as error:
            raise os_error(self.name, error) from None
        except Exception:
            raise bad(self.name, "is not a zip file, or is truncated") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in self._zip.infolist():
            member = safe_member(self.name, info.filename)
            if info.is_dir():
                continue
            total += info.file_size
            self._check(info, member)
            if total > _total_limit(packed):
                raise bad(self.name, f"expands to more than {total:,} bytes", BOMB)
            self._members[member] = info

    def _check(self, info: zipfile.ZipInfo, member: str) -> None:
        if stat.S_ISLNK(info.external_attr >> 16):
            raise bad(self.name, f"its member {member!r} is a link", "pack plain files")
        if info.flag_bits & 1:
            raise bad(self.name, f"its member {member!r} is encrypted", "pack it without password")
        if info.file_size > max(RATIO_FREE, MAX_RATIO * info.compress_size):
            what = (
                f"its member {member!r} expands {info.compress_size:,} to {info.file_size:,} bytes"
            )
            raise bad(self.name, what, BOMB)

    @property
    def names(self) -> list[str]:
        """Paths of the plain files inside, with forward slashes, in the archive's order."""
        return list(self._members)

    def size(self, member: str) -> int:
        """Return the size in bytes that the directory claims for a member."""
        return self._members[member].file_size

    def read(self, member: str) -> bytes:
        """Return the content of one member, checked against its claimed size and checksum."""
        info = self._members[member]
        try:
            with self._zip.open(info) as stream:
                data = exactly(stream, info.file_size + 1)
        except Exception:
            raise bad(f"{self.name}:{member}", "is a broken zip member", SKIP) from None
        if len(data) != info.file_size:
            raise bad(f"{self.name}:{member}", "is not as long as the zip says", SKIP)
        return data

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


class _Limited(io.RawIOBase):
    """A readable stream that refuses to give more than `limit` bytes in all."""

    def __init__(self, stream: IO[bytes], name: object, limit: int) -> None:
        self._stream, self._name, self._left = stream, name, limit

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(1 << 20 if size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise bad(self._name, "expands beyond 100 times its size", BOMB)
        return data


def tar_members(
    path: str | Path, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the plain files in a tar file (gz, bz2, xz or none) by its order.

    Links and devices are refused, as are names that leave the archive and a total expansion beyond
    100:1 (above 1 GiB).
    """
    try:
        with open_stream(path) as stream:
            limited = _Limited(stream, path, _total_limit(Path(path).stat().st_size))
            with tarfile.open(fileobj=cast(IO[bytes], limited), mode="r|") as archive:
                for info in archive:
                    member = safe_member(path, info.name)
                    if info.isdir():
                        continue
                    if not info.isfile():
                        raise bad(
                            path, f"its member {member!r} is no plain file", "pack plain files"
                        )
                    file = archive.extractfile(info) if wanted(member) else None
                    if file is None:
                        continue
                    data = exactly(file, info.size)
                    if len(data) != info.size:
                        raise bad(path, f"ends inside its member {member!r}")
                    yield member, data
    except DataError:
        raise
    except (*BROKEN, tarfile.TarError, RecursionError) as error:
        raise bad(path, f"is a broken or truncated tar file ({error})") from None
