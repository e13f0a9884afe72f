"""What a workload is, and how its sides are timed: interleaved, medians, beside a GEMM.

A workload is one task with several sides: ours and the peers'. A side is built once and then
called; each call does the same work. Everything random is synthetic and seeded: speed doesn't
depend on what the pictures show.
"""

from __future__ import annotations

import contextlib
import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from poiesis.data.codecs import ImageCodec
from poiesis.data.dataset import DataSet, TensorSplit
from poiesis.models.base import GenerativeModel, hardware_bf16
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine

__all__ = [
    "OURS",
    "Gate",
    "Machine",
    "MissingPeer",
    "Side",
    "Timing",
    "Workload",
    "compare",
    "engine_step",
    "image_data",
    "low_precision",
]

OURS = "poiesis"
PROBE = 1024
"""Side of the square matrices whose product is timed in every round."""


class MissingPeer(Exception):
    """A package to compare with is not installed."""


@dataclass(frozen=True)
class Machine:
    """Where and how a run measures."""

    device: torch.device
    threads: int
    clock: str
    """wall, or cpu: the processor time of this process."""
    every: bool = False
    """Time bf16 sides also where the processor only emulates bf16."""

    def now(self) -> float:
        """Return seconds of the chosen clock, after all work on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One implementation of a workload."""

    build: Callable[[torch.device], Callable[[], Any]]
    """Returns what is timed; each call does `Workload.items` items."""
    modules: Sequence[str] = ()
    """Imported before anything is measured; the first part of each names its package."""
    bf16: bool = False
    """Only worth timing where bf16 is in hardware."""

    def load(self) -> None:
        """Import the modules; raises MissingPeer."""
        for module in self.modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise MissingPeer(f"{module.split('.')[0]} ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Our rate is to be at least `factor` times that of a side; "best" is the fastest peer."""

    against: str
    factor: float


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A task, its sides (ours is called OURS) and what is asked of us."""

    name: str
    title: str
    unit: str
    items: float
    """Units of work per call: a rate is items / seconds."""
    sides: Mapping[str, Side]
    gates: Sequence[Gate]
    check: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Compares what the sides returned; its "agree" must be true."""
    memory: int = 0
    """Calls in each side's own process whose peak memory is compared; 0 is none."""
    count: bool = True
    """Whether torch's counter sees the arithmetic, so that a fraction of the peak makes sense."""


@dataclass
class Timing:
    """What was measured of one side."""

    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    result: Any = None

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)


def compare(
    workload: Workload,
    machine: Machine,
    rounds: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Time the sides in rounds, every other one backwards; return timings and GEMM rates.

    Rates are GFLOP/s of fp32 and bf16 products of 1024 x 1024 matrices, medians over the same
    rounds. Sides whose package is missing are left out with one line.
    """
    runs: dict[str, Callable[[], Any]] = {}
    timings: dict[str, Timing] = {}
    for name, side in workload.sides.items():
        if side.bf16 and not (machine.every or hardware_bf16(machine.device)):
            continue
        try:
            side.load()
        except MissingPeer as error:
            say(f"{workload.name}: {name} left out, no {error}: see benchmarks/README.md")
            continue
        torch.manual_seed(0)
        runs[name] = side.build(machine.device)
        timings[name] = Timing()
        timings[name].flops = _count(runs[name], workload.count)  # a warm-up besides
    probes = _probes(machine.device)
    rates: dict[str, list[float]] = {name: [] for name in probes}
    for number in range(rounds):
        for name, probe in probes.items():
            start = machine.now()
            probe()
            rates[name].append(2 * PROBE**3 / (machine.now() - start) / 1e9)
        order = list(runs) if number % 2 == 0 else list(runs)[::-1]
        for name in order:
            start = machine.now()
            timings[name].result = runs[name]()
            timings[name].seconds.append(machine.now() - start)
    return timings, {name: statistics.median(values) for name, values in rates.items()}


def _probes(device: torch.device) -> dict[str, Callable[[], Any]]:
    probes: dict[str, Callable[[], Any]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(PROBE, PROBE, device=device).to(dtype)
        probes[name] = lambda x=x: torch.mm(x, x)
        probes[name]()
    return probes


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_val: Any = None, **_: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_back(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_val: Any = None, **_: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _count(run: Callable[[], Any], wanted: bool) -> int:
    """Call once; return its floating-point operations, attention without its mask, or 0."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
    }
    if not wanted:
        run()
        return 0
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        run()
    return counter.get_total_flops()


# -- our side -------------------------------------------------------------------------------------


def image_data(count: int, channels: int, side: int) -> DataSet:
    """Return a data set of random pictures held in memory, as a folder of images would be."""
    source = torch.Generator().manual_seed(0)
    size = (count, channels, side, side)
    pixels = torch.randint(0, 256, size, generator=source, dtype=torch.uint8)
    codec = ImageCodec(channels=channels, size=(side, side))
    split = TensorSplit(pixels)
    return DataSet(
        name="random",
        variant=f"random pixels {count} x {channels} x {side} x {side}",
        spec=codec.spec,
        condition=None,
        codec=codec,
        splits={"train": split, "validation": split},
    )


def engine_step(model: GenerativeModel, data: DataSet) -> Callable[[], dict[str, Tensor]]:
    """Return a whole training step of the engine: data, phases, optimizers, averages, logs."""
    config = TrainConfig(steps=1_000_000, grids=0, validations=0, checkpoints=0)
    engine = Engine(model, data, config, quiet=True)
    engine.prepare()

    def step() -> dict[str, Tensor]:
        logs = engine.run_step()
        engine.step += 1
        return logs

    return step


def low_precision(device: torch.device, on: bool) -> contextlib.AbstractContextManager[Any]:
    """Return bf16 autocast for a peer, or nothing."""
    if not on:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
