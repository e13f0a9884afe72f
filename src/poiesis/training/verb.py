"""The verb `train`: from a model name and data to a finished run folder; resume and fine-tuning."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poiesis import __version__, processes, registry
from poiesis import config as configs
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.errors import ConfigError, PoiesisWarning, RunError
from poiesis.models.base import GenerativeModel
from poiesis.models.trained import build, load, pick_device
from poiesis.rng import mix
from poiesis.runs import Run, environment, sha256
from poiesis.spec import to_json
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine
from poiesis.training.schedule import Schedule, probe
from poiesis.training.schedule import resolve as resolve_schedule
from poiesis.training.trackers import open_trackers

__all__ = ["DryRun", "RunConfig", "describe_data", "dry_run", "resolve", "train"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run is made from; config.yaml holds it in full."""

    name: str
    preset: str
    seed: int
    data: DataConfig
    model: Any
    train: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts."""
        return {"poiesis": __version__, **configs.to_dict(self)}


def resolve(
    name: str,
    data: DataSet,
    data_config: DataConfig,
    *,
    preset: str | None = None,
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | TrainConfig | None = None,
    seed: int = 0,
) -> RunConfig:
    """Return the full configuration: the preset for this data, then the given changes.

    model, train: changed keys (dotted or nested). Raises ConfigError for unknown keys.
    """
    entry = registry.entry(name)
    cls = registry.model_class(name)
    preset = preset or entry.preset
    config = configs.override(cls.preset(preset, data.spec), entry.options)
    config = configs.from_dict(type(config), dict(model or {}), path="model.", base=config)
    if not isinstance(train, TrainConfig):
        train = configs.from_dict(TrainConfig, dict(train or {}), path="train.")
    configs.check("seed", seed, low=0)
    return RunConfig(
        name=name, preset=preset, seed=seed, data=data_config, model=config, train=train
    )


def train(
    model: str | None = None,
    data: str | None = None,
    *,
    preset: str | None = None,
    config: Mapping[str, Any] | RunConfig | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    init: str | Path | None = None,
    resume: str | Path | None = None,
    resume_anyway: bool = False,
    quiet: bool = False,
    opened: DataSet | None = None,
    **train_options: Any,
) -> Run:
    """Train a model on data and return its run.

    config: nested changes ``{"model": {…}, "train": {…}, "data": {…}}`` or a whole RunConfig.
    train_options: fields of TrainConfig, e.g. budget="5m". init: a run whose weights to start from.
    resume: a run folder to continue instead; train_options may then change its length. opened: the
    data set, if the caller has opened it already.
    """
    processes.join()
    if resume is not None:
        return _resume(resume, train_options, resume_anyway, quiet)
    if isinstance(config, RunConfig):
        resolved = config
    else:
        if model is None:
            raise ConfigError("say which model to train; poiesis models lists them")
        changes = dict(config or {})
        unknown = set(changes) - {"model", "train", "data"}
        if unknown:
            raise ConfigError(
                f"unknown part of config {unknown.pop()!r}; known: model, train, data"
            )
        data_changes = dict(changes.get("data", {}))
        if data is not None:
            data_changes["source"] = data
        data_config = configs.from_dict(DataConfig, data_changes, path="data.")
        if opened is None:
            opened = open_data(data_config.source, data_config)
        resolved = resolve(
            model,
            opened,
            data_config,
            preset=preset,
            model=changes.get("model"),
            train={**changes.get("train", {}), **train_options},
            seed=seed,
        )
    if opened is None:
        opened = open_data(resolved.data.source, resolved.data)
    start = None if init is None else load(init, device="cpu")
    cls = registry.model_class(resolved.name)
    cls.view(resolved.model, opened.spec)  # refuse unsuitable data before a folder is made
    device = pick_device(resolved.train.device)
    name = opened.name
    run = processes.by_main(lambda: Run.create(out, name, resolved.name))
    try:
        processes.by_main(lambda: _copy_parts(cls, resolved, run))
        network = _build(resolved, opened, device, run)
        if start is not None:
            _start_from(network, start.model, start.run.path)
        run.write_json("data.json", describe_data(opened, network))
        run.write_json("env.json", environment())
        run.write_config(resolved.to_dict())  # last: from here on the folder is a run
        engine = _engine(network, opened, resolved, run, quiet)
    except BaseException:
        # Nothing was trained yet: leave nothing half-written.
        if not processes.main():
            raise
        if not (run.path / "metrics.jsonl").exists() and out is None:
            shutil.rmtree(run.path, ignore_errors=True)
        elif not (run.path / "metrics.jsonl").exists():
            for name in ("config.yaml", "data.json", "env.json"):
                (run.path / name).unlink(missing_ok=True)
            for folder in (run.path / "checkpoints", run.path / "samples", run.path):
                with contextlib.suppress(OSError):  # not empty: it held something before
                    folder.rmdir()
        raise
    _fit(engine, run)
    return run


def _resume(path: str | Path, options: Mapping[str, Any], anyway: bool, quiet: bool) -> Run:
    run = Run.open(path)
    if run.has_checkpoint():
        _schedule(run)
    stored = run.config()
    cls = registry.model_class(stored["name"])
    train_changes = dict(stored["train"])
    if "steps" in options or "epochs" in options or "budget" in options:
        train_changes.update(steps=None, epochs=None, budget=None)
    new_train = configs.from_dict(TrainConfig, {**train_changes, **options}, path="train.")
    resolved = RunConfig(
        name=stored["name"],
        preset=stored["preset"],
        seed=stored["seed"],
        data=configs.from_dict(DataConfig, stored["data"], path="data."),
        model=configs.from_dict(cls.Config, stored["model"], path="model."),
        train=new_train,
    )
    # A run of an earlier version lacks options that came since: it had their defaults.
    old_train = configs.from_dict(TrainConfig, stored["train"], path="train.")
    changed = _say_changes("train.", configs.to_dict(old_train), configs.to_dict(new_train))
    _set_threads(new_train)
    history = _check_environment(run, anyway)
    data = open_data(resolved.data.source, resolved.data)
    recorded, notes = run.read_json("data.json", {}).get("notes"), _plain(data.notes)
    if recorded != notes and not anyway:
        raise RunError(
            f"the data {resolved.data.source!r} differ from those this run was trained on; "
            "use --resume-anyway to go on with them"
        )
    _say_changes("data: ", recorded or {}, notes)
    network = _build(resolved, data, pick_device(new_train.device), run)
    engine = _engine(network, data, resolved, run, quiet)
    if run.has_checkpoint():
        engine.schedule = _schedule(run)
        checkpoint = run.checkpoint()
        engine.load_checkpoint(checkpoint)
    if engine.schedule is not None:
        # Steps that config.yaml names count too: it is written before schedule.json.
        fixed = new_train.steps is not None or new_train.epochs is not None
        for key in ("grids", "validations", "checkpoints"):
            if fixed or key in options:
                setattr(engine.schedule, key, getattr(new_train, key))
        if {"steps", "epochs", "budget"} & options.keys() or new_train.steps is not None:
            _extend(engine, new_train)
    run.rewind(engine.step)
    if changed and processes.by_main(lambda: run.drop_best_after(engine.step)):
        engine.best = math.inf  # that one lies on a way which the run no longer takes
    history[-1]["step"] = engine.step
    run.write_json("env.json", {**run.read_json("env.json", {}), "resumed": history})
    run.write_config(resolved.to_dict())
    if engine.schedule is not None:
        run.write_json("schedule.json", dataclasses.asdict(engine.schedule))
    _fit(engine, run)
    return run


def _schedule(run: Run) -> Schedule:
    stored = run.read_json("schedule.json")
    if stored is None:
        raise RunError(
            f"{str(run.path)!r} lacks schedule.json and can't be resumed; start a new run from its "
            f"weights: poiesis train --config {run.path}/config.yaml --init {run.path} --data DATA"
        )
    return Schedule(**stored)


def _extend(engine: Engine, config: TrainConfig) -> None:
    """Change the length of a resumed run; its last stage takes the difference."""
    schedule = engine.schedule
    assert schedule is not None
    wanted = None
    if config.steps is not None or config.epochs is not None:
        wanted = resolve_schedule(engine).total
    if wanted is None and config.budget is not None:
        left = configs.parse_duration(config.budget) - engine.seconds
        each = schedule.probe.get(f"step {len(engine.stages) - 1}") or 0.0
        each = each or engine.seconds / max(1, engine.step)
        wanted = engine.step + max(0, int(left / max(each, 1e-9)))
    if wanted is None:
        return
    if wanted < engine.step:
        raise ConfigError(f"train.steps = {wanted}, but the run has done {engine.step} already")
    before = sum(schedule.stage_steps[:-1])
    if wanted <= before:
        raise ConfigError(f"train.steps = {wanted} ends before the last stage begins at {before}")
    schedule.stage_steps[-1] = wanted - before


def _check_environment(run: Run, anyway: bool) -> list[dict[str, Any]]:
    """Compare this machine with the one before; return all that resumed this run, it the last.

    Raises RunError if the number of threads differs, unless the caller wants to go on anyway.
    """
    first, now = run.read_json("env.json", {}), environment()
    history = first.get("resumed", [])
    before = (history or [first])[-1]
    if before.get("threads") != now["threads"] and not anyway:
        raise RunError(
            f"{str(run.path)!r} was trained with {before.get('threads')} threads, not "
            f"{now['threads']}: it would not continue bit for bit; set --train.threads "
            f"{before.get('threads')} or allow it with --resume-anyway"
        )
    exact = ("threads", "processes", "processor", "gpu", "versions")
    aside = {"date", "step", "resumed"}
    old, new = ({k: v for k, v in e.items() if k not in aside} for e in (before, now))
    changed = _say_changes("", old, new)
    if any(key.partition(".")[0] in exact for key in changed):
        warnings.warn(
            f"the machine differs from the one before ({', '.join(changed)}): not bit for bit "
            "the same",
            PoiesisWarning,
            stacklevel=2,
        )
    return [*history, now]


def _say_changes(label: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Print a line for each value that differs, by dotted key; return the keys."""
    old, new = dict(configs.flatten(before)), dict(configs.flatten(now))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    for key in changed if processes.main() else ():
        print(
            f"resume: {label}{key} changes from {old.get(key)} to {new.get(key)}", file=sys.stderr
        )
    return changed


def _set_threads(config: TrainConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _build(config: RunConfig, data: DataSet, device: torch.device, run: Run) -> GenerativeModel:
    _set_threads(config.train)
    torch.manual_seed(mix("init", config.seed))
    return build(
        registry.model_class(config.name),
        config.model,
        data.spec,
        data.condition,
        parts_folder=run.path / "parts",
        device=device,
    )


def _engine(
    model: GenerativeModel, data: DataSet, config: RunConfig, run: Run | None, quiet: bool
) -> Engine:
    trackers = [] if run is None else open_trackers(config.train.track, run, config.to_dict())
    return Engine(
        model,
        data,
        config.train,
        run=run,
        seed=config.seed,
        augment=config.data.augment,
        trackers=trackers,
        quiet=quiet,
        title=f"{config.name} on {data.name}",
    )


def _copy_parts(cls: type[GenerativeModel], config: RunConfig, run: Run) -> None:
    """Copy the runs this model is built on into the run, with their hashes."""
    hashes = {}
    for name, source in cls.parts(config.model).items():
        part = Run.open(source)
        target = run.path / "parts" / name
        checkpoint = part.checkpoint("best" if part.has_checkpoint("best") else "latest")
        target.mkdir(parents=True, exist_ok=True)
        for file in ("config.yaml", "data.json"):
            shutil.copy2(part.path / file, target / file)
        if (part.path / "parts").exists():
            shutil.copytree(part.path / "parts", target / "parts", dirs_exist_ok=True)
        folder = target / "checkpoints" / f"step-{checkpoint.step:08d}"
        shutil.copytree(checkpoint.path, folder, dirs_exist_ok=True)
        (target / "checkpoints" / "latest").write_text(folder.name)
        hashes[name] = {
            "source": str(source),
            "sha256": sha256(folder / "model.safetensors"),
        }
    if hashes:
        run.write_json("parts/parts.json", hashes)


def _start_from(model: GenerativeModel, other: GenerativeModel, where: Path) -> None:
    """Take over the weights of a trained run; those of other names or shapes stay fresh."""
    own, theirs = model.state_dict(), other.state_dict()
    fits = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise RunError(f"no weight of {str(where)!r} fits this model; --init needs a related run")
    model.load_state_dict(fits, strict=False)
    fresh = [k for k in own if k not in fits]
    if fresh:
        warnings.warn(
            f"{len(fits)} of {len(own)} tensors taken from {where}; fresh: {', '.join(fresh[:5])}"
            + (" …" if len(fresh) > 5 else ""),
            PoiesisWarning,
            stacklevel=2,
        )


def _plain(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value, default=str))


def describe_data(data: DataSet, model: GenerativeModel) -> dict[str, Any]:
    """Return what a run's data.json says."""
    return {
        "name": data.name,
        "variant": data.variant,
        "spec": to_json(data.spec),
        "view": to_json(model.spec),
        "condition": to_json(data.condition),
        "codec": data.codec.to_json(),
        "notes": _plain(data.notes),
        "skipped": data.skipped,
    }


@contextlib.contextmanager
def _stop_on_signal(engine: Engine) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM finish the step and save; a second one stops at once."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if engine.stop:
            raise KeyboardInterrupt
        engine.stop = True
        engine.say("finishing the step and saving … (again to stop at once)")

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fit(engine: Engine, run: Run) -> None:
    with _stop_on_signal(engine):
        engine.fit()
    schedule = engine.schedule
    assert schedule is not None
    if engine.step < schedule.total:
        engine.say(
            f"stopped after step {engine.step} of {schedule.total}; "
            f"continue with: poiesis train --resume {run.path}"
        )


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What `--dry-run` tells, without leaving anything behind."""

    config: RunConfig
    parameters: dict[str, int]
    """Network → number of parameters."""
    memory: int
    """Bytes of weights, gradients, optimizer states and averages."""
    peak: int
    """Largest resident memory of the process so far, bytes."""
    step_seconds: list[float]
    steps: list[int]
    seconds: float
    """Predicted time of the run."""


def dry_run(config: RunConfig, data: DataSet) -> DryRun:
    """Build the model, time 20 steps of each stage and predict the run; writes nothing."""
    import resource
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        _copy_parts(registry.model_class(config.name), config, run)
        model = _build(config, data, pick_device(config.train.device), run)
        engine = _engine(model, data, config, None, quiet=True)
        engine.prepare()
        schedule = resolve_schedule(engine)
        times = schedule.probe or probe(engine)
    each = [times[f"step {i}"] for i in range(len(engine.stages))]
    state = engine.state_files()
    tensors = [t for k in state if k.endswith(".safetensors") for t in state[k].values()]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    states = 2 * weights  # two moments; the probe's own were taken back
    seconds = sum(n * s for n, s in zip(schedule.stage_steps, each, strict=True))
    seconds += schedule.validations * times["validation"] + schedule.grids * times["grid"]
    parameters = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in model.networks().items()
    }
    return DryRun(
        config=config,
        parameters=parameters,
        memory=sum(t.numel() * t.element_size() for t in tensors) + weights + states,
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        step_seconds=each,
        steps=schedule.stage_steps,
        seconds=seconds,
    )
