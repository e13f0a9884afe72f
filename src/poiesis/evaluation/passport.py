"""Numbers with passports: what a value was measured on and with, and when two may be compared.

A FID of another extractor, sample count, resizer or data variant is another quantity. So every
number carries all of that, and comparing two whose passports differ is an error that names what
differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from poiesis.errors import PoiesisError, RunError
from poiesis.metrics import Estimate

__all__ = ["Number", "Passport", "PassportMismatch", "check_same", "compare_numbers"]


class PassportMismatch(PoiesisError):
    """Two numbers were compared that were not measured in the same way."""


@dataclass(frozen=True, kw_only=True)
class Passport:
    """How a number was measured."""

    extractor: str = ""
    """Name of the feature extractor; empty where none is used (likelihoods, speed)."""
    sha256: str = ""
    """Hash of the extractor's weights."""
    layer: str = ""
    """Layer of the features."""
    resizer: str = ""
    """How images came to the extractor's size."""
    dtype: str = "float64"
    """Arithmetic: of the extractor / of the metric."""
    data: str
    """Name of the data set."""
    variant: str
    """Its exact variant."""
    split: str
    """Which split the real samples come from."""
    n_real: int
    """Number of real samples."""
    n_generated: int
    """Number of generated samples; 0 where none are needed."""
    seed: int
    """Seed of sampling, subsampling and intervals."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The metric's own settings, as JSON values."""

    def differences(self, other: Passport) -> dict[str, tuple[Any, Any]]:
        """Return field → both values where they differ; settings as ``settings.NAME``."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        for values in (mine, theirs):
            values.update({f"settings.{k}": v for k, v in values.pop("settings").items()})
        names = [*mine, *(name for name in theirs if name not in mine)]
        pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, kw_only=True)
class Number:
    """A measured value, its 95% interval where it has one, and its passport."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    higher_is_better: bool | None
    """None where neither direction is better in itself."""
    unit: str = ""
    passport: Passport
    evaluations: float | None = None
    """Of a network, for each sample or likelihood, where it was asked again and again; of another
    sampler they may be others, so they hinder no comparison."""

    @classmethod
    def of(
        cls,
        name: str,
        estimate: Estimate,
        passport: Passport,
        *,
        higher_is_better: bool | None,
        unit: str = "",
    ) -> Number:
        """Return a number with the estimate's 95% interval, seeded by the passport's seed."""
        return cls(
            name=name,
            value=estimate.value,
            interval=estimate.interval(seed=passport.seed),
            higher_is_better=higher_is_better,
            unit=unit,
            passport=passport,
        )

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Number:
        """Read back what `to_json` wrote; raises RunError for anything else."""
        try:
            fields = dict(data)
            fields["passport"] = Passport(**fields["passport"])
            if fields["interval"] is not None:
                low, high = fields["interval"]
                fields["interval"] = (low, high)
            return cls(**fields)
        except (TypeError, KeyError, ValueError):
            raise RunError(
                "a number of this evaluation is damaged: evaluate the run again"
            ) from None


def check_same(*numbers: Number) -> None:
    """Raise PassportMismatch, naming the fields that differ, unless all may be compared."""
    for other in numbers[1:]:
        first = numbers[0]
        if first.name != other.name:
            raise PassportMismatch(f"{first.name} and {other.name} are different metrics")
        differ = first.passport.differences(other.passport)
        if differ:
            found = "; ".join(f"{name}: {a!r} and {b!r}" for name, (a, b) in differ.items())
            raise PassportMismatch(
                f"these {first.name} values can't be compared, they differ in {found}: evaluate "
                "both with the same settings"
            )


def compare_numbers(first: Number, second: Number) -> Literal["first", "second", "undecided"]:
    """Return which is better; undecided where their intervals overlap or neither end is better.

    Raises PassportMismatch where they can't be compared.
    """
    check_same(first, second)
    if first.higher_is_better is None:
        return "undecided"
    a = first.interval or (first.value, first.value)
    b = second.interval or (second.value, second.value)
    if a[0] <= b[1] and b[0] <= a[1]:
        return "undecided"
    return "first" if (a[0] > b[1]) == first.higher_is_better else "second"
