"""How often samples asked a network: the price of a sample, whatever the machine.

with counting() as count:
    x = model.sample(64)
count.each  # 20.0 with 20 steps of ddim
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["Count", "asked", "counting", "drawn", "say"]


class Count:
    """What networks were asked, and the samples made, since the count began.

    rows: of all inputs of a network that is called again and again, one for each sample of a batch
    and call. samples: finished ones.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.samples = 0

    @property
    def each(self) -> float | None:
        """Evaluations of a network for each sample; None where none was counted."""
        return self.rows / self.samples if self.rows and self.samples else None


_counts: ContextVar[tuple[Count, ...]] = ContextVar("counts", default=())


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Count until the block ends; counts may be nested, and each counts all of its own block."""
    count = Count()
    token = _counts.set((*_counts.get(), count))
    try:
        yield count
    finally:
        _counts.reset(token)


def asked(rows: int) -> None:
    """Note that a network is asked about so many rows."""
    for count in _counts.get():
        count.rows += rows


def drawn(samples: int) -> None:
    """Note that so many samples are finished."""
    for count in _counts.get():
        count.samples += samples


def say(each: float | None, before: str = "", after: str = "") -> str:
    """Return evaluations of a sample in words, such as "20 evaluations"; nothing for None."""
    if each is None:
        return ""
    return f"{before}{each:.4g} evaluation{'s' if each != 1 else ''}{after}"
