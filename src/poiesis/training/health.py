"""Watching training: gradients that are not finite, and looks at samples and networks.

Every so often `Health.look` draws a few hundred samples with noise of its own, measures them and
the networks (`monitors`), and lets rules judge the numbers (`alarms`). It may take `SHARE` of the
training time: a look is due once that much has been saved up for it; measuring the real samples
once comes on top. The steps of all looks are kept in the run, so that a resumed one looks at the
same steps again. Looking changes nothing in training, but with `train.rollback` an alarm sends it
back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from operator import sub
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poiesis import processes
from poiesis.data.views import View
from poiesis.errors import PoiesisError, RunError
from poiesis.metrics.features import features_of
from poiesis.models import capabilities
from poiesis.models.base import GenerativeModel, autocast
from poiesis.rng import Noise, generator, mix
from poiesis.training import alarms, monitors, state
from poiesis.training.alarms import Alarm, Check
from poiesis.training.distribution import whole, whole_networks

if TYPE_CHECKING:
    from poiesis.training.engine import Engine

__all__ = ["BadSteps", "Health", "clip_gradients", "first_bad_module", "gradient_norm"]

SHARE = 0.05
"""Most of the training time that looking may take."""
LOOKS = 100
"""Most looks in a run: a curve shows no more."""
SAMPLES, FEWEST = 512, 128
"""Samples of a look; fewer where they are slow to draw, but not below these."""
ENOUGH = 20
"""Looks that a run should have, for the sake of which it takes fewer samples."""
FIRST = 0.15
"""Seconds to save up before the rehearsal, which says what a look will cost."""
REHEARSED = 16
ARITHMETIC = 0.2
"""Samples of the rehearsal, and seconds that comparing samples takes besides."""


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


class Health:
    """Looks after one training run. All processes take part in a look and come to one verdict."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.every = engine.config.monitors
        self.checks: list[Check] = []
        """Looks of the current stage."""
        self.nulls: dict[str, monitors.Null] = {}
        self.samples = 0
        """Samples of a look; 0 until that is settled."""
        self.spent = 0.0
        self.cost = 0.0
        """Seconds that looking took so far, and that the next look is expected to take."""
        self.looks: dict[str, list[int]] = {}
        """Steps of all looks, by attempt (the times training was sent back)."""
        self._stage = -1
        self._features: Any = None
        self._reference: monitors.Reference | None = None
        self._blind = False
        self._preparing = 0.0

    def begin(self) -> None:
        """Take up what an earlier start of the run wrote up to the engine's step."""
        run, engine = self.engine.run, self.engine
        if run is None or self.every is None:
            return
        stored = run.read_json("health.json", {})
        self.samples = stored.get("samples", 0)
        self.spent = stored.get("seconds", 0.0)
        self.nulls = {k: monitors.Null(**v) for k, v in stored.get("nulls", {}).items()}
        self.looks = stored.get("looks", {})
        self._recall()
        now = (engine.attempt, engine.step)
        found = run.alarms()
        kept = [line for line in found if (line["attempt"], line["step"]) <= now]
        if len(kept) < len(found):
            run.write_alarms(kept)
        if engine.config.rollback and not run.has_checkpoint("healthy"):
            engine.save("healthy")

    def _recall(self) -> None:
        """Read the checks of the current stage back from the run."""
        assert self.engine.run is not None
        self._stage = self.engine.stage_index
        self.checks = []
        for line in self.engine.run.metrics():
            if line.get("stage") == self._stage and line["step"] <= self.engine.step:
                values = {
                    key.removeprefix("health/"): math.nan if value is None else value
                    for key, value in line.items()
                    if key.startswith("health/")
                }
                self.checks.append(Check(step=line["step"], since=line["since"], values=values))

    # -- when ------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Return whether to look after the step just done; the same in all processes."""
        if self.every is None:
            return False
        engine = self.engine
        if isinstance(self.every, int):
            return engine.step % self.every == 0
        looks = self.looks.get(str(engine.attempt), [0])
        if engine.step <= looks[-1]:
            return engine.step in looks
        assert engine.schedule is not None
        if engine.step < looks[-1] + engine.schedule.total / LOOKS:
            return False
        saved = SHARE * engine.seconds - self.spent
        if not self.cost:
            if saved >= FIRST:
                self._rehearse()
            return False
        return saved >= self.cost

    def _rehearse(self) -> None:
        """Find out what a look costs and how many samples it can have."""
        engine, split = self.engine, self.engine.data.splits["train"]
        assert engine.schedule is not None
        each = feature = 0.0
        if self._sees():
            rows, times = min(REHEARSED, len(split)), [time.monotonic()]
            with self._may_fail():
                self._draw(rows)
                times.append(time.monotonic())
                self._features[1](split.fetch(torch.arange(rows))[0])
            times += [time.monotonic()] * (3 - len(times))
            each, feature = (t / rows for t in processes.largest(*map(sub, times[1:], times)))
            self.spent += rows * (each + feature)
        budget = SHARE * engine.seconds / max(1, engine.step) * engine.schedule.total
        affordable = int(budget / ENOUGH / max(each + feature, 1e-9))
        self.samples = self.samples or min(SAMPLES, max(FEWEST, affordable))
        # With the real samples that the first look begins with, and some time for arithmetic.
        self.cost = self.samples * each + (self.samples + 2 * SAMPLES + 2048) * feature + ARITHMETIC

    # -- looking ---------------------------------------------------------------------------------

    def look(self, logs: Mapping[str, Tensor]) -> bool:
        """Measure, judge and tell; return whether training was sent back.

        logs: what the step just done logged.
        """
        engine, began = self.engine, time.monotonic()
        if self._stage != engine.stage_index:
            self._stage, self.checks = engine.stage_index, []
        self.samples = self.samples or SAMPLES
        values = {"bad_steps": float(engine.bad_steps.total), **self._networks(logs)}
        self._preparing = 0.0
        if self._sees():
            with self._may_fail():
                values |= self._drawn()
        values = processes.agree(values)
        self.nulls = processes.agree(self.nulls)
        check = Check(step=engine.step, since=engine.step_in_stage(), values=values)
        self.checks.append(check)
        found = alarms.judge(self.checks, self.nulls)
        if engine.config.rollback and not alarms.wrong(self.checks, self.nulls):
            engine.save("healthy")
        spent, once = processes.largest(time.monotonic() - began, self._preparing)
        # What is done once is no share of anything; short runs would see nothing for long after it.
        self.spent += spent - once
        self.cost = spent - once
        self._write(check, found)
        for alarm in found:
            engine.say(alarm.sentence)
        return bool(found) and engine.attempt < engine.config.rollback and self._go_back()

    @contextlib.contextmanager
    def _may_fail(self) -> Iterator[None]:
        """Go without samples where they can't be drawn or compared, and say so once."""
        try:
            yield
        except PoiesisError as error:
            self._blind = True
            self.engine.say(f"no health of samples: {error}")

    def _write(self, check: Check, found: list[Alarm]) -> None:
        """Log a check, and keep its step and its alarms in the run before anything follows."""
        engine, run = self.engine, self.engine.run
        self.looks.setdefault(str(engine.attempt), [])
        if check.step not in self.looks[str(engine.attempt)]:
            self.looks[str(engine.attempt)].append(check.step)
        engine.log(check.values, "health", stage=self._stage, since=check.since)
        if run is None or not engine.main:
            return
        about = {
            "features": self._features[0] if self._features else None,
            "samples": self.samples,
            "nulls": {name: dataclasses.asdict(null) for name, null in self.nulls.items()},
            "seconds": self.spent,
            "looks": self.looks,
        }
        run.write_json("health.json", about)
        if found:
            back = engine.attempt < engine.config.rollback
            about = {"attempt": engine.attempt, "sent_back": back}
            lines = [
                {**dataclasses.asdict(alarm), "sentence": alarm.sentence, **about}
                for alarm in found
            ]
            run.write_alarms([*run.alarms(), *lines])

    def _go_back(self) -> bool:
        """Go on from the last healthy checkpoint with other noise, at first with the same rates."""
        engine, run = self.engine, self.engine.run
        if run is None:
            return False
        seconds, attempt = engine.seconds, engine.attempt + 1
        files = state.read(engine, run.checkpoint("healthy"))
        engine.restart()  # without the loaders, whose order is that of the attempt before
        engine.load_state_files(files)
        engine.seconds, engine.attempt = seconds, attempt
        if processes.by_main(lambda: run.drop_best_after(engine.step)):
            engine.best = math.inf
        # From here on a resume goes the new way.
        engine.save()
        run.rewind(engine.step)
        self._recall()
        slower = f" and learning rates x {engine.slower:g}" if engine.slower < 1 else ""
        engine.say(
            f"back to step {engine.step} with another seed{slower} "
            f"(rollback {attempt} of {engine.config.rollback})"
        )
        return True

    # -- measuring -------------------------------------------------------------------------------

    def _sees(self) -> bool:
        """Return whether this stage's samples are the model's, and there are features of them."""
        engine = self.engine
        if self._blind or engine.stage_index < len(engine.stages) - 1:
            return False
        if self._features is None:
            self._features = features_of(engine.data, engine.device) or ()
        return bool(self._features)

    def _draw(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Draw as `_sample` does, from the averaged weights."""
        with self.engine.average.applied(), whole_networks(self.engine.sharded):
            drawn = self._sample(n)
        self.engine.model.train()
        return drawn

    def _sample(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Return this process's part of n samples in the model's view, and their conditions."""
        engine, model = self.engine, self.engine.model
        first, beyond = processes.share(n)
        condition = None
        if model.condition is not None:
            split = engine.data.splits["train"]
            source = generator("health", engine.seed, engine.step)
            # Classes as frequent as in the data, or rare ones would seem to be drawn too often.
            x, y = split.fetch(torch.randint(len(split), (n,), generator=source)[first:beyond])
            noise = Noise(mix("health conditions", engine.seed, engine.step), range(first, beyond))
            view = View(engine.data.spec, model.spec)
            condition = model.condition_on(view.apply(x), view.condition(y), noise)
        drawn = model.sample(
            beyond - first,
            seed=mix("health", engine.seed, engine.step),
            condition=condition,
            first=first,
            precision=engine.config.precision,
        )
        return drawn, condition

    def _drawn(self) -> dict[str, float]:
        """Return the numbers of fresh samples and of what a discriminator thinks of them."""
        engine, data = self.engine, self.engine.data
        self.samples = min(self.samples, len(data.splits["train"]) // 4)
        engine.settle()
        view = View(data.spec, engine.model.spec)
        with engine.average.applied(), whole_networks(engine.sharded):
            drawn, condition = self._sample(self.samples)
            values = self._judged(view, drawn, condition)
        engine.model.train()
        native = processes.gather(view.invert(drawn))

        def compare() -> dict[str, float]:
            if self._reference is None:
                began = time.monotonic()
                self._reference = monitors.Reference(
                    data,
                    self._features[1],
                    samples=self.samples,
                    nulls=self.nulls,
                    seed=engine.seed,
                )
                self.nulls = dict(self._reference.nulls)
                self._preparing = time.monotonic() - began
            return self._reference.compare(native)

        return {**processes.by_main(compare), **values}

    @torch.no_grad()
    def _judged(self, view: View, drawn: Tensor, condition: Tensor | None) -> dict[str, float]:
        engine, model = self.engine, self.engine.model
        if "discriminate" not in capabilities.of(model):
            return {}
        model.eval()

        def scores(x: Tensor, y: Tensor | None) -> Tensor:
            y = None if y is None or model.condition is None else y.to(engine.device)
            with autocast(engine.device, engine.config.precision):
                parts = [
                    model.discriminate(
                        rows.to(engine.device), None if y is None else y[k : k + 128]
                    )  # type: ignore[attr-defined]
                    for k, rows in zip(range(0, len(x), 128), x.split(128), strict=True)
                ]
            return processes.gather(torch.cat(parts).float())

        found = {}
        for name in ("train", "validation"):
            split = engine.data.splits.get(name, engine.data.splits["train"])
            source = generator("health", name, engine.seed, engine.step)
            rows = torch.randperm(len(split), generator=source)[: self.samples]
            x, y = split.fetch(rows[slice(*processes.share(len(rows)))])
            found[name] = scores(view.apply(x), y)
        return monitors.judgement(**found, generated=scores(drawn, condition))

    def _networks(self, logs: Mapping[str, Tensor]) -> dict[str, float]:
        """Return how far each trained network moved since the last look, and how it stretches."""
        engine = self.engine
        stage = engine.stages[engine.stage_index]
        stepped = {name for phase in stage.phases for name in phase.step}
        trained = {id(p) for name in stepped for p in engine.trained(name)}
        values: dict[str, float] = {}
        before = self.checks[-1].values if self.checks else {}
        engine.model.eval()
        for name, network in engine.model.networks().items():
            own = [p for p in network.parameters() if id(p) in trained]
            if not own or any(hasattr(p, "full_tensor") for p in own):
                continue
            values[f"{name}_place"] = monitors.place(network)
            values[f"{name}_stretch"] = monitors.stretch(network)
            if f"{name}_place" in before:
                now, then = values[f"{name}_place"], before[f"{name}_place"]
                values[f"{name}_moved"] = monitors.moved(now, then)
        engine.model.train()
        for phase in stage.phases:
            norm = logs.get(f"{phase.name}_gradient")
            count = sum(p.numel() for name in phase.step for p in engine.trained(name))
            if norm is not None and count:
                values[f"{phase.name}_gradient"] = float(norm) / math.sqrt(count)
        return values
