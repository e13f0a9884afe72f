"""From a model's `Optim` declarations to torch optimizers and learning-rate factors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poiesis.errors import ConfigError
from poiesis.models.base import GenerativeModel, Optim, Schedule
from poiesis.training.distribution import is_sharded, place
from poiesis.training.muon import Muon

__all__ = ["build", "factor", "follow", "load_states", "owners", "parameters", "states"]

Optimizers = Mapping[str, Optimizer]


def parameters(model: GenerativeModel, optim: Optim) -> list[tuple[str, nn.Parameter]]:
    """Return the (name, parameter) pairs that an optimizer declaration covers."""
    named = model.named_networks(optim.networks)
    return [(n, p) for n, p in named if optim.select is None or optim.select(n, p)]


def build(model: GenerativeModel, optim: Optim) -> Optimizer:
    """Return the torch optimizer of a declaration, fused where torch has it."""
    own = parameters(model, optim)
    if not own:
        raise ConfigError(f"an optimizer over {optim.networks} of {type(model).__name__} is empty")
    kinds: dict[tuple[float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in own:
        spared = optim.decay_matrices_only and parameter.dim() < 2
        # Whole and sharded parameters apart: torch does not mix them in one update.
        kind = (0.0 if spared else optim.weight_decay, is_sharded(parameter))
        kinds.setdefault(kind, []).append((name, parameter))
    groups = [{"params": params, "weight_decay": decay} for (decay, _), params in kinds.items()]
    lr, wd = optim.lr, optim.weight_decay
    if optim.kind in ("adam", "adamw"):
        return FusedAdam(
            groups,
            lr=lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=wd,
            decoupled_weight_decay=optim.kind == "adamw",
            fused=True,
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


class FusedAdam(torch.optim.Adam):
    """Adam (arXiv:1412.6980) or AdamW (1711.05101): one call of torch's fused kernel a group.

    The kernel copies what is not contiguous, such as convolutions whose channels come last in
    memory, and so takes twice its time on a CPU. With their axes in the order of memory they are
    contiguous, and an update by element does not mind the order.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            rows = [
                _in_memory_order(p, self._state(p)) for p in group["params"] if p.grad is not None
            ]
            if not rows:
                continue
            parameters, gradients, means, squares, steps = map(list, zip(*rows, strict=True))
            torch._foreach_add_(steps, 1)  # pyright: ignore
            decoupled = group["decoupled_weight_decay"]
            update = torch._fused_adamw_ if decoupled else torch._fused_adam_  # pyright: ignore
            update(
                parameters,
                gradients,
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _in_memory_order(parameter: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return parameter, gradient, moments and step, contiguous."""
    assert parameter.grad is not None
    mean, square, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
    plain = parameter.is_contiguous() and parameter.grad.is_contiguous()
    if plain or is_sharded(parameter):
        return parameter, parameter.grad, mean, square, step
    # The moments have the parameter's layout; a gradient may have another, which the kernel would
    # not notice.
    order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)
    gradient = parameter.grad.permute(order).contiguous()
    return parameter.permute(order), gradient, mean.permute(order), square.permute(order), step


def follow(optimizer: Optimizer, optim: Optim, step: int, total: int, slower: float = 1.0) -> None:
    """Set the learning rate and betas of 0-based `step` in a stage of `total` steps.

    slower: a further factor of the rate.
    """
    now = optim.lr * factor(optim.schedule, step, total) * slower
    betas = optim.betas
    if optim.final_betas is not None:
        ahead = _ahead(optim.schedule, step, total)
        pairs = zip(optim.betas, optim.final_betas, strict=True)
        betas = tuple(end + ahead * (begin - end) for begin, end in pairs)
    for group in optimizer.param_groups:
        group["lr"] = now
        if optim.final_betas is not None:
            group["betas"] = betas


def factor(schedule: Schedule, step: int, total: int) -> float:
    """Return the learning-rate factor of 0-based `step` in a stage of `total` steps."""
    warmup = _warmup(schedule, total)
    if step < warmup:
        return (step + 1) / (math.ceil(warmup) + 1)
    return schedule.final + (1 - schedule.final) * _ahead(schedule, step, total)


def _warmup(schedule: Schedule, total: int) -> float:
    return schedule.warmup if schedule.warmup >= 1 else schedule.warmup * total


def _ahead(schedule: Schedule, step: int, total: int) -> float:
    """Return how much of the decay is still ahead, from 1 to 0."""
    begin = max(_warmup(schedule, total), schedule.start * total)
    if schedule.kind == "constant" or step < begin or total <= begin:
        return 1.0
    done = min(1.0, (step - begin) / max(1.0, total - begin))
    return 1 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def named(optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name within the model, parameter) over all groups."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def states(optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizers' state: tensors and plain values by "optimizer/parameter/key"."""
    tensors, values = {}, {}
    for name, optimizer in optimizers.items():
        for parameter_name, parameter in named(optimizer):
            for key, value in optimizer.state.get(parameter, {}).items():
                kind = tensors if torch.is_tensor(value) else values
                kind[f"{name}/{parameter_name}/{key}"] = value
    return tensors, values


def owners(optimizers: Optimizers) -> dict[str, nn.Parameter]:
    """Return the parameters by "optimizer/parameter"."""
    return {
        f"{name}/{parameter_name}": parameter
        for name, optimizer in optimizers.items()
        for parameter_name, parameter in named(optimizer)
    }


def load_states(
    optimizers: Optimizers, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Take back what `states` returned, in the memory layout of each parameter.

    The layout matters: fused kernels walk parameter and state side by side in memory.
    """
    own = owners(optimizers)
    for optimizer in optimizers.values():
        optimizer.state.clear()
    for path, value in {**values, **tensors}.items():
        owner, key = path.rsplit("/", 1)
        parameter = own[owner]
        if torch.is_tensor(value):
            if value.shape == parameter.shape:
                value = place(value, parameter)
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            else:
                value = value.clone()
        optimizers[owner.partition("/")[0]].state[parameter][key] = value
