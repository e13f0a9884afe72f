"""Several processes as one: started by `torchrun`, on one machine or many.

    torchrun --nproc-per-node 2 -m poiesis train vae mnist

Each process runs the same program. What is random or ordered is keyed by the global row
(`poiesis.rng`), so the processes need to exchange sums only. With one process every function here
is the identity, so no caller asks how many there are. Processes are numbered by rank; rank 0, the
main one, writes files and speaks to the user.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from poiesis.errors import ConfigError, PoiesisError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "agree",
    "barrier",
    "by_main",
    "gather",
    "join",
    "largest",
    "leave",
    "load_shards",
    "local_rank",
    "lost",
    "main",
    "main_first",
    "of_all",
    "rank",
    "save_shards",
    "share",
    "size",
    "sum_",
]

T = TypeVar("T")

BUCKET = 25 * 2**20
"""Bytes of tensors that travel in one message: few messages, and none that doubles memory."""


def started_by_torchrun() -> bool:
    """Return whether the launcher said who we are."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Return this process's number, 0 … size - 1."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def size() -> int:
    """Return how many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1


def local_rank() -> int:
    """Return this process's number on its machine, which is the GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", "0")) if started_by_torchrun() else 0


def main() -> bool:
    """Return whether this process writes files and speaks to the user."""
    return rank() == 0


def join() -> None:
    """Meet the other processes; once, and only where a launcher started several."""
    if size() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank() >= count:
            raise ConfigError(
                f"process {rank()} is number {local_rank()} on its machine, which has {count} "
                f"GPUs; start at most --nproc-per-node {count}"
            )
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)


def leave() -> None:
    """Part from the other processes at the end of the program."""
    if size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
        # The group's own threads need the interpreter to let go of the last tensors, and abort the
        # process (exit code -6) where it is gone by then. They get it while this one sleeps.
        time.sleep(0.2)


def lost(error: BaseException) -> bool:
    """Return whether an error says that another process has gone."""
    import torch.distributed as dist

    text = str(error)
    return size() > 1 and (
        isinstance(error, dist.DistError) or "gloo" in text or "Connection closed" in text
    )


def _alone() -> bool:
    """Return whether there is nobody to talk to (yet)."""
    if size() == 1:
        return True
    import torch.distributed as dist

    return not dist.is_initialized()


def barrier() -> None:
    """Wait until all processes are here."""
    sum_([_zero()])


def _zero() -> Tensor:
    import torch

    return torch.zeros(1)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the first process of each machine do something before the others (fill a cache, say)."""
    if local_rank() != 0:
        barrier()
    yield
    if local_rank() == 0:
        barrier()


def share(n: int, batch: int = 1) -> tuple[int, int]:
    """Return the range start, end of this process's part of n rows, as even as can be.

    Parts begin at multiples of `batch`, so that the batches are those of one process.
    """
    batches = -(-n // batch)
    start, end = (batches * r // size() * batch for r in (rank(), rank() + 1))
    return min(start, n), min(end, n)


def agree(value: T) -> T:
    """Return the main process's value in all of them; any picklable object."""
    if _alone():
        return value
    import torch
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def by_main(function: Callable[[], T]) -> T:
    """Let the main process call a function; return its result, or raise its error, in all."""
    if _alone():
        return function()
    answer: tuple[Any, PoiesisError | None] | None = None
    if main():
        try:
            answer = function(), None
        except PoiesisError as error:
            answer = None, error
    answer = agree(answer)
    assert answer is not None
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def of_all(value: T) -> list[T]:
    """Return the value of every process, by rank; any picklable object."""
    if _alone():
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def largest(*values: float) -> list[float]:
    """Return the largest of each value over the processes: the slowest clock, any wish to stop."""
    if _alone():
        return list(values)
    import torch
    import torch.distributed as dist

    box = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return box.tolist()


def sum_(tensors: Sequence[Tensor]) -> None:
    """Add up each tensor over the processes, in place; the sum is the same in all of them.

    Tensors of one type and device travel together in messages of `BUCKET` bytes, all under way at
    once.
    """
    if _alone():
        return
    import torch
    import torch.distributed as dist

    sent: list[tuple[Any, Tensor, list[Tensor]]] = []
    for bucket in _buckets(tensors):
        flat = torch.cat([t.detach().reshape(-1) for t in bucket])
        sent.append((dist.all_reduce(flat, async_op=True), flat, bucket))
    for work, flat, bucket in sent:
        work.wait()
        parts = flat.split([t.numel() for t in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.detach().copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        bucket: list[Tensor] = []
        filled = 0
        for tensor in same:
            bucket.append(tensor)
            filled += tensor.numel() * tensor.element_size()
            if filled >= BUCKET:
                yield bucket
                bucket, filled = [], 0
        if bucket:
            yield bucket


def gather(rows: Tensor) -> Tensor:
    """Return the rows (n, …) of all processes in order of rank, in each of them; on the CPU.

    The processes may hold different numbers of rows.
    """
    if _alone():
        return rows.cpu()
    import torch
    import torch.distributed as dist

    rows = rows.cpu().contiguous()
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    most = int(torch.stack(counts).max())
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


def save_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that are split over the processes, each its own part, as safetensors files.

    `torch.distributed.checkpoint` in its safetensors form: nothing is pickled, and any number of
    processes can read it. All processes call it; raises OSError if one of them can't write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        known = next((cause for cause in causes if isinstance(cause, OSError)), None)
        raise known or OSError(str(causes[0] if causes else error)) from None


def load_shards(
    folder: Path, prefix: str, like: Callable[[str], Tensor | None]
) -> dict[str, Tensor]:
    """Read the tensors whose names begin with `prefix`, by the rest of their names.

    like(name): a tensor that is split as this one shall be, so that only this process's part is
    read; None to read it whole.
    """
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if not name.startswith(prefix):
            continue
        own = like(name.removeprefix(prefix))
        if own is None:
            found[name] = torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
        else:
            found[name] = torch.empty_like(own, dtype=entry.properties.dtype)  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=_alone())
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
