"""`poiesis train`: options from the chosen model's Config, its preset resolved for the data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from poiesis import config as configs
from poiesis import processes, registry
from poiesis.cli.options import Nested, Option, given, options, parse, scan
from poiesis.cli.output import human_bytes, human_time, print_json, stdout_for_json
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError, DataError, PoiesisError, SpecError, suggest
from poiesis.training.config import TrainConfig

if TYPE_CHECKING:
    from poiesis.data.dataset import DataSet
    from poiesis.runs import Run
    from poiesis.training.verb import RunConfig

__all__ = ["ALIASES", "DataAndTrain", "TrainArgs", "run"]

ALIASES = {"--data": "--data.source", "--skip-bad": "--data.skip-bad"}
"""Short spellings of options."""
_EXAMPLES = (
    "poiesis train vae --data digits --train.budget 1m --out runs/first",
    "poiesis train ddpm --data photos/ --data.resize 32 --train.steps 2000",
    "poiesis train transformer --data book.txt --dry-run",
    "poiesis train --resume runs/first --train.steps 4000",
)
_LENGTHS = ("budget", "steps", "epochs")


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Options of the verb itself."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="MODEL")] = None
    """Model name; poiesis models lists them."""
    preset: str | None = None
    """Named settings of the model (default: the model's own)."""
    config: str | None = None
    """A config.yaml to start from; options given besides change it."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Run folder (default: runs/DATA-MODEL/TIME)."""
    init: str | None = None
    """Start from the weights of this run (fine-tuning)."""
    resume: str | None = None
    """Continue this run where it stopped; --train.steps or --train.budget may extend it."""
    resume_anyway: bool = False
    """Continue although the threads or the data changed."""
    dry_run: bool = False
    """Show the full configuration, parameters, memory and predicted time; train nothing."""
    json: bool = False
    """With --dry-run: print one JSON document."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class DataAndTrain(TrainArgs):
    """The options that are the same for all models."""

    data: Nested[DataConfig]
    train: Nested[TrainConfig]


_COMMON = (
    "Options take a space or = before the value, none for no value, commas or spaces between "
    "several. --data X is short for --data.source X."
)


def run(args: list[str]) -> int:
    """Train, resume or dry-run."""
    known = options(DataAndTrain)
    positionals, values = scan(
        args, known, prog="poiesis train", aliases=ALIASES, ignore="--model."
    )
    if "--resume" in values:
        return _resume(args)
    stored: dict[str, Any] = {}
    if "--config" in values:
        stored = _read_config(values["--config"][-1])
    name = positionals[0] if positionals else stored.get("name")
    if name is None:
        if "--help" in values:
            return _general_help()
        raise ConfigError(f"poiesis train needs a model: {', '.join(registry.names())}")
    registry.entry(name)
    prog = f"poiesis train {name}"
    data_config = _data_config(known, values, stored)
    opened = None
    try:
        from poiesis.data import open_data

        opened = open_data(data_config.source, data_config)
    except DataError:
        if "--help" not in values:
            raise
    try:
        base = _base(name, opened, data_config, values, stored)
    except SpecError:
        if "--help" not in values:
            raise
        base = _base(name, None, data_config, values, stored)
    arguments = _arguments_class(type(base.model))
    verb = {k: v for k, v in (("preset", base.preset), ("seed", base.seed)) if k in stored}
    parsed = parse(
        arguments,
        args,
        prog=prog,
        description=f"Train {name}: {registry.entry(name).summary}. {_COMMON}",
        examples=_examples(name),
        default=arguments(
            name=name,
            data=data_config,
            model=base.model,
            train=_without_lengths(base.train, values),
            **verb,
        ),
        aliases=ALIASES,
    )
    final = dataclasses.replace(base, seed=parsed.seed, model=parsed.model, train=parsed.train)
    configs.check("seed", final.seed, low=0)
    assert opened is not None
    if parsed.dry_run:
        return _dry_run(final, opened, as_json=parsed.json)
    if parsed.json:
        raise ConfigError("--json goes with --dry-run; the numbers of a run are in metrics.jsonl")
    from poiesis.training.verb import train

    done = train(config=final, out=parsed.out, init=parsed.init, quiet=parsed.quiet, opened=opened)
    return _farewell(done)


def _arguments_class(model_config: type) -> Any:
    """Return DataAndTrain with the model's options."""
    return dataclasses.make_dataclass(
        "Arguments",
        [("model", Nested[model_config])],  # type: ignore[valid-type]
        bases=(DataAndTrain,),
        frozen=True,
        kw_only=True,
    )


def _read_config(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ConfigError(f"there is no configuration file {path!r}; a run's is config.yaml")
    stored = configs.load_yaml(path)
    known = ("poiesis", "name", "preset", "seed", "data", "model", "train")
    unknown = [key for key in stored if key not in known]
    if unknown:
        hint = suggest(str(unknown[0]), known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}{hint}")
    for part in ("data", "model", "train"):
        if not isinstance(stored.get(part, {}), Mapping):
            raise ConfigError(f"{path}: {part} is no mapping of keys to values")
    for part, kind in (("name", str), ("preset", str), ("seed", int)):
        if not isinstance(stored.get(part, kind()), kind):
            raise ConfigError(f"{path}: {part} = {stored[part]!r} is not a {kind.__name__}")
    return stored


def _data_config(
    known: list[Option], values: Mapping[str, list[str]], stored: Mapping[str, Any]
) -> DataConfig:
    """Return how to read the data: the file's settings, changed by the command line's."""
    changes: dict[str, Any] = dict(stored.get("data", {}))
    for option in known:
        if option.path[0] == "data" and option.name in values:
            taken = values[option.name]
            value: Any = taken if option.kind == "many" else taken[-1]
            changes[option.path[1]] = None if value == "None" else value
    return configs.from_dict(DataConfig, changes, path="data.")


def _base(
    name: str,
    opened: DataSet | None,
    data_config: DataConfig,
    values: Mapping[str, list[str]],
    stored: Mapping[str, Any],
) -> RunConfig:
    """Return the configuration before the command line's changes to model and train."""
    from poiesis.training.verb import resolve

    preset = values["--preset"][-1] if "--preset" in values else stored.get("preset")
    return resolve(
        name,
        _imagined(name) if opened is None else opened,
        data_config,
        preset=None if preset == "None" else preset,
        model=stored.get("model"),
        train=stored.get("train"),
        seed=stored.get("seed", 0),
    )


def _imagined(name: str) -> Any:
    """Return something with a spec, to show a model's options where its data is not at hand."""
    from types import SimpleNamespace

    from poiesis.spec import Grid, Tokens

    accepts = registry.entry(name).accepts
    if "image" in accepts:
        return SimpleNamespace(spec=Grid(channels=1, size=(28, 28)))
    if "video" in accepts:
        return SimpleNamespace(spec=Grid(channels=1, size=(16, 32, 32)))
    return SimpleNamespace(spec=Tokens(vocabulary=64, length=0, stream=True))


def _without_lengths(train: TrainConfig, values: Mapping[str, list[str]]) -> TrainConfig:
    """Return `train` without its length if the command line gives one."""
    if any(f"--train.{name}" in values for name in _LENGTHS):
        return dataclasses.replace(train, **dict.fromkeys(_LENGTHS))
    return train


def _examples(name: str) -> tuple[str, ...]:
    usual = {"image": "digits", "video": "moving-digits"}
    accepted = (usual[kind] for kind in usual if kind in registry.entry(name).accepts)
    data = next(accepted, "book.txt")
    return (
        f"poiesis train {name} --data {data} --train.budget 5m --out runs/mine",
        f"poiesis train {name} --data {data} --dry-run",
        f"poiesis models {name}   (what it is good at, its presets)",
    )


def _general_help() -> int:
    parse(
        DataAndTrain,
        ["--help"],
        prog="poiesis train",
        description=f"Train a model: {', '.join(registry.names())}. "
        f"poiesis train MODEL --help shows the model's own options too. {_COMMON}",
        examples=_EXAMPLES,
        default=DataAndTrain(data=DataConfig(), train=TrainConfig()),
        aliases=ALIASES,
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class _ResumeArgs(TrainArgs):
    """What a resumed run may still change."""

    train: Nested[TrainConfig]


def _resume(args: list[str]) -> int:
    from poiesis.runs import Run
    from poiesis.training.verb import train

    known = options(_ResumeArgs)
    prog = "poiesis train --resume"
    for token in args:
        if token.startswith(("--model.", "--data", "--preset", "--config", "--init", "--seed")):
            raise ConfigError(
                f"{token.partition('=')[0]} can't change in a resumed run, only --train.* can; "
                "--init starts a new run from its weights"
            )
    positionals, values = scan(args, known, prog=prog)
    stored = Run.open(values["--resume"][-1]).config()
    if positionals and positionals[0] != stored.get("name"):
        raise ConfigError(f"that run is a {stored.get('name')}, not {positionals[0]!r}")
    before = configs.from_dict(TrainConfig, stored.get("train", {}), path="train.")
    parsed = parse(
        _ResumeArgs,
        args,
        prog=prog,
        description="Continue a run. Only its length, threads and the like can change.",
        examples=_EXAMPLES[-1:],
        default=_ResumeArgs(train=_without_lengths(before, values)),
    )
    if parsed.out or parsed.dry_run or parsed.json:
        raise ConfigError("--out, --dry-run and --json don't go with --resume; leave them out")
    changed = {name: getattr(parsed.train, name) for name in given(values, known, "train")}
    done = train(
        resume=parsed.resume, resume_anyway=parsed.resume_anyway, quiet=parsed.quiet, **changed
    )
    return _farewell(done)


def _farewell(done: Run) -> int:
    """Say where the run is and what to do next; 130 if it was stopped before its end."""
    where = done.path
    print(f"run: {where}")
    schedule = done.read_json("schedule.json", {})
    try:
        step = done.checkpoint().step
    except PoiesisError:
        step = 0
    if step < sum(schedule.get("stage_steps", [])):
        return 130  # the engine has said how to continue
    if not processes.main():
        return 0
    print(f"next: poiesis sample {where} -n 64 -o samples", file=sys.stderr)
    print(f"      poiesis evaluate {where}", file=sys.stderr)
    print(f"      poiesis report {where}", file=sys.stderr)
    return 0


def _dry_run(final: RunConfig, opened: DataSet, *, as_json: bool) -> int:
    from poiesis.training.verb import dry_run

    with stdout_for_json(as_json):
        told = dry_run(final, opened)
    total = sum(told.parameters.values())
    if as_json:
        value = {f.name: getattr(told, f.name) for f in dataclasses.fields(told)}
        print_json({**value, "config": final.to_dict(), "parameters_total": total})
        return 0
    print(configs.save_yaml(final.to_dict()))
    print(f"data        {opened.variant}: {opened.spec}")
    for network, count in told.parameters.items():
        print(f"parameters  {count:>12,}  {network}")
    print(f"parameters  {total:>12,}  in all")
    print(f"memory      {human_bytes(told.memory)} for weights, gradients, optimizers, averages")
    print(f"            {human_bytes(told.peak)} of the process at its peak so far")
    for count, each in zip(told.steps, told.step_seconds, strict=True):
        print(f"steps       {count:,} of {1000 * each:.1f} ms")
    print(f"time        {human_time(told.seconds)} predicted from 20 steps of each stage")
    return 0
