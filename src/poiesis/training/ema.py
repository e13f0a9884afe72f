"""Moving averages of networks' weights and buffers: exponential, and of a power of the step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from poiesis.models import averages
from poiesis.models.base import GenerativeModel
from poiesis.training.distribution import is_sharded, place

__all__ = ["Average", "PowerAverage"]


class Average:
    """Moving averages of the networks that `model.ema()` names.

    The decay of step t is min(decay, (1 + t) / (10 + t)): early weights are soon forgotten. Float
    buffers (batch statistics) are averaged too, others are copied.
    """

    def __init__(self, model: GenerativeModel) -> None:
        self.model = model
        self.networks = self._named()
        self.shadow: dict[str, Tensor] = {}
        self._pairs: dict[tuple[str, bool], tuple[list[Tensor], list[Tensor]]] = {}
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._build()

    def _named(self) -> list[str]:
        return [network for network, decay in self.model.ema().items() if decay]

    def _towards(self, step: int) -> Mapping[str, float]:
        """Return network → the share of the way to its weights that the average goes."""
        most = (1 + step) / (10 + step)
        return {network: 1 - min(decay, most) for network, decay in self.model.ema().items()}

    def _live(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (network, name within the model, tensor) of what is averaged."""
        for network in self.networks:
            module = self.model.get_submodule(network)
            prefix = f"{network}." if network else ""
            # What a checkpoint holds: shared weights under all their names, no derived buffers.
            for name, tensor in module.state_dict(keep_vars=True).items():
                yield network, prefix + name, tensor

    @torch.no_grad()
    def _build(self) -> None:
        self._pairs = {}
        self._copies = []
        for network, name, tensor in self._live():
            if name not in self.shadow or self.shadow[name].shape != tensor.shape:
                self.shadow[name] = tensor.detach().clone()
            if tensor.is_floating_point():
                # Whole and sharded tensors apart: torch does not mix them.
                pair = self._pairs.setdefault((network, is_sharded(tensor)), ([], []))
                pair[0].append(self.shadow[name])
                pair[1].append(tensor.detach())
            else:
                self._copies.append((self.shadow[name], tensor))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights as they are now, in the memory there is."""
        self._build()
        for _, name, tensor in self._live():
            self.shadow[name].copy_(tensor)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after 0-based `step`."""
        shares = self._towards(step)
        for (network, _), (shadows, weights) in self._pairs.items():
            torch._foreach_lerp_(shadows, weights, shares[network])  # pyright: ignore
        for average, value in self._copies:
            average.copy_(value)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back saved averages."""
        for name, average in self.shadow.items():
            average.copy_(place(tensors[name], average))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model for the time of a ``with`` block."""
        live = {name: tensor for _, name, tensor in self._live()}
        sharded = {name: tensor for name, tensor in live.items() if is_sharded(tensor)}
        whole = {name: tensor for name, tensor in live.items() if name not in sharded}
        kept = {name: tensor.data for name, tensor in whole.items()}
        # FSDP2 holds on to the memory of what it sharded: there values move, not tensors.
        copies = {name: tensor.detach().clone() for name, tensor in sharded.items()}
        try:
            for name, tensor in whole.items():
                tensor.data = self.shadow[name]
            for name, tensor in sharded.items():
                tensor.detach().copy_(self.shadow[name])
            yield
        finally:
            for name, tensor in whole.items():
                tensor.data = kept[name]
            for name, tensor in sharded.items():
                tensor.detach().copy_(copies[name])


class PowerAverage(Average):
    """Moving averages of a length relative to training so far (`poiesis.models.averages`).

    Of the networks that the model averages, or may average; of all where it names none.
    """

    def __init__(self, model: GenerativeModel, length: float) -> None:
        self.power = averages.exponent(length) + 1
        super().__init__(model)

    def _named(self) -> list[str]:
        return list(self.model.ema()) or list(self.model.networks())

    def _towards(self, step: int) -> Mapping[str, float]:
        # 1 − (1 − 1/t)^power; the first step's weights are the average after it.
        share = -math.expm1(self.power * math.log1p(-1 / (step + 1))) if step else 1.0
        return dict.fromkeys(self.networks, share)
