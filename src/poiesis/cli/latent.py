"""`poiesis latent`: ways, directions and maps in a model's latent space, one mode for each."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from poiesis.cli.options import Option, options, parse, scan
from poiesis.cli.output import print_json, progress, stdout_for_json
from poiesis.config import check
from poiesis.errors import ConfigError, suggest

__all__ = ["MODES", "all_options", "run"]

_FILES = (
    "The ending of -o chooses: .png is a sheet, .gif and .mp4 (needs ffmpeg) move, .html is a page "
    "with a slider."
)
_POINTS = (
    "A point is a number (of a sample in the data), a sample's name, class:NAME (the mean code "
    "of a class) or a picture file."
)


@dataclass(frozen=True, kw_only=True)
class LatentArgs:
    """Options of every mode."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write (default: in the run's folder latent). Its ending chooses what it is."""
    input: str = ""
    """Image file, folder or .zip of images, or name of a data set (default: the run's own data)."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of a data set."""
    limit: int = 2000
    """At most so many samples are encoded where many are needed, spread evenly."""
    seed: int = 0
    """Seed of all that is drawn."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    batch_size: int = 256
    """Samples encoded and decoded at once: a matter of speed and memory."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check("--limit", self.limit, low=1)
        check("--seed", self.seed, low=0)
        check("--batch-size", self.batch_size, low=1)
        check("--threads", self.threads, low=1)


_Points = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="POINT")]


@dataclass(frozen=True, kw_only=True)
class DecodeArgs(LatentArgs):
    """Options of the modes that decode."""

    label: str | None = None
    """Class that a conditional model decodes by (default: that of the sample at hand)."""
    fps: float = 12
    """Pictures a second in a .gif, .mp4 or .html."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("--fps", self.fps, low=0.1, high=50)


@dataclass(frozen=True, kw_only=True)
class InterpolateArgs(DecodeArgs):
    """Options of interpolate."""

    mode: Annotated[
        tyro.conf.Positional[Literal["interpolate"]], tyro.conf.arg(metavar="interpolate")
    ]
    """This mode."""
    points: _Points = ()
    """Two or more, in order (default: two samples drawn by seed)."""
    steps: int | None = None
    """Pictures from one point to the next, both included (default: 10, in what moves 40)."""
    way: Literal["linear", "spherical"] | None = None
    """Along a line, or an arc about the origin, which keeps to lengths that a normal prior knows
    (default: spherical for models with such a prior)."""


@dataclass(frozen=True, kw_only=True)
class WalkArgs(DecodeArgs):
    """Options of walk."""

    mode: Annotated[tyro.conf.Positional[Literal["walk"]], tyro.conf.arg(metavar="walk")]
    """This mode."""
    points: _Points = ()
    """Where to start, a walk for each (default: one sample drawn by seed)."""
    steps: int | None = None
    """Pictures of a walk (default: 120, in a .png 24)."""
    step_size: float = 0.2
    """How much of the way is forgotten with each step, (0, 1]."""


@dataclass(frozen=True, kw_only=True)
class DirectionArgs(DecodeArgs):
    """Options of direction."""

    mode: Annotated[tyro.conf.Positional[Literal["direction"]], tyro.conf.arg(metavar="direction")]
    """This mode."""
    points: _Points = ()
    """What to move (default: four samples without the attribute, drawn by seed)."""
    positive: tuple[str, ...] = ()
    """Classes that have the attribute."""
    negative: tuple[str, ...] = ()
    """Classes that have it not (default: all others)."""
    how: Literal["mean", "classifier"] = "mean"
    """The difference of the means of codes, or the normal of a linear classifier."""
    strength: float = 1.5
    """Move from minus to plus so much; 1 leads from the one group's mean to the other's."""
    steps: int | None = None
    """Pictures from weakest to strongest (default: 9, in what moves 41)."""


@dataclass(frozen=True, kw_only=True)
class ArithmeticArgs(DecodeArgs):
    """Options of arithmetic."""

    mode: Annotated[
        tyro.conf.Positional[Literal["arithmetic"]], tyro.conf.arg(metavar="arithmetic")
    ]
    """This mode."""
    points: _Points = ()
    """Three of them, A B C: the result is A - B + C."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 4
    """Samples nearest to the result."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """How far codes are apart."""


@dataclass(frozen=True, kw_only=True)
class NeighboursArgs(DecodeArgs):
    """Options of neighbours."""

    mode: Annotated[
        tyro.conf.Positional[Literal["neighbours"]], tyro.conf.arg(metavar="neighbours")
    ]
    """This mode."""
    points: _Points = ()
    """Whose neighbours (default: three samples drawn by seed)."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 8
    """How many."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """How far codes are apart."""


@dataclass(frozen=True, kw_only=True)
class MapArgs(LatentArgs):
    """Options of map."""

    mode: Annotated[tyro.conf.Positional[Literal["map"]], tyro.conf.arg(metavar="map")]
    """This mode."""
    method: Literal["pca", "tsne", "umap"] = "pca"
    """pca: the two directions of most variance; tsne and umap (needs umap-learn) keep near what is
    near."""


@dataclass(frozen=True, kw_only=True)
class TraverseArgs(DecodeArgs):
    """Options of traverse."""

    mode: Annotated[tyro.conf.Positional[Literal["traverse"]], tyro.conf.arg(metavar="traverse")]
    """This mode."""
    points: _Points = ()
    """What to move (default: a sample drawn by seed)."""
    axes: Literal["dimensions", "components"] | None = None
    """Dimensions of the code, or principal components of the codes (default: components where a
    code is a grid)."""
    dims: int = 10
    """How many, from the one that says most on."""
    reach: float = 2.5
    """From minus to plus so many standard deviations about the mean."""
    steps: int | None = None
    """Pictures of each (default: 9, in what moves 41)."""


@dataclass(frozen=True)
class Mode:
    """A mode: its options, what it does in few words and in some more, and examples."""

    args: type[LatentArgs]
    what: str
    description: str
    examples: tuple[str, ...]


MODES: dict[str, Mode] = {
    "interpolate": Mode(
        InterpolateArgs,
        "the way from one sample to another",
        f"Decode what lies between two or more points of the latent space. {_POINTS} {_FILES}",
        (
            "poiesis latent runs/first interpolate 3 17 -o strip.png",
            "poiesis latent runs/first interpolate class:1 class:7 class:1 -o loop.gif",
            "poiesis latent runs/first interpolate me.png you.png -o slider.html",
        ),
    ),
    "walk": Mode(
        WalkArgs,
        "random walks where the data lie",
        "Walk at random: each step forgets a little of where it was and adds noise of the codes' "
        f"own mean and covariance, so that it stays where data lie. {_POINTS} {_FILES}",
        (
            "poiesis latent runs/first walk -o walk.gif",
            "poiesis latent runs/first walk 3 17 --steps 300 --step-size 0.1 -o walk.mp4",
        ),
    ),
    "direction": Mode(
        DirectionArgs,
        "what tells one class from others, added or taken away",
        "Find the direction of an attribute from labelled data, and move samples along it. With "
        "-o FILE.npz the vector itself is written. accuracy: of a linear classifier on samples "
        f"it was not fitted to: how openly the attribute lies in the codes. {_POINTS} {_FILES}",
        (
            "poiesis latent runs/first direction --positive 7 --negative 1 -o to-seven.png",
            "poiesis latent runs/first direction 3 17 --positive 0,6,8 --how classifier -o x.html",
            "poiesis latent runs/faces direction --positive smiling --strength 2 -o smile.gif",
        ),
    ),
    "arithmetic": Mode(
        ArithmeticArgs,
        "A - B + C, and what is near to it",
        f"Decode A - B + C, and find the samples nearest to it. {_POINTS}",
        (
            "poiesis latent runs/first arithmetic class:8 class:3 12 -o sum.png",
            "poiesis latent runs/first arithmetic a.png b.png c.png -k 8 --json",
        ),
    ),
    "neighbours": Mode(
        NeighboursArgs,
        "the samples with the nearest codes",
        "Find the samples whose codes lie nearest, among those that --limit lets in (exact "
        f"search). {_POINTS}",
        (
            "poiesis latent runs/first neighbours 3 17 -k 8 -o near.png",
            "poiesis latent runs/first neighbours mine.png --split train --limit 60000 --json",
        ),
    ),
    "map": Mode(
        MapArgs,
        "all codes in two dimensions, on a page",
        "Map the codes to two dimensions and write a page (.html) that needs nothing else: each "
        "sample is a dot, and shows itself under the pointer. trustworthiness: how far neighbours "
        "on the map are so in the latent space; 1 is all.",
        (
            "poiesis latent runs/first map -o map.html",
            "poiesis latent runs/first map --method tsne --limit 5000 -o map.html",
        ),
    ),
    "traverse": Mode(
        TraverseArgs,
        "what each dimension does, the most telling first",
        "Move a sample along each dimension of its code, from the most telling on: by the mean KL "
        "to the prior (in nats) for models with a posterior, else by the variance of the code. "
        f"active_units: dimensions that vary over the data. {_POINTS} {_FILES}",
        (
            "poiesis latent runs/first traverse -o dimensions.png",
            "poiesis latent runs/first traverse 3 --dims 6 --reach 3 -o dimensions.gif",
            "poiesis latent runs/first traverse --axes components -o components.html",
        ),
    ),
}

_WIDTH = max(map(len, MODES))
_HELP = "\n".join(
    [
        "usage: poiesis latent RUN MODE [POINT ...] [options]",
        "",
        "Explore the latent space of a trained model: every model that encodes and decodes.",
        "",
        "Modes (poiesis latent RUN MODE --help explains one):",
        *(f"  {name:{_WIDTH}}  {mode.what}" for name, mode in MODES.items()),
        "",
        textwrap.fill(f"{_POINTS} {_FILES}", 96),
        "",
        "Examples:",
        *(f"  {mode.examples[0]}" for mode in MODES.values()),
    ]
)


def all_options() -> list[Option]:
    """Return the options of all modes."""
    found = [o for mode in MODES.values() for o in options(mode.args)]
    return list({o.name: o for o in found}.values())


def run(args: list[str]) -> int:
    """Find the mode, open the space, write what was asked for and print its numbers."""
    positionals, values = scan(args, all_options(), prog="poiesis latent")
    if len(positionals) < 2:
        if "--help" in values or not args:
            print(_HELP)
            return 0 if args else 2
        if not positionals:
            raise ConfigError(f"poiesis latent needs RUN; e.g. {MODES['walk'].examples[0]}")
        hint = suggest(positionals[0], MODES) if positionals[0] in MODES else ""
        raise ConfigError(f"poiesis latent RUN needs a mode{hint}: {', '.join(MODES)}")
    name = positionals[1]
    if name not in MODES:
        hint = suggest(name, MODES) or f"; modes: {', '.join(MODES)}"
        raise ConfigError(f"poiesis latent has no mode {name!r}{hint}")
    mode = MODES[name]
    parsed: Any = parse(
        mode.args,
        args,
        prog="poiesis latent",
        description=mode.description,
        examples=mode.examples,
    )
    return _run(name, parsed)


def _run(name: str, parsed: Any) -> int:
    import torch

    from poiesis.apply import latent as room
    from poiesis.runs import Run

    endings = {"map": (".html",), "direction": (*room.SUFFIXES, ".npz")}.get(name, room.SUFFIXES)
    usual = {"map": ".html", "walk": ".gif"}.get(name, ".png")
    out = None if parsed.out is None else Path(parsed.out)
    if out is not None:
        room.check_path(out, endings)
    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        space = room.latent(
            parsed.run,
            parsed.input,
            split=parsed.split,
            limit=parsed.limit,
            label=getattr(parsed, "label", None),
            checkpoint=parsed.checkpoint,
            device=parsed.device,
            batch_size=parsed.batch_size,
            progress=advance,
        )
        if out is None:
            out = Run.open(parsed.run).path / "latent" / f"{name}{usual}"
        numbers = _RUNNERS[name](room, space, parsed, out)
    if parsed.json:
        print_json({"mode": name, **numbers, "path": str(out)})
        return 0
    for key, value in numbers.items():
        named = value.items() if isinstance(value, dict) else [(key, value)]
        for label, one in named:
            print(f"  {label:16} {_shown(one)}")
    print(f"{name}: {out}")
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return str(value)


def _steps(parsed: Any, out: Path, still: int, moving: int) -> int:
    """Return how many pictures: what moves wants more than a sheet has room for."""
    if parsed.steps is not None:
        return parsed.steps
    return still if out.suffix in (".png", ".npz") else moving


def _interpolate(room: Any, space: Any, parsed: Any, out: Path) -> dict[str, Any]:
    steps = _steps(parsed, out, 10, 40)
    shown = room.interpolate(space, parsed.points, steps=steps, way=parsed.way, seed=parsed.seed)
    room.write(shown, out, fps=parsed.fps)
    return {"points": shown.title.removeprefix("From "), "pictures": len(shown.columns)}


def _walk(room: Any, space: Any, parsed: Any, out: Path) -> dict[str, Any]:
    steps = _steps(parsed, out, 24, 120)
    shown = room.random_walk(
        space, parsed.points, steps=steps, step_size=parsed.step_size, seed=parsed.seed
    )
    room.write(shown, out, fps=parsed.fps)
    return {"starts": shown.rows, "pictures": len(shown.columns)}


def _direction(room: Any, space: Any, parsed: Any, out: Path) -> dict[str, Any]:
    if not parsed.positive:
        example = MODES["direction"].examples[0]
        raise ConfigError(f"direction needs --positive, the classes to move to; e.g. {example}")
    found = room.direction(
        space,
        parsed.positive,
        parsed.negative,
        points=parsed.points,
        how=parsed.how,
        strength=parsed.strength,
        steps=_steps(parsed, out, 9, 41),
        seed=parsed.seed,
    )
    if out.suffix == ".npz":
        found.save(out)
    else:
        room.write(found.shown, out, fps=parsed.fps)
    return {
        "with": found.counts[0],
        "without": found.counts[1],
        "length": float(found.vector.norm()),
        "accuracy": found.accuracy,
        "cosine": found.cosine,
    }


def _arithmetic(room: Any, space: Any, parsed: Any, out: Path) -> dict[str, Any]:
    if len(parsed.points) != 3:
        example = MODES["arithmetic"].examples[0]
        raise ConfigError(
            f"arithmetic takes three points, not {len(parsed.points)}; e.g. {example}"
        )
    found = room.arithmetic(space, *parsed.points, k=parsed.k, metric=parsed.metric)
    room.write(found.shown, out, fps=parsed.fps)
    return {"nearest": _by_point([found.shown.title], found)}


def _neighbours(room: Any, space: Any, parsed: Any, out: Path) -> dict[str, Any]:
    found = room.neighbours(
        space, parsed.points, k=parsed.k, metric=parsed.metric, seed=parsed.seed
    )
    room.write(found.shown, out, fps=parsed.fps)
    return {"nearest": _by_point(found.shown.rows, found)}


def _by_point(points: list[str], found: Any) -> dict[str, dict[str, float]]:
    """Return point → sample → distance."""
    rows = zip(points, found.names, found.distances, strict=True)
    return {point: dict(zip(names, far, strict=True)) for point, names, far in rows}


def _map(room: Any, space: Any, parsed: Any, out: Path) -> dict[str, Any]:
    found = room.latent_map(space, method=parsed.method, out=out, seed=parsed.seed)
    numbers: dict[str, Any] = {"samples": len(found.xy)}
    if any(found.axes):
        numbers["axes"] = list(found.axes)
    return {**numbers, "trustworthiness": found.trustworthiness}


def _traverse(room: Any, space: Any, parsed: Any, out: Path) -> dict[str, Any]:
    if len(parsed.points) > 1:
        raise ConfigError(f"traverse moves one point, not {len(parsed.points)}")
    found = room.traversal(
        space,
        *parsed.points,
        axes=parsed.axes,
        dims=parsed.dims,
        reach=parsed.reach,
        steps=_steps(parsed, out, 9, 41),
        seed=parsed.seed,
    )
    room.write(found.shown, out, fps=parsed.fps)
    return {
        "dimensions": space.codes.z.shape[1],
        "active_units": found.active,
        "order": found.order,
        found.measure: found.values,
        **({} if found.measure == "share" else {f"total_{found.measure}": found.total}),
    }


_RUNNERS = {
    "interpolate": _interpolate,
    "walk": _walk,
    "direction": _direction,
    "arithmetic": _arithmetic,
    "neighbours": _neighbours,
    "map": _map,
    "traverse": _traverse,
}
