"""How a model is trained: the `train` part of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poiesis.config import check, parse_duration
from poiesis.errors import ConfigError

__all__ = ["TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, precision and bookkeeping of training. Learning rates belong to the model."""

    budget: str | None = None
    """Wall-clock time, e.g. 90s, 5m or 1h30m, resolved to steps by a short probe (default: 10m)."""
    steps: int | None = None
    """Number of steps, instead of a budget."""
    epochs: float | None = None
    """Passes over the training data, instead of a budget."""
    batch_size: int | None = None
    """Samples per step (default: the model's recipe)."""
    accumulate: int = 1
    """Split each batch into this many parts, to fit a large batch into memory."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; auto is bf16 where the hardware has it. Losses are float32."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes at first, pays on a GPU."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    shard: tuple[str, ...] = ()
    """Networks to split over the processes of torchrun (FSDP2); the others are replicated."""
    clip: float | None = None
    """Largest gradient norm, on top of the model's recipe."""
    grids: int = 8
    """Sample grids drawn over the run, all from the same noise."""
    validations: int = 20
    """Validations over the run."""
    checkpoints: int = 10
    """Checkpoints written over the run."""
    keep: int = 2
    """Newest checkpoints to keep; the best one is kept besides."""
    snapshots: int = 0
    """Snapshots of averaged weights over the run, for averages of any length afterwards
    (--checkpoint ema:0.1); 32 reach lengths from 0.015 to 0.25. Each takes twice the space of the
    averaged weights on the disk."""
    log_every: float = 1.0
    """Seconds between two lines of metrics.jsonl."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Send metrics to these as well."""
    monitors: Literal["auto"] | int | None = "auto"
    """Look for collapse and other faults: every so many steps, or as often as 5% of the time allow;
    none is never."""
    rollback: int = 0
    """Let an alarm send training back to its last healthy checkpoint, with another seed and from
    the second time on half the learning rates; so many times at most."""
    max_bad_steps: int = 20
    """Stop after this many steps in a row whose gradients are not finite."""

    def __post_init__(self) -> None:
        chosen = [n for n in ("budget", "steps", "epochs") if getattr(self, n) is not None]
        if len(chosen) > 1:
            raise ConfigError(f"choose one of train.{' and train.'.join(chosen)}, not several")
        if self.budget is not None:
            parse_duration(self.budget)
        check("train.steps", self.steps, low=1)
        check("train.epochs", self.epochs, low=0, open_low=True)
        check("train.batch_size", self.batch_size, low=1)
        check("train.accumulate", self.accumulate, low=1)
        check("train.threads", self.threads, low=1)
        check("train.clip", self.clip, low=0, open_low=True)
        check("train.keep", self.keep, low=1)
        for name in ("grids", "validations", "checkpoints", "snapshots"):
            check(f"train.{name}", getattr(self, name), low=0)
        check("train.log_every", self.log_every, low=0)
        check("train.monitors", self.monitors if self.monitors != "auto" else None, low=1)
        check("train.rollback", self.rollback, low=0)
        if self.rollback and self.monitors is None:
            raise ConfigError("train.rollback needs monitors; leave out --train.monitors none")
        check("train.max_bad_steps", self.max_bad_steps, low=1)
