"""Judging a run: which numbers, on which samples, against which real data.

Images: FID, KID, Inception Score, precision, recall, density and coverage of generated against
real ones. Video: FID of single frames and of what changes between frames, precision and the like of
clips. Vectors and audio: Fréchet distance, precision, recall, density and coverage; of toys
how they lie about the true modes or curves, too. Text: repetition and novelty. Models with a
likelihood: nats and bits per dimension or character on held-out data. All: sampling speed. Every
number has a passport.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from poiesis import processes
from poiesis.config import check
from poiesis.data.codecs import AudioCodec, VectorCodec
from poiesis.data.dataset import DataSet, TextSplit
from poiesis.data.sources.planes import toy_of
from poiesis.data.sources.shapes import SIDE
from poiesis.errors import ConfigError, DataError, RunError, suggest
from poiesis.evaluation.images import (
    default_extractor,
    draw_reference,
    evaluate_images,
    evaluate_pairs,
)
from poiesis.evaluation.likelihood import evaluate_likelihood
from poiesis.evaluation.passport import Number, Passport
from poiesis.evaluation.toys import evaluate_toy
from poiesis.evaluation.values import evaluate_values
from poiesis.evaluation.videos import evaluate_videos
from poiesis.metrics.extractors import get_extractor
from poiesis.metrics.shapes import caption_agreement
from poiesis.metrics.text import novelty, repetition
from poiesis.models import trained as trained_models
from poiesis.models.capabilities import of
from poiesis.models.trained import Trained
from poiesis.rng import Noise
from poiesis.runs import Run
from poiesis.sampling.counting import counting, say
from poiesis.spec import Captions, Grid, Picture

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Evaluation", "EvaluationConfig", "evaluate", "load_evaluation"]

FILE = "evaluation.json"
"""Name of the saved evaluation in a run folder."""
_MOST_IMAGES = 5000
_MOST_PAIRS = 1000
"""The same for images made from pictures: all of those are in memory at once."""
_TEXTS = 32
_ENOUGH_TEST = 1000
"""A test split below this is too small for distances between distributions."""

Progress = Callable[[str, int, int], None]
"""Called with (what is done, samples just finished, samples in all)."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a run is judged."""

    extractor: str = "auto"
    """Feature extractor of images: a name, a weights file, or auto for the data set's own or
    random."""
    samples: int | None = None
    """Samples to generate; None is as many as there are real ones, at most 5,000 (texts: 32)."""
    split: Literal["auto", "train", "validation", "test"] = "auto"
    """Real samples to compare with; auto is test, or train where test has under 1,000."""
    likelihood_rows: int = 1000
    """Held-out samples (windows of a text) whose likelihood is measured; 0 leaves it out."""
    likelihood_samples: int | None = None
    """Importance samples or bound terms per sample; None is the model's default."""
    seed: int = 0
    """Seed of the samples, of the choice of real ones, and of the intervals."""
    checkpoint: str = "auto"
    """Which weights: auto (the best by held-out data if known, else the latest), best, latest, a
    step, or ema:LENGTH for an average of another length."""
    batch_size: int = 64
    """Samples drawn at once."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def __post_init__(self) -> None:
        check("samples", self.samples, low=1)
        check("likelihood_rows", self.likelihood_rows, low=0)
        check("likelihood_samples", self.likelihood_samples, low=1)
        check("seed", self.seed, low=0)
        check("batch_size", self.batch_size, low=1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The numbers of one run."""

    run: str
    model: str
    model_hash: str
    """Hash of the weights that were judged."""
    step: int
    """Training step they are from."""
    data: str
    variant: str
    numbers: tuple[Number, ...]

    def __getitem__(self, name: str) -> Number:
        for number in self.numbers:
            if number.name == name:
                return number
        known = [number.name for number in self.numbers]
        hint = suggest(name, known) or f"; it has: {', '.join(known)}"
        raise RunError(f"the evaluation of {self.run!r} has no number {name!r}{hint}")

    def __contains__(self, name: object) -> bool:
        return any(number.name == name for number in self.numbers)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read back what `to_json` wrote; raises RunError for anything else."""
        try:
            fields = dict(data)
            fields["numbers"] = tuple(Number.from_json(n) for n in fields["numbers"])
            return cls(**fields)
        except (TypeError, KeyError, ValueError):
            raise RunError("this evaluation is damaged: evaluate the run again") from None

    def table(self) -> Table:
        """Return a rich table of the numbers with what they were measured on."""
        from rich.table import Table

        table = Table(title=f"{self.model} on {self.variant}")
        for column in ("number", "value", "95% interval", "better", "measured with"):
            table.add_column(column, justify="right" if column == "value" else "left")
        for n in self.numbers:
            p = n.passport
            counts = (
                f"n {p.n_generated or p.n_real}, {p.split}" if p.split else f"n {p.n_generated}"
            )
            source = f"{p.extractor} {p.sha256[:8]}, " if p.extractor else ""
            counts += say(n.evaluations, ", ", " each")
            better = {True: "higher", False: "lower", None: ""}[n.higher_is_better]
            span = "" if n.interval is None else f"{n.interval[0]:.4g} … {n.interval[1]:.4g}"
            value = f"{n.value:.4g} {n.unit}".strip()
            table.add_row(n.name.replace("_", " "), value, span, better, source + counts)
        return table


def evaluate(
    run: str | Path,
    config: EvaluationConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a trained run and save the result in it as evaluation.json.

    Raises RunError without a trained model in `run`, DataError where its data or the extractor's
    weights are missing, ConfigError for options out of their bounds.
    """
    config = config or EvaluationConfig()
    processes.join()
    trained = trained_models.load(run, checkpoint=config.checkpoint, device=config.device)
    data = trained.open_data()
    with counting() as count:
        if isinstance(data.codec, AudioCodec | VectorCodec):
            numbers = _judge_values(trained, data, data.codec, config, progress)
        elif isinstance(data.spec, Grid):
            numbers = _judge_images(trained, data, config, progress)
        else:
            numbers = _judge_texts(trained, data, config, progress)
    every = processes.of_all((count.rows, count.samples))
    rows, samples = (sum(counted) for counted in zip(*every, strict=True))
    if rows and samples:
        numbers = [dataclasses.replace(n, evaluations=rows / samples) for n in numbers]
    if config.likelihood_rows and "log_prob" in of(trained.model):
        held_out = "test" if "test" in data.splits else "validation"
        numbers += evaluate_likelihood(
            trained.model,
            trained.model.spec,
            data,
            split=held_out,
            rows=config.likelihood_rows,
            samples=config.likelihood_samples,
            seed=config.seed,
        )
    result = Evaluation(
        run=str(trained.run.path),
        model=trained.name,
        model_hash=trained.model_hash,
        step=trained.step,
        data=data.name,
        variant=data.variant,
        numbers=tuple(numbers),
    )
    trained.run.write_json(FILE, result.to_json())
    return result


def load_evaluation(run: str | Path) -> Evaluation | None:
    """Return the saved evaluation of a run, None if it was not evaluated; raises RunError."""
    data = Run.open(run).read_json(FILE)
    return None if data is None else Evaluation.from_json(data)


def _judge_images(
    trained: Trained, data: DataSet, config: EvaluationConfig, progress: Progress | None
) -> list[Number]:
    spec = data.spec
    assert isinstance(spec, Grid)
    if config.extractor == "auto":
        extractor = default_extractor(data.name, spec)
    else:
        extractor = get_extractor(config.extractor, levels=spec.levels)
    extractor.to(trained.model.device)
    generated, real, split, speed, told = _two_sets(trained, data, config, progress)
    report = _counter(progress, "features", len(real) + len(generated))
    judge = evaluate_videos if len(spec.size) == 3 else evaluate_images
    numbers = judge(
        generated,
        real,
        extractor,
        data=data.name,
        variant=data.variant,
        split=split,
        levels=spec.levels,
        seed=config.seed,
        progress=report,
    )
    if isinstance(told, Tensor):
        model: Any = trained.model
        numbers += evaluate_pairs(
            generated,
            trained.view.invert(model.task.plain(told).cpu()),
            real,
            data,
            split=split,
            plainly=model.task.plainly,
            seed=config.seed,
        )
    if isinstance(told, list) and data.name == "shapes" and spec.shape == (3, SIDE, SIDE):
        about = Passport(
            data=data.name,
            variant=data.variant,
            split=split,
            n_real=0,
            n_generated=len(generated),
            seed=config.seed,
        )
        found = caption_agreement(generated, told)
        numbers.append(Number.of("caption_agreement", found, about, higher_is_better=True))
    return [*numbers, speed]


def _two_sets(
    trained: Trained, data: DataSet, config: EvaluationConfig, progress: Progress | None
) -> tuple[Tensor, Tensor, str, Number, list[str] | Tensor | None]:
    """Return as many generated as real native rows, the split of these, and the sampling speed.

    Where the model learned captions, it draws those of the real rows; they come last. So do the
    conditions (n, …) of the real rows where it learned to make images from pictures.
    """
    captions, told = trained.model.condition, None
    by_picture = isinstance(captions, Picture)
    split = _reference_split(data, config, held_out=by_picture)
    rows = data.splits[split]
    n = config.samples or min(_MOST_PAIRS if by_picture else _MOST_IMAGES, len(rows))
    real, condition = rows.fetch(draw_reference(torch.arange(len(rows)), n, config.seed))
    if by_picture:
        n = len(real)  # each has a target of its own
        x, y = trained.view.apply(real), trained.view.condition(condition)
        told = condition = trained.model.condition_on(x, y, Noise(config.seed, range(n)))
    elif isinstance(captions, Captions):
        if captions != data.condition:
            raise DataError(
                f"the captions of {data.name} are not those that {str(trained.run.path)!r} "
                "learned: train again"
            )
        assert condition is not None
        condition = condition[torch.arange(n) % len(condition)]
        told = [captions.text(tokens) for tokens in condition.tolist()]
    else:
        condition = None  # each class in turn
    generated, speed = _timed_samples(trained, data, n, config, progress, condition)
    return generated, real, split, speed, told


def _judge_values(
    trained: Trained,
    data: DataSet,
    codec: AudioCodec | VectorCodec,
    config: EvaluationConfig,
    progress: Progress | None,
) -> list[Number]:
    if config.extractor != "auto":
        what = f"extractor = {config.extractor!r} is for images"
        raise ConfigError(f"{what}; {data.name} is {data.spec}: leave it out")
    generated, real, split, speed, _ = _two_sets(trained, data, config, progress)
    numbers = evaluate_values(
        generated,
        real,
        codec,
        data=data.name,
        variant=data.variant,
        split=split,
        seed=config.seed,
    )
    toy = toy_of(data)
    if toy is not None and isinstance(codec, VectorCodec):
        numbers += evaluate_toy(generated, codec, toy, data, seed=config.seed)
    return [*numbers, speed]


def _counter(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda count: progress(what, count, total)


def _reference_split(data: DataSet, config: EvaluationConfig, *, held_out: bool = False) -> str:
    """Return the split to compare with; held_out: never the one that was learned from."""
    if config.split == "auto" and held_out:
        return next(split for split in ("test", "validation", "train") if split in data.splits)
    if config.split == "auto":
        enough = "test" in data.splits and len(data.splits["test"]) >= _ENOUGH_TEST
        return "test" if enough else "train"
    if config.split not in data.splits:
        known = ", ".join(data.splits)
        raise ConfigError(f"the data set {data.name!r} has no split {config.split!r}: use {known}")
    return config.split


def _timed_samples(
    trained: Trained,
    data: DataSet,
    n: int,
    config: EvaluationConfig,
    progress: Progress | None,
    condition: Tensor | None,
) -> tuple[Tensor, Number]:
    report = _counter(progress, "samples", n)
    began = time.perf_counter()
    start, end = processes.share(n, config.batch_size)
    own = trained.sample_native(
        end - start,
        seed=config.seed,
        condition=None if condition is None else condition[start:end],
        batch_size=config.batch_size,
        first=start,
        progress=report,
    )
    (seconds,) = processes.largest(time.perf_counter() - began)
    return processes.gather(own), _speed(trained, data, n, seconds, config)


def _speed(
    trained: Trained, data: DataSet, n: int, seconds: float, config: EvaluationConfig
) -> Number:
    device = trained.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    passport = Passport(
        data=data.name,
        variant=data.variant,
        split="",
        dtype="",
        n_real=0,
        n_generated=n,
        seed=config.seed,
        settings={
            "device": name,
            "threads": torch.get_num_threads(),
            "processes": processes.size(),
            "batch_size": config.batch_size,
        },
    )
    return Number(
        name="sampling_speed",
        value=n / max(seconds, 1e-9),
        higher_is_better=True,
        unit="samples/s",
        passport=passport,
    )


def _judge_texts(
    trained: Trained, data: DataSet, config: EvaluationConfig, progress: Progress | None
) -> list[Number]:
    n = config.samples or _TEXTS
    began = time.perf_counter()
    report = _counter(progress, "samples", n)
    start, end = processes.share(n, config.batch_size)
    own: Sequence[str] = []
    if end > start:
        own = trained.sample(
            end - start,
            seed=config.seed,
            batch_size=config.batch_size,
            first=start,
            progress=report,
        )
    (seconds,) = processes.largest(time.perf_counter() - began)
    texts = [text for part in processes.of_all(own) for text in part]
    numbers = [_speed(trained, data, n, seconds, config)]
    train = data.splits["train"]
    if not isinstance(train, TextSplit):
        raise DataError(f"{data.variant!r} is neither images nor a text: nothing judges it yet")
    training = data.codec.decode(train.tokens.long())
    size = 4
    if max(len(text.split()) for text in texts) < size:
        # Names, say: too short to repeat or copy a phrase.
        return numbers
    passport = Passport(
        data=data.name,
        variant=data.variant,
        split="train",
        n_real=len(training.split()),
        n_generated=n,
        seed=config.seed,
        settings={"words": size},
    )
    repeated, novel = repetition(texts, n=size), novelty(texts, [training], n=size)
    return [
        *numbers,
        Number.of("repetition", repeated, passport, higher_is_better=False),
        Number.of("novelty", novel, passport, higher_is_better=None),
    ]
