"""From a model's `Optim` declarations to torch optimizers and learning-rate factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from poiesis.errors import ConfigError
from poiesis.models.base import GenerativeModel, Optim, Schedule
from poiesis.training.distribution import place
from poiesis.training.muon import Muon

__all__ = ["build", "factor", "load_state", "parameters", "slots", "state"]


def parameters(model: GenerativeModel, optim: Optim) -> list[tuple[str, nn.Parameter]]:
    """Return the (name, parameter) pairs that an optimizer declaration covers."""
    named = model.named_networks(optim.networks)
    return [(n, p) for n, p in named if optim.select is None or optim.select(n, p)]


def build(model: GenerativeModel, optim: Optim) -> Optimizer:
    """Return the torch optimizer of a declaration, fused where torch has it."""
    named = parameters(model, optim)
    if not named:
        raise ConfigError(f"an optimizer over {optim.networks} of {type(model).__name__} is empty")
    if optim.decay_matrices_only and optim.weight_decay:
        matrices = [p for _, p in named if p.dim() >= 2]
        others = [p for _, p in named if p.dim() < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
    else:
        groups = [{"params": [p for _, p in named]}]
    lr, wd = optim.lr, optim.weight_decay
    if optim.kind == "adam":
        return torch.optim.Adam(
            groups, lr=lr, betas=optim.betas, eps=optim.eps, weight_decay=wd, fused=True
        )
    if optim.kind == "adamw":
        return torch.optim.AdamW(
            groups, lr=lr, betas=optim.betas, eps=optim.eps, weight_decay=wd, fused=True
        )
    if optim.kind == "adamax":
        return torch.optim.Adamax(groups, lr=lr, betas=optim.betas, eps=optim.eps, weight_decay=wd)
    if optim.kind == "rmsprop":
        alpha = optim.betas[1]
        return torch.optim.RMSprop(
            groups, lr=lr, alpha=alpha, eps=optim.eps, momentum=optim.momentum, weight_decay=wd
        )
    if optim.kind == "muon":
        return Muon(groups, lr=lr, momentum=optim.momentum or 0.95, weight_decay=wd)
    return torch.optim.SGD(groups, lr=lr, momentum=optim.momentum, weight_decay=wd)


def factor(schedule: Schedule, step: int, total: int) -> float:
    """Return the learning-rate factor of 0-based `step` in a stage of `total` steps."""
    warmup = schedule.warmup if schedule.warmup >= 1 else schedule.warmup * total
    if step < warmup:
        return (step + 1) / (math.ceil(warmup) + 1)
    begin = max(warmup, schedule.start * total)
    if schedule.kind == "constant" or step < begin or total <= begin:
        return 1.0
    done = min(1.0, (step - begin) / max(1.0, total - begin))
    shape = 1 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return schedule.final + (1 - schedule.final) * shape


def slots(optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (slot, parameter): the number of each parameter over all groups, as text."""
    index = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield str(index), parameter
            index += 1


def state(optimizer: Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return (tensors by "slot/key", plain values by "slot/key") of an optimizer's state."""
    tensors, values = {}, {}
    for slot, parameter in slots(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            (tensors if torch.is_tensor(value) else values)[f"{slot}/{key}"] = value
    return tensors, values


def load_state(
    optimizer: Optimizer, tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> None:
    """Take back what `state` returned, in the memory layout of each parameter.

    The layout matters: fused kernels walk parameter and state side by side in memory.
    """
    owners = dict(slots(optimizer))
    optimizer.state.clear()
    for key, value in {**values, **tensors}.items():
        slot, name = key.split("/", 1)
        parameter = owners[slot]
        if torch.is_tensor(value):
            if value.shape == parameter.shape:
                value = place(value, parameter)
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            else:
                value = value.clone()
        optimizer.state[parameter][name] = value
