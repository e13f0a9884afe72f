"""Watching training: gradients that are not finite, and where they come from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poiesis.errors import RunError
from poiesis.models.base import GenerativeModel
from poiesis.training.distribution import whole

__all__ = ["BadSteps", "clip_gradients", "first_bad_module", "gradient_norm"]


def _kinds(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Part those with a gradient into whole and sharded ones, which torch does not mix."""
    kinds: dict[type, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(type(parameter.grad), []).append(parameter)
    return list(kinds.values())


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the 2-norm over all gradients, a scalar; 0 if there are none."""
    norms = [
        # What torch.nn.utils.get_total_norm does, without a tenth of a millisecond of sorting.
        whole(torch.stack(torch._foreach_norm([p.grad for p in kind])).norm())  # pyright: ignore
        for kind in _kinds(parameters)
    ]
    if len(norms) < 2:
        return norms[0] if norms else torch.zeros(())
    return torch.stack(norms).norm()


def clip_gradients(parameters: list[nn.Parameter], limit: float, norm: Tensor) -> None:
    """Scale gradients of this norm down to at most `limit`."""
    for kind in _kinds(parameters):
        torch.nn.utils.clip_grads_with_norm_(kind, limit, norm)


def first_bad_module(model: GenerativeModel) -> str:
    """Name the first module, in order of definition, with a weight or gradient not finite."""
    for what in ("weight", "gradient"):
        for name, parameter in model.named_parameters():
            tensor = parameter if what == "weight" else parameter.grad
            if tensor is not None and not torch.isfinite(tensor).all():
                return f"{name.rpartition('.')[0] or name} ({what})"
    return "the loss itself"


class BadSteps:
    """Counts steps skipped because their gradients were not finite; stops after too many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self.in_a_row = 0
        self.first = ""

    def good(self) -> None:
        """Note a finite step."""
        self.in_a_row = 0

    def bad(self, model: GenerativeModel, phase: str, step: int) -> str:
        """Note a skipped step and return a line about it; raises RunError at the limit."""
        where = first_bad_module(model)
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row == 1:
            self.first = where
        line = (
            f"step {step}, phase {phase}: gradients not finite, step skipped; first in {self.first}"
        )
        if self.in_a_row >= self.limit:
            raise RunError(
                f"{self.in_a_row} steps in a row had gradients that are not finite, first in "
                f"{self.first}; lower the learning rate, set --train.clip or use "
                "--train.precision fp32"
            )
        return line
