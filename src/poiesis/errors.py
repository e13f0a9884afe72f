"""The errors users see: one line that names the value, the bound and the way out.

Everything below `PoiesisError` is a mistake that the user can mend; the command line prints it
without a traceback and leaves with exit code 2. Any other exception is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CapabilityError",
    "ConfigError",
    "DataError",
    "MissingDependency",
    "PoiesisError",
    "PoiesisWarning",
    "RunError",
    "SpecError",
    "suggest",
]


class PoiesisError(Exception):
    """A mistake the user can mend; its text is one line."""


class ConfigError(PoiesisError):
    """An option that is unknown, of the wrong type or out of its bounds."""


class DataError(PoiesisError):
    """Input data that is missing, broken, unsafe or unsuitable."""


class SpecError(PoiesisError):
    """A model was given a kind or shape of data that it can't learn."""


class RunError(PoiesisError):
    """A run folder or file of ours that is missing, damaged or of another kind."""


class CapabilityError(PoiesisError):
    """A model was asked for something it can't do."""


class MissingDependency(PoiesisError):
    """An optional package is not installed; the text holds the install line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"pip install 'poiesis[{extra}]'"
        )


class PoiesisWarning(UserWarning):
    """Something worth knowing that does not stop the work."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known word, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
