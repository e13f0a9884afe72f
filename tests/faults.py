"""Faults on purpose: a process that dies, or a disk that is full, at the n-th write operation.

Inside ``with Faults(...)`` everything that changes the disk is counted: opening a file for writing,
writing (with half of the data written before the fault), fsync, mkdir, rename, unlink, rmdir.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

CALLS = ("fsync", "mkdir", "replace", "rename", "unlink", "rmdir", "remove", "truncate")
NEEDS_SPACE = ("open", "write", "fsync", "mkdir", "replace")


def die() -> None:
    """Leave no time for anything, as kill -9 and a power cut do."""
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Faults:
    """Counts write operations; does `fault` at operation `at`, counted from 0, or from there on."""

    def __init__(
        self,
        at: int | None = None,
        fault: Callable[[], None] = die,
        *,
        lasting: bool = False,
        only: tuple[str, ...] | None = None,
    ) -> None:
        self.at, self.fault, self.lasting, self.only = at, fault, lasting, only
        self.seen: list[str] = []
        """Names of the operations so far."""

    def due(self, name: str) -> bool:
        if self.only is not None and name not in self.only:
            return False
        self.seen.append(name)
        number = len(self.seen) - 1
        return self.at is not None and (number == self.at or (self.lasting and number > self.at))

    def __enter__(self) -> Faults:
        self._kept = {name: getattr(os, name) for name in CALLS}
        for name, real in self._kept.items():
            setattr(os, name, self._counted(name, real))
        self._open = builtins.open
        builtins.open = io.open = self._counted_open  # pathlib has the second
        return self

    def __exit__(self, *_: Any) -> None:
        for name, real in self._kept.items():
            setattr(os, name, real)
        builtins.open = io.open = self._open

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.due(name):
                self.fault()
            return real(*args, **kwargs)

        return call

    def _counted_open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return self._open(file, mode, *args, **kwargs)
        if self.due("open"):
            self.fault()
        opened = self._open(file, mode, *args, **kwargs)
        return _File(opened, self)


class _File:
    """A file whose writes count; at a fault half of the data is written."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, data: Any) -> int:
        if self._faults.due("write"):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._faults.fault()
        return self._file.write(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process; return 0, or minus the signal that ended it.

    Raises AssertionError if the action raised: its traceback is on stderr.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code <= 0, "the forked process raised"
    return code


def killed_at(at: int, action: Callable[[], Any], only: tuple[str, ...] | None = None) -> bool:
    """Run `action` in a process that dies at write operation `at`; False if it had fewer."""

    def run() -> None:
        with Faults(at, only=only):
            action()

    return in_child(run) == -signal.SIGKILL
