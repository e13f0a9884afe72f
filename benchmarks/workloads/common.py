"""What a workload is, and how its sides are timed: interleaved, medians, beside a GEMM.

A workload is one task with several sides: ours and the peers', each in a process of its own with
the settings that its users have. A side is built once and then called; each call does the same
work. Everything random is synthetic and seeded: speed doesn't depend on what the pictures show.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
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
from poiesis.spec import Classes
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine

__all__ = [
    "OURS",
    "Gate",
    "Machine",
    "MissingPeer",
    "Side",
    "Timing",
    "Worker",
    "Workload",
    "compare",
    "engine_step",
    "image_data",
    "low_precision",
    "serve",
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
        """Import the modules."""
        for module in self.modules:
            importlib.import_module(module)

    def find(self) -> None:
        """Raise MissingPeer unless the modules' packages are installed."""
        for module in self.modules:
            package = module.partition(".")[0]
            if importlib.util.find_spec(package) is None:
                raise MissingPeer(package)


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


class Worker:
    """One side in a process of its own, as its users have it; it waits until it is called."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True
        )
        self.flops: int = self._answer()["flops"]

    def call(self) -> dict[str, Any]:
        """Let it run once; return its seconds and its result."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return json.loads(line.removeprefix(_ANSWER))
        self._errors.seek(0)
        raise RuntimeError(f"a side ended: {self._errors.read()[-2000:]}")


_ANSWER = "answer: "
"""What a side's own output does not begin with."""


def serve(side: Side, machine: Machine, count: bool) -> None:
    """Build a side, run it once to warm up, then once for each line that comes in."""
    torch.manual_seed(0)
    run = side.build(machine.device)
    print(_ANSWER + json.dumps({"flops": _count(run, count)}), flush=True)
    for _ in sys.stdin:
        start = machine.now()
        result = run()
        seconds = machine.now() - start
        plain = result if isinstance(result, (float, list)) else None
        print(_ANSWER + json.dumps({"seconds": seconds, "result": plain}), flush=True)


def compare(
    workload: Workload,
    machine: Machine,
    rounds: int,
    start: Callable[[str], Worker],
    say: Callable[[str], None],
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Time the sides in rounds, every other one backwards; return timings and GEMM rates.

    start(side): its process. Rates are GFLOP/s of fp32 and bf16 products of 1024 x 1024 matrices,
    medians over the same rounds. Sides whose package is missing are left out with one line.
    """
    workers: dict[str, Worker] = {}
    timings: dict[str, Timing] = {}
    for name, side in workload.sides.items():
        if side.bf16 and not (machine.every or hardware_bf16(machine.device)):
            continue
        try:
            side.find()
        except MissingPeer as error:
            say(f"{workload.name}: {name} left out, no {error}: see benchmarks/README.md")
            continue
        workers[name] = start(name)
        timings[name] = Timing(flops=workers[name].flops)
    probes = _probes(machine.device)
    rates: dict[str, list[float]] = {name: [] for name in probes}
    for number in range(rounds):
        for name, probe in probes.items():
            begin = machine.now()
            probe()
            rates[name].append(2 * PROBE**3 / (machine.now() - begin) / 1e9)
        order = list(workers) if number % 2 == 0 else list(workers)[::-1]
        for name in order:
            answer = workers[name].call()
            timings[name].result = answer["result"]
            timings[name].seconds.append(answer["seconds"])
    for worker in workers.values():
        worker.close()
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


def image_data(count: int, channels: int, side: int, classes: int = 0) -> DataSet:
    """Return a data set of random pictures held in memory, as a folder of images would be.

    classes: how many there are, in turn; 0 is none.
    """
    source = torch.Generator().manual_seed(0)
    size = (count, channels, side, side)
    pixels = torch.randint(0, 256, size, generator=source, dtype=torch.uint8)
    codec = ImageCodec(channels=channels, size=(side, side))
    split = TensorSplit(pixels, torch.arange(count) % classes if classes else None)
    return DataSet(
        name="random",
        variant=f"random pixels {count} x {channels} x {side} x {side}",
        spec=codec.spec,
        condition=Classes(count=classes) if classes else None,
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
