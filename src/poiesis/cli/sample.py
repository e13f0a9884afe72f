"""`poiesis sample`: new data from a trained run, as files with their recipe inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from poiesis.cli.output import progress
from poiesis.cli.sampling import parse_with_sampling
from poiesis.config import check

__all__ = ["SampleArgs", "run"]

_EXAMPLES = (
    "poiesis sample runs/first -n 64 --seed 1 -o new-digits",
    "poiesis sample runs/table -n 5000 -o new.csv",
    "torchrun --nproc-per-node 2 -m poiesis sample runs/first -n 1000000 -o million",
    "poiesis sample runs/ddpm --class 3 --sampling.steps 50 --sampling.guidance 2",
    'poiesis sample runs/shapes --prompt "a small red circle left of a blue square"',
    'poiesis sample runs/shakespeare --prompt "ROMEO:" --stop "\\n\\n" --stream',
)


@dataclass(frozen=True, kw_only=True)
class SampleArgs:
    """Options of the verb itself."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    samples: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many to make (default: 64; of a text 1 with --stream, else 8; of a table 1,000 rows)."""
    seed: int = 0
    """Seed; sample i depends on the seed and on i alone."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the files (default: RUN/samples/seed-SEED); for rows of a table also a .csv."""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Class by name or number, if the model learned classes (default: each in turn); or
    attributes by name, separated by commas, the others absent (none: all absent)."""
    prompt: str | None = None
    """Text to continue; of a model that learned captions, what to show (default: captions that the
    run keeps, in turn)."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End a text here; may be repeated. \\n stands for a new line."""
    stream: bool = False
    """Print a text as it is written, one sample after the other."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    weights: Literal["average", "raw"] = "average"
    """The moving average of the weights, where the model has one, or the last ones."""
    batch_size: int = 64
    """Samples made at once: a matter of speed and memory."""
    shard_size: int | None = None
    """Write zip files (of a table: csv files) of so many samples with a manifest, and go on where
    an interrupted call stopped (default: single files up to 10,000 samples, then shards of
    10,000; of a table 1,000,000)."""
    format: Literal["gif", "mp4"] | None = None
    """What video is written as; mp4 needs ffmpeg (default: as the data came, or gif)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check("--samples", self.samples, low=1)
        check("--seed", self.seed, low=0)
        check("--batch-size", self.batch_size, low=1)
        check("--shard-size", self.shard_size, low=1)
        check("--threads", self.threads, low=1)


def run(args: list[str]) -> int:
    """Draw samples, write them and print where they are."""
    parsed, chosen = parse_with_sampling(
        SampleArgs,
        args,
        verb="sample",
        about="Generate new data from a trained run. poiesis sample RUN --help shows the sampling "
        "options of the run's model too.",
        here="Generate new data from {run}, a {name}.",
        examples=_EXAMPLES,
    )
    from poiesis.runs import Run
    from poiesis.spec import Tokens, Vector, from_json

    folder = Run.open(parsed.run)
    if parsed.threads is not None:
        import torch

        torch.set_num_threads(parsed.threads)
    from poiesis.models.samples import sample
    from poiesis.sampling.counting import counting, say

    spec = from_json((folder.read_json("data.json") or {}).get("spec"))
    is_text, is_table = isinstance(spec, Tokens), isinstance(spec, Vector)
    usual = (1 if parsed.stream else 8) if is_text else (1000 if is_table else 64)
    n = parsed.samples or usual
    with progress(parsed.quiet or parsed.stream) as advance, counting() as count:
        paths = sample(
            folder.path,
            n,
            seed=parsed.seed,
            out=parsed.out,
            checkpoint=parsed.checkpoint,
            weights=parsed.weights,
            label=parsed.label,
            prompt=_unescape(parsed.prompt),
            stop=[_unescape(text) for text in parsed.stop],
            on_text=_printer(_unescape(parsed.prompt), n) if parsed.stream else None,
            # A reader wants one text after the other, not all of them mixed.
            batch_size=1 if parsed.stream else parsed.batch_size,
            shard_size=parsed.shard_size,
            format=parsed.format,
            device=parsed.device,
            progress=lambda count: advance("samples", count, n),
            **chosen,
        )
    if parsed.stream:
        print()
    elif is_text and paths[0].suffix != ".zip":
        print(paths[0].read_text(encoding="utf-8").strip("\n"))
    shards = f" in {len(paths)} shards" if paths[0].name.startswith("shard-") else ""
    one = is_table and not shards and len(paths) == 1
    taken = say(count.each, ", ", " each")
    print(f"{n} samples{shards}{taken}: {paths[0] if one else paths[0].parent}")
    return 0


def _unescape(text: Any) -> Any:
    return text.replace("\\n", "\n") if isinstance(text, str) else text


def _printer(prompt: str | None, n: int) -> Callable[[int, str], None]:
    """Return what prints each piece of text at once, the prompt before each sample."""
    seen: set[int] = set()

    def show(index: int, piece: str) -> None:
        if index not in seen:
            if seen:
                print("\n")
            if n > 1:
                print(f"--- {index} ---")
            print(prompt or "", end="")
            seen.add(index)
        print(piece, end="", flush=True)

    return show
