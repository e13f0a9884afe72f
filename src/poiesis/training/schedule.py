"""How long training lasts: steps, epochs or a time budget, resolved to steps per stage.

A budget is resolved by timing a few steps of each stage, a sample grid and a validation, corrected
twice on the way (a busy machine misleads a short probe) and recorded each time: from there on
training is a matter of step numbers, not of the clock.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poiesis import processes
from poiesis.config import parse_duration
from poiesis.training import grids
from poiesis.training.health import BadSteps

if TYPE_CHECKING:
    from poiesis.training.engine import Engine

__all__ = ["Schedule", "correct", "probe", "resolve"]

PROBE_STEPS = 20
PROBE_SECONDS = 6.0
CORRECTIONS = (0.15, 0.5)
"""Shares of a time budget after which its number of steps is corrected."""
OVERHEAD = 0.15
"""Largest share of a time budget that grids and validations may take."""


@dataclass
class Schedule:
    """The resolved length of training, recorded in schedule.json."""

    stage_steps: list[int]
    grids: int
    validations: int
    checkpoints: int
    probe: dict[str, float] = field(default_factory=dict)
    """Measured seconds: step (of each stage), grid, validation."""
    seconds: float | None = None
    """What the probe left of a time budget."""
    corrected: list[int] = field(default_factory=list)
    """Steps after which the length was corrected to keep the budget."""

    @property
    def total(self) -> int:
        """Number of steps over all stages."""
        return sum(self.stage_steps)


def resolve(engine: Engine) -> Schedule:
    """Turn a budget, epochs or steps into steps per stage."""
    config, stages = engine.config, engine.stages
    shares = [stage.share / sum(s.share for s in stages) for stage in stages]
    schedule = Schedule(
        stage_steps=[],
        grids=config.grids,
        validations=config.validations,
        checkpoints=config.checkpoints,
    )
    if config.steps is not None:
        schedule.stage_steps = [max(1, round(config.steps * share)) for share in shares]
        schedule.stage_steps[-1] = max(1, config.steps - sum(schedule.stage_steps[:-1]))
        return schedule
    if config.epochs is not None:
        for stage, share in zip(stages, shares, strict=True):
            rows = len(engine.loader(stage, "train"))
            steps = config.epochs * share * rows / engine.batch_size(stage)
            schedule.stage_steps.append(max(1, math.ceil(steps)))
        return schedule
    budget = parse_duration(config.budget or "10m")
    began = time.monotonic()
    schedule.probe = probe(engine)
    (spent,) = processes.largest(time.monotonic() - began)
    left = schedule.seconds = max(0.5 * budget, budget - spent)
    each = OVERHEAD * left / 2
    # At least the last one, however dear.
    grids = max(1, int(each / max(schedule.probe["grid"], 1e-9)))
    checks = max(1, int(each / max(schedule.probe["validation"], 1e-9)))
    schedule.grids = min(config.grids, grids)
    schedule.validations = min(config.validations, checks)
    left -= schedule.grids * schedule.probe["grid"]
    left -= schedule.validations * schedule.probe["validation"]
    for index, share in enumerate(shares):
        steps = int(left * share / schedule.probe[f"step {index}"])
        schedule.stage_steps.append(max(1, steps))
    return schedule


def correct(schedule: Schedule, step: int, seconds: float) -> bool:
    """Correct the steps of a budgeted run of one stage by its own pace; say whether it was due."""
    due = len(schedule.corrected)
    if schedule.seconds is None or len(schedule.stage_steps) > 1 or due == len(CORRECTIONS):
        return False
    if seconds < CORRECTIONS[due] * schedule.seconds or step >= schedule.total:
        return False
    left = max(0.0, schedule.seconds - seconds) * step / seconds
    schedule.stage_steps = [step + max(1, int(left))]
    schedule.corrected.append(step)
    return True


def probe(engine: Engine) -> dict[str, float]:
    """Measure seconds of a step of each stage, a grid and a validation; change nothing."""
    kept = copy.deepcopy(engine.state_files())
    seconds: dict[str, float] = {}
    for index in range(len(engine.stages)):
        engine.enter(index)
        engine.run_step()
        times: list[float] = []
        while len(times) < PROBE_STEPS and sum(times) < PROBE_SECONDS:
            engine.step += 1
            began = time.monotonic()
            engine.run_step()
            times += processes.largest(time.monotonic() - began)
        engine.step = 0
        # Without the slowest tenth: a lazy phase counts its share, a hiccup does not.
        quiet = sorted(times)[: max(1, math.ceil(len(times) * 0.9))]
        seconds[f"step {index}"] = sum(quiet) / len(quiet)
    began = time.monotonic()
    if engine.config.grids and engine.run is not None:
        grids.draw(engine)
    (seconds["grid"],) = processes.largest(time.monotonic() - began)
    began = time.monotonic()
    if engine.config.validations:
        engine.validate()
    (seconds["validation"],) = processes.largest(time.monotonic() - began)
    engine.bad_steps = BadSteps(engine.config.max_bad_steps)
    engine.restart()
    engine.load_state_files(kept)
    return seconds
