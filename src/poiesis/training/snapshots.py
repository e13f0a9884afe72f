"""Snapshots of averaged weights on the way, for averages of any length after training.

Each holds the averages of two lengths as they are after a step (`poiesis.models.averages`, which
makes others of them). They are checkpoints of a kind of their own in the run, whole also where
training splits networks over processes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from poiesis import processes
from poiesis.errors import RunError
from poiesis.models.averages import FILE, LENGTHS
from poiesis.models.base import GenerativeModel
from poiesis.runs import Run
from poiesis.training import distribution
from poiesis.training.ema import PowerAverage

__all__ = ["Snapshots"]


class Snapshots:
    """The averages that snapshots are taken of; none, at no cost, unless they are wanted."""

    def __init__(self, model: GenerativeModel, wanted: bool) -> None:
        lengths = LENGTHS if wanted else ()
        self.averages = {length: PowerAverage(model, length) for length in lengths}

    @property
    def shadow(self) -> dict[str, Tensor]:
        """The averages as tensors "LENGTH/NAME"; empty if none are kept."""
        return {
            f"{length:g}/{name}": tensor
            for length, average in self.averages.items()
            for name, tensor in average.shadow.items()
        }

    def restart(self) -> None:
        """Begin anew from the weights as they are now."""
        for average in self.averages.values():
            average.restart()

    def update(self, step: int) -> None:
        """Move the averages towards the weights after 0-based `step`."""
        for average in self.averages.values():
            average.update(step)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back saved averages; raises RunError if the run kept none."""
        if self.averages and not tensors:
            raise RunError(
                "train.snapshots can't begin in the middle of a run, whose averages count from its "
                "first step; leave it out, or start a new run from these weights with --init"
            )
        for length, average in self.averages.items():
            average.load({name: tensors[f"{length:g}/{name}"] for name in average.shadow})

    def write(self, run: Run, step: int, keep: int) -> None:
        """Write a snapshot after `step` into the run, keep `keep` at most; all processes ask."""
        tensors = {}
        for name, tensor in self.shadow.items():
            full = distribution.whole(tensor)
            if processes.main():
                tensors[name] = full.cpu()
        files = {FILE: tensors, "state.json": {"lengths": list(self.averages)}}
        run.save_checkpoint(step, files, kind="average", pointer=None, keep=keep)
