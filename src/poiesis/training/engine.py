"""The engine: runs any model's stages and phases. No model writes a loop, no model is named here.

One training step, from top to bottom: `fit` → `run_step` → `_run_phase`. Everything random in a
step is a pure function of (seed, stage, step, phase, repeat): data order, noise (`Batch.draws`) and
the global generator that dropout uses. A checkpoint therefore needs no generator state, and a
resumed run repeats the uninterrupted one bit for bit on the same machine and thread count.

Several processes (`torchrun`, see `poiesis.processes`) train the same model: each takes its slice
of every batch, a phase's gradients are added up before its optimizers step, and what is decided by
a clock or a signal is agreed on. Networks named in `train.shard` are split over the processes with
FSDP2; the others are replicated.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poiesis import processes
from poiesis.data.dataset import DataSet
from poiesis.data.loader import Loader
from poiesis.errors import ConfigError, RunError
from poiesis.machine import keep_memory
from poiesis.models.base import Batch, GenerativeModel, Phase, Stage, autocast
from poiesis.rng import Draws, active, mix, seed_torch
from poiesis.runs import Checkpoint, Run
from poiesis.spec import Tokens
from poiesis.training import distribution, grids, state
from poiesis.training import optimizers as optim
from poiesis.training.config import TrainConfig
from poiesis.training.ema import Average
from poiesis.training.health import BadSteps, Health, clip_gradients, gradient_norm
from poiesis.training.schedule import Schedule, correct, resolve
from poiesis.training.snapshots import Snapshots
from poiesis.training.trackers import Bar, Tracker
from poiesis.training.validation import held_out_means

__all__ = ["Engine"]


class Engine:
    """Trains one model on one data set into one run folder.

    The model must already be on its device. `stop` may be set (from a signal handler) to finish the
    current step, save and return.
    """

    def __init__(
        self,
        model: GenerativeModel,
        data: DataSet,
        config: TrainConfig,
        *,
        run: Run | None = None,
        seed: int = 0,
        augment: tuple[str, ...] = (),
        trackers: Sequence[Tracker] = (),
        quiet: bool = False,
        title: str = "",
    ) -> None:
        keep_memory()
        self.model = model
        self.data = data
        self.config = config
        self.run = run
        self.seed = seed
        self.main = processes.main()
        self.augment = augment
        self.trackers = list(trackers) if self.main else []
        self.quiet = quiet or not self.main
        self.title = title or type(model).__name__.lower()
        self.device = model.device
        if config.compile:
            for network in model.networks().values():
                network.compile()
        self.sharded = distribution.prepare(model, config.shard)
        # Now: between its uses FSDP2 may leave gathered weights in the place of its own.
        self._parameters = list(model.parameters())
        self.stages = list(model.stages())
        self.average = Average(model)
        self.snapshots = Snapshots(model, config.snapshots > 0)
        self.bad_steps = BadSteps(config.max_bad_steps)
        self.step = 0
        self.seconds = 0.0
        self.best = math.inf
        self.attempt = 0
        """How often an alarm sent training back."""
        self.stop = False
        self.prepared = False
        self._settled = -1
        self.schedule: Schedule | None = None
        self._bar: Bar | None = None
        self.watch = ""
        self.health = Health(self)
        self._declared = dict(model.optimizers())
        self._check_names()
        self.stage_index = -1
        self.enter(0)

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end of the schedule; raises RunError if gradients stay non-finite."""
        self.prepare()
        if self.schedule is None:
            self.schedule = resolve(self)
            if self.run is not None:
                self.run.write_json("schedule.json", vars(self.schedule))
        schedule = self.schedule
        tokens = isinstance(self.model.spec, Tokens)
        bar = Bar(self.title, schedule.total, unit="tok" if tokens else "img", quiet=self.quiet)
        self._bar = bar
        self.health.begin()
        started, done_before = time.monotonic() - self.seconds, self.step
        logs: dict[str, list[Tensor]] = {}
        last_log, last_bar, items, items_at = time.monotonic(), 0.0, 0, time.monotonic()
        fit_started, rate = time.monotonic(), 0.0
        means: dict[str, float] = {}
        try:
            while self.step < schedule.total and not self.stop:
                self.enter(self._stage_of(self.step))
                found = self.run_step()
                for name, value in found.items():
                    logs.setdefault(name, []).append(value)
                self.step += 1
                stage = self.stages[self.stage_index]
                items += self.batch_size(stage) * (self.model.spec.dims if tokens else 1)
                now = time.monotonic()
                self.seconds, stop = processes.largest(now - started, self.stop)
                self.stop = bool(stop)
                last = self.step == schedule.total
                due = now - last_log >= self.config.log_every or last
                if due:
                    means = {n: float(torch.stack(v).float().mean()) for n, v in logs.items()}
                    rate = items / max(1e-9, now - items_at)
                    self.log({**means, "rate": rate, "seconds": self.seconds}, "train")
                    logs, last_log, items, items_at = {}, now, 0, now
                if due or now - last_bar > 0.5:
                    last_bar = now
                    each = (now - fit_started) / max(1, self.step - done_before)
                    left = each * (schedule.total - self.step)
                    bar.update(self.step, rate, left, means)
                if correct(schedule, self.step, self.seconds):
                    bar.total(schedule.total)
                    if self.run is not None:
                        # First a checkpoint: no resume repeats earlier steps with this length.
                        self.save()
                        self.run.write_json("schedule.json", vars(schedule))
                pause = time.monotonic()
                # Before a checkpoint: a resume then knows of this look.
                if self.health.due() and self.health.look(found):
                    logs, fit_started, done_before = {}, time.monotonic(), self.step
                else:
                    self._milestones(schedule)
                items_at += time.monotonic() - pause
        finally:
            bar.close()
            for tracker in self.trackers:
                tracker.close()
        if self.stop and self.step < schedule.total and self.run is not None:
            self.save()

    def run_step(self) -> dict[str, Tensor]:
        """Run the phases that are due in this step; return their mean losses and logs."""
        stage = self.stages[self.stage_index]
        done, length = self.step_in_stage(), self._stage_length()
        self.model.progress = done / length
        for name, optimizer in self.optimizers.items():
            optim.follow(optimizer, self._declared[name], done, length, self.slower)
        logs: dict[str, Tensor] = {}
        for index, phase in enumerate(stage.phases):
            if self.step % phase.every == 0:
                for repeat in range(phase.repeat):
                    logs.update(self._run_phase(stage, index, phase, repeat))
        self.average.update(self.step)
        self.snapshots.update(self.step)
        return logs

    @property
    def way(self) -> int:
        """What the order of the data and the noise are keyed by: the seed, until sent back."""
        return mix("attempt", self.seed, self.attempt) if self.attempt else self.seed

    @property
    def slower(self) -> float:
        """Factor on all learning rates: sent back once, only the noise changes."""
        return 0.5 ** max(0, self.attempt - 1)

    def _run_phase(self, stage: Stage, index: int, phase: Phase, repeat: int) -> dict[str, Tensor]:
        """Do one forward, backward and optimizer step of a phase."""
        self._only_gradients_of(phase)
        total = self.batch_size(stage)
        keys = ("noise", self.way, self.stage_index, self.step, index, repeat)
        seed_torch(mix(*keys, *distribution.own_key()), self.device)
        first, beyond = processes.share(total)
        parts = min(self.config.accumulate, total // processes.size())
        cuts = [first + (beyond - first) * k // parts for k in range(parts + 1)]
        logs: dict[str, Tensor] = {}
        for start, end in itertools.pairwise(cuts):
            distribution.sync_after(self.sharded, end == beyond)
            draws = Draws(keys, total=total, start=start, size=end - start, device=self.device)
            batch = self._batch(stage, phase, repeat, draws)
            with autocast(self.device, self.config.precision), active(draws):
                values, named = phase.loss(batch, self.step)
            if values.shape != (end - start,):
                raise RunError(
                    f"phase {phase.name!r} returned a loss of shape {tuple(values.shape)} for "
                    f"{end - start} samples; a loss holds one value per sample"
                )
            (values.float().sum() / total).backward()
            share = (end - start) / total
            for name, value in {phase.name: values, **named}.items():
                mean = torch.as_tensor(value, dtype=torch.float32).detach().mean().cpu() * share
                logs[name] = logs[name] + mean if name in logs else mean
        trained = self._trained[phase.step]
        distribution.sum_gradients(trained, logs)
        norm = gradient_norm(trained)
        logs[f"{phase.name}_gradient"] = norm.cpu()
        if torch.isfinite(norm):
            self.bad_steps.good()
            if self.config.clip is not None:
                clip_gradients(trained, self.config.clip, norm)
            for name in phase.step:
                clip = self._declared[name].clip
                if clip is not None:
                    own = self._trained[(name,)]
                    own_norm = norm if len(phase.step) == 1 else gradient_norm(own)
                    clip_gradients(own, clip, own_norm)
                self.optimizers[name].step()
        else:
            self.say(self.bad_steps.bad(self.model, phase.name, self.step))
        for parameter in self._parameters if self.sharded else trained:
            parameter.grad = None
        self.model.after_step(phase, self.step)
        return logs

    def _batch(self, stage: Stage, phase: Phase, repeat: int, draws: Draws) -> Batch:
        if phase.data is None:
            where = torch.arange(draws.start, draws.start + draws.size)
            return Batch(x=None, condition=None, index=where, draws=draws, size=draws.size)
        repeats = max(p.repeat for p in stage.phases)
        number = self.step_in_stage() * repeats + repeat
        loader = self.loader(stage, phase.data)
        x, y, where = loader.batch(number, start=draws.start, size=draws.size)
        condition = self.model.condition_on(x, y, draws, training=True)
        batch = Batch(x=x, condition=condition, index=where, draws=draws, size=draws.size)
        if stage.transform is not None:
            with torch.no_grad():
                batch = stage.transform(batch)
        return batch

    # -- stages --------------------------------------------------------------------------------

    def enter(self, index: int) -> None:
        """Make stage `index` the current one: its networks, optimizers and loaders."""
        if index == self.stage_index:
            return
        self.stage_index = index
        # Stages watch different things: the best of an earlier one is no measure for this one.
        self.best = math.inf
        stage = self.stages[index]
        self.model.enter_stage(stage)
        self.model.train()
        if index == 0 or stage.reset_optimizers:
            self.optimizers = {n: optim.build(self.model, o) for n, o in self._declared.items()}
            self._own = {
                name: [p for _, p in optim.parameters(self.model, o)]
                for name, o in self._declared.items()
            }
        self._trained: dict[tuple[str, ...], list[nn.Parameter]] = {
            (name,): own for name, own in self._own.items()
        }
        for phase in stage.phases:
            joined = {id(p): p for name in phase.step for p in self._own[name]}
            self._trained[tuple(phase.step)] = list(joined.values())
        distribution.check_batch(self.batch_size(stage))
        self._loaders: dict[tuple[str, str], Loader] = {}
        self._gradients_of: tuple[str, ...] | None = None

    def trained(self, name: str) -> list[nn.Parameter]:
        """Return the parameters of an optimizer."""
        return self._own[name]

    def restart(self) -> None:
        """Enter the first stage anew, with fresh optimizers."""
        self.stage_index = -1
        self.enter(0)

    def _only_gradients_of(self, phase: Phase) -> None:
        """Let only the parameters that the phase steps take gradients; others cost nothing."""
        if self._gradients_of == phase.step:
            return
        self._gradients_of = phase.step
        wanted = {id(p) for p in self._trained[phase.step]}
        for parameter in self._parameters:
            # FSDP2 settles this once: gradients of a sharded network are dropped after the phase.
            if not distribution.is_sharded(parameter):
                parameter.requires_grad_(id(parameter) in wanted)

    def loader(self, stage: Stage, split: str) -> Loader:
        """Return the loader of a split in a stage's view."""
        key = (stage.name, split)
        if key not in self._loaders:
            if split not in self.data.splits:
                known = ", ".join(self.data.splits)
                raise ConfigError(f"{self.data.name} has no split {split!r}; it has: {known}")
            self._loaders[key] = Loader(
                self.data.splits[split],
                self.data.spec,
                stage.view or self.model.spec,
                batch_size=self.batch_size(stage),
                seed=mix(self.way, self.stage_index),
                augment=self.augment if split == "train" else (),
                device=self.device,
            )
        return self._loaders[key]

    def batch_size(self, stage: Stage) -> int:
        """Return the samples per step of a stage."""
        return self.config.batch_size or stage.batch_size

    def _stage_of(self, step: int) -> int:
        assert self.schedule is not None
        for index, length in enumerate(self.schedule.stage_steps):
            if step < length:
                return index
            step -= length
        return len(self.stages) - 1

    def step_in_stage(self) -> int:
        """Return how many steps of the current stage are done."""
        if self.schedule is None:
            return self.step
        return self.step - sum(self.schedule.stage_steps[: self.stage_index])

    def _stage_length(self) -> int:
        if self.schedule is None:
            # While the probe runs, the end is unknown: the learning rate stays at its start.
            return 10_000
        return self.schedule.stage_steps[self.stage_index]

    def _check_names(self) -> None:
        for stage in self.stages:
            for phase in stage.phases:
                for name in phase.step:
                    if name not in self._declared:
                        raise ConfigError(
                            f"phase {phase.name!r} steps {name!r}, which is no optimizer; "
                            f"known: {', '.join(self._declared)}"
                        )

    # -- how long ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Let the model initialise from a first batch, once."""
        if self.prepared:
            return
        torch.manual_seed(mix("prepare", self.seed))
        stage = self.stages[0]
        draws = Draws(("prepare", self.seed), total=self.batch_size(stage), device=self.device)
        self.model.prepare(self._batch(stage, stage.phases[0], 0, draws))
        self.model.keep_examples(self._held_out)
        self.average.restart()
        self.snapshots.restart()
        self.prepared = True

    # -- on the way ----------------------------------------------------------------------------

    def _milestones(self, schedule: Schedule) -> None:
        last = self.step == schedule.total

        def due(count: int) -> bool:
            if count <= 0:
                return False
            passed = self.step * count // schedule.total
            return last or passed > (self.step - 1) * count // schedule.total

        if due(schedule.validations):
            values = self.validate()
            if values:
                self.log(values, "validation")
                self._note_best(values)
        if due(schedule.grids) and self.run is not None:
            grids.write(self)
        # Before a checkpoint: a resume from there does not come by here again.
        if due(self.config.snapshots) and self.run is not None:
            self.snapshots.write(self.run, self.step, self.config.snapshots)
        if (due(schedule.checkpoints) or last) and self.run is not None:
            self.save()

    def _note_best(self, values: dict[str, float]) -> None:
        self.watch, value = next(iter(values.items()))
        if value < self.best:
            self.best = value
            if self.run is not None:
                self.settle()
                files = self.state_files()
                weights = {k: files[k] for k in ("model.safetensors", "ema.safetensors")}
                weights["state.json"] = {"step": self.step, self.watch: value}
                weights, shards = distribution.part(weights)
                self.run.save_checkpoint(
                    self.step, weights, kind="best", pointer="best", keep=1, shards=shards
                )

    def validate(self) -> dict[str, float]:
        """Return means over held-out rows of what the model watches, with averaged weights."""
        stage = self.stages[self.stage_index]
        with (
            self.average.applied(),
            distribution.whole_networks(self.sharded),
            autocast(self.device, self.config.precision),
        ):
            return held_out_means(self.model, self._in_order("validation"), stage.transform)

    def _held_out(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Return at most n held-out rows in the view, spread evenly, and their conditions."""
        x, y, _ = zip(*self._in_order("validation").in_order(n), strict=True)
        return torch.cat(x), None if y[0] is None else torch.cat(y)

    def _in_order(self, split: str) -> Loader:
        """Return a loader of a split, of train where it is missing, in the stage's view."""
        stage = self.stages[self.stage_index]
        return Loader(
            self.data.splits[split if split in self.data.splits else "train"],
            self.data.spec,
            stage.view or self.model.spec,
            batch_size=self.batch_size(stage),
            device=self.device,
        )

    @torch.no_grad()
    def settle(self) -> None:
        """Let the model follow its weights with what it keeps of all the data, once per step."""
        if self._settled == self.step or type(self.model).settle is GenerativeModel.settle:
            return

        def batches(limit: int) -> Iterator[Batch]:
            for x, y, where in self._in_order("train").in_order(limit):
                draws = Draws(("settle", int(where[0])), total=len(where), device=self.device)
                condition = self.model.condition_on(x, y, draws)
                batch = Batch(x=x, condition=condition, index=where, draws=draws, size=len(where))
                yield batch if transform is None else transform(batch)

        transform = self.stages[self.stage_index].transform
        training = self.model.training
        self.model.eval()
        with (
            self.average.applied(),
            distribution.whole_networks(self.sharded),
            autocast(self.device, self.config.precision),
        ):
            self.model.settle(batches)
        self.model.train(training)
        self._settled = self.step

    def log(self, values: Mapping[str, float], kind: str, **about: int) -> None:
        """Log values under "kind/name"; about: of the line, for metrics.jsonl alone."""
        named = {f"{kind}/{name}": value for name, value in values.items()}
        if self.bad_steps.total:
            named["train/bad_steps"] = self.bad_steps.total
        if self.run is not None:
            self.run.log({"step": self.step, **about, **named})
        for tracker in self.trackers:
            tracker.log(self.step, named)

    def say(self, line: str) -> None:
        """Tell the user one line."""
        if self._bar is not None and self.main:
            self._bar.say(line)

    # -- state ---------------------------------------------------------------------------------

    def state_files(self) -> dict[str, Any]:
        """Return all that a resume needs, as checkpoint files by name."""
        return state.collect(self)

    def save(self, kind: str = "step") -> Path:
        """Write a checkpoint; raises RunError, leaving the one before whole."""
        assert self.run is not None
        self.settle()
        files, shards = distribution.part(self.state_files())
        pointer, keep = ("latest", self.config.keep) if kind == "step" else (kind, 1)
        return self.run.save_checkpoint(
            self.step, files, kind=kind, pointer=pointer, keep=keep, shards=shards
        )

    def load_state_files(self, files: dict[str, Any]) -> None:
        """Take back what `state_files` returned."""
        state.restore(self, files)

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.load_state_files(state.read(self, checkpoint))
