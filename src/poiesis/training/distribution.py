"""What training needs when several processes share it: sharded networks and summed gradients.

Replication is the default: every process holds all weights and optimizer states, and the gradients
of a phase are added up once its backward passes are done. A network named in `train.shard` is split
with FSDP2 (`fully_shard`): each process holds a part of its weights, gradients, moments and moving
averages, and gathers whole layers when they are used.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poiesis import processes
from poiesis.errors import ConfigError, suggest
from poiesis.models.base import GenerativeModel
from poiesis.nn.batch_norm import synchronise

__all__ = [
    "check_batch",
    "gather_extra",
    "is_sharded",
    "own_extra",
    "own_key",
    "part",
    "place",
    "prepare",
    "sum_gradients",
    "sync_after",
    "whole",
    "whole_networks",
]


def prepare(model: GenerativeModel, shard: Sequence[str]) -> list[Any]:
    """Make a model ready for several processes; return its sharded modules.

    Batch statistics become those of the global batch, all processes start from the main one's
    weights, and the networks named in `shard` are split. Raises ConfigError for an unknown network.
    """
    networks = model.networks()
    for name in shard:
        if name not in networks:
            hint = suggest(name, networks) or f"; known: {', '.join(networks)}"
            raise ConfigError(f"train.shard names {name!r}, which is no network{hint}")
    if processes.size() == 1:
        return []
    synchronise(model)
    _spread(model)
    if not shard:
        return []
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(model.device.type, (processes.size(),))
    sharded: list[Any] = []
    for name in shard:
        # FSDP2 splits no other layout.
        networks[name].to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        _split(networks[name], mesh, sharded)
    return sharded


def _spread(model: nn.Module) -> None:
    """Give all processes the main one's weights and buffers."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.numel()]
    if not processes.main():
        with torch.no_grad():
            for tensor in tensors:
                tensor.zero_()
    processes.sum_([t.data for t in tensors if t.dtype != torch.bool])


def _split(module: nn.Module, mesh: Any, sharded: list[Any]) -> None:
    """Shard a network: each element of its lists of layers by itself, then what is left."""
    from torch.distributed.fsdp import fully_shard

    if isinstance(module, nn.ModuleList):
        for child in module:
            _split(child, mesh, sharded)
        return
    if isinstance(module, _CONTAINERS):
        raise ConfigError(
            f"train.shard can't split a {type(module).__name__}; name networks of layers"
        )
    # Its warning is about changing a network's output in place, which no model does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for layer in part:
                fine = all(not isinstance(m, _CONTAINERS) for m in layer.modules())
                if fine and next(layer.parameters(), None) is not None:
                    fully_shard(layer, mesh=mesh)
                    sharded.append(layer)
    fully_shard(module, mesh=mesh)
    sharded.append(module)


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""What has no forward pass of its own, which is when FSDP2 gathers weights."""


def check_batch(batch_size: int) -> None:
    """Raise ConfigError if a batch has fewer rows than there are processes."""
    if batch_size < processes.size():
        raise ConfigError(
            f"a batch of {batch_size} can't be shared by {processes.size()} processes; start fewer "
            f"or set --train.batch-size {processes.size()} or more"
        )


def own_key() -> tuple[int, ...]:
    """Return what keys the draws of this process apart from the main one's."""
    return () if processes.main() else (processes.rank(),)


def sync_after(sharded: Sequence[Any], last: bool) -> None:
    """Let sharded networks exchange gradients after the last backward pass of a phase only."""
    for module in sharded:
        module.set_requires_gradient_sync(last)


def is_sharded(tensor: object) -> bool:
    """Return whether this process holds only a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor's values over all processes; each of them must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def place(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, split as `like` is."""
    if not is_sharded(like) or is_sharded(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def sum_gradients(parameters: Sequence[nn.Parameter], logs: Mapping[str, Tensor]) -> None:
    """Add up gradients and logged means over the processes, in place."""
    grads = [p.grad for p in parameters if p.grad is not None]
    for grad in grads:
        if is_sharded(grad):
            grad.mul_(processes.size())  # FSDP2 has exchanged them, but as means
    processes.sum_([*(g for g in grads if not is_sharded(g)), *logs.values()])


def gather_extra(extra: Mapping[str, Any], per_process: Collection[str]) -> dict[str, Any]:
    """Return extra state with what differs between processes under "name@rank"; all ask.

    One process alone writes plain names.
    """
    if processes.size() == 1:
        return dict(extra)
    shared = {k: v for k, v in extra.items() if k not in per_process}
    own = {k: v.cpu() if torch.is_tensor(v) else v for k, v in extra.items() if k in per_process}
    for rank, values in enumerate(processes.of_all(own)):
        shared |= {f"{key}@{rank}": value for key, value in values.items()}
    return shared


def own_extra(saved: Mapping[str, Any], per_process: Collection[str]) -> dict[str, Any]:
    """Return this process's part of what `gather_extra` returned in any number of processes.

    A process that was not there then takes over the state of another.
    """
    extra = {k: v for k, v in saved.items() if k.partition("@")[0] not in per_process}
    for key in per_process:
        several = [k for k in saved if k.startswith(f"{key}@")]
        source = f"{key}@{processes.rank() % len(several)}" if several else key
        if source in saved:
            extra[key] = saved[source]
    return extra


def part(files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Part a checkpoint's files into what is whole, and sharded tensors by "file stem/name"."""
    rest: dict[str, Any] = {}
    shards: dict[str, Tensor] = {}
    for file, values in files.items():
        rest[file] = values
        if file.endswith(".safetensors"):
            rest[file] = {k: v for k, v in values.items() if not is_sharded(v)}
            stem = file.removesuffix(".safetensors")
            shards |= {f"{stem}/{k}": v for k, v in values.items() if is_sharded(v)}
    return rest, shards


@contextlib.contextmanager
def whole_networks(sharded: Sequence[Any]) -> Iterator[None]:
    """Hold sharded networks whole for the time of a ``with`` block, to draw or to validate.

    Then any method of a model works, not only those that call its networks.
    """
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
