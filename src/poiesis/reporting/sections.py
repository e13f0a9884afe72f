"""What a report tells of one run, gathered from its folder, its model and its data."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poiesis import registry
from poiesis.config import save_yaml
from poiesis.data.codecs import AudioCodec, VectorCodec, VideoCodec
from poiesis.data.dataset import DataSet
from poiesis.errors import ConfigError, DataError
from poiesis.evaluation.images import default_extractor, match_levels
from poiesis.evaluation.passport import Number
from poiesis.evaluation.protocol import load_evaluation
from poiesis.files import make_wav
from poiesis.metrics.extractors import Extractor
from poiesis.metrics.features import features_of, quick_features
from poiesis.models import trained as trained_models
from poiesis.models.pictures import show
from poiesis.models.trained import Trained
from poiesis.reporting.health import health_section
from poiesis.reporting.neighbours import Copying, copying
from poiesis.reporting.plots import curve, panels
from poiesis.runs import Run
from poiesis.sampling.counting import say
from poiesis.spec import Classes, Grid, Tokens

__all__ = ["RunSection", "duration", "gather", "picture", "short"]

_NEIGHBOURS_SHOWN = 12
_TEXTS_SHOWN = 8
_SOUND_BYTES = 3_000_000
"""Of all sounds of a run together."""

NAMES = {
    "fid": "FID",
    "frame_fid": "frame FID",
    "motion_fid": "motion FID",
    "frechet_distance": "Fréchet distance",
    "kid": "KID",
    "mode_kl": "mode KL",
    "psnr": "PSNR",
    "psnr_plain": "PSNR, plain",
    "ssim": "SSIM",
    "ssim_plain": "SSIM, plain",
    "nll": "NLL",
    "bits_per_dim": "bits/dim",
}
"""What numbers are called in tables, where it is not their own name."""
GLOSSES = {
    "fid": "distance between the means and covariances of features",
    "frame_fid": "the FID of single frames; blind to their order",
    "motion_fid": "the FID of differences between neighbouring frames",
    "frechet_distance": "distance between means and covariances; blind to any other shape",
    "kid": "squared distance between feature distributions, unbiased",
    "inception_score": "how sure and how varied a classifier's answers are",
    "precision": "share of samples that lie among real ones",
    "recall": "share of real ones that lie among the samples",
    "density": "how thick with real ones the samples' places are; about 1 where equal",
    "coverage": "share of real ones with a sample next to them",
    "sampling_speed": "on this machine",
    "modes_covered": "true modes with a sample within three sigma",
    "high_quality": "share of samples within three sigma of a true mode or curve",
    "mode_kl": "divergence, in nats, of the samples' modes from all modes alike",
    "curve_distance": "mean distance of samples from the true curve",
    "psnr": "how close samples are to the very images they should be",
    "psnr_plain": "the same, of what one would make without a model",
    "ssim": "how alike their structures are",
    "ssim_plain": "the same, of what one would make without a model",
    "nll": "negative log-likelihood of held-out data",
    "bits_per_dim": "the same, per pixel and channel",
    "nll_per_token": "negative log-likelihood of held-out text",
    "perplexity": "choices per token, in effect",
    "bits_per_char": "held-out text, independent of the tokenizer",
    "repetition": "word 4-grams that occurred before in the same sample",
    "novelty": "word 4-grams that the training text lacks; neither end is good",
}


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Nearest training samples in one space, for the page."""

    space: str
    share: str
    held_out: int
    threshold: str
    count: int


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """One run, ready for the template; pictures are data URIs, curves SVG elements."""

    label: str
    model: str
    summary: str
    variant: str
    path: str
    facts: list[tuple[str, str]]
    networks: list[tuple[str, str]]
    pixelated: bool
    grid: str = ""
    film: str = ""
    """Of video: the samples, moving."""
    sounds: list[dict[str, str]] = field(default_factory=list)
    """Of audio, instead of the grid: a player of each sample (WAV), its picture and its class."""
    texts: list[str] = field(default_factory=list)
    over_time: list[tuple[int, str, str]] = field(default_factory=list)
    """(step, picture, text), one of the last two empty."""
    neighbours: list[Neighbours] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    neighbours_missing: str = ""
    curves: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    networks_health: list[str] = field(default_factory=list)
    looks: str = ""
    numbers: list[dict[str, str]] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    classes_note: str = ""
    config: str = ""
    environment: str = ""
    skipped: list[str] = field(default_factory=list)


def gather(path: str | Path, *, samples: int = 64, label: str = "") -> RunSection:
    """Open a run, draw samples (texts: at most 8) and collect what its report shows.

    Raises RunError without a trained model in `path`.
    """
    trained = trained_models.load(path)
    run = trained.run
    shown: dict[str, Any] = {}
    images = not isinstance(trained.data_spec, Tokens)
    if images:
        codec = trained.codec
        few = codec.suffix == ".png"
        native = trained.sample_native(samples if few else max(samples, codec.shown), seed=0)
        raws = [codec.decode(row) for row in native]
        behind = None
        try:
            data = trained.open_data()
        except DataError as error:
            shown["neighbours_missing"] = str(error)
        else:
            shown |= _compare_with_data(trained, data, native)
            behind = data.splits["train"]
        if isinstance(codec, AudioCodec):
            shown["sounds"] = _sounds(trained, codec, raws)
        else:
            most = codec.shown if isinstance(codec, VideoCodec) else len(raws)
            shown["grid"] = picture(show(trained.model, codec, raws[:most], behind))
        if isinstance(codec, VideoCodec):
            shown["film"] = _data_uri(codec.animate(raws[:most]), "gif")
    else:
        shown["texts"] = trained.sample(min(samples, _TEXTS_SHOWN), seed=0)
    evaluation = load_evaluation(run.path)
    charts = panels(run.metrics())
    drawn = {
        name: curve(name, kinds.get("train", ()), kinds.get("validation", ()))
        for name, kinds in charts.items()
        if kinds.keys() & {"train", "validation"}
    }
    stored = run.read_json("data.json", {})
    return RunSection(
        label=label or f"{trained.name} on {trained.data_name}",
        model=trained.name,
        summary=_summary(trained.name),
        variant=trained.variant,
        path=str(run.path),
        facts=_facts(trained, run),
        networks=[
            (name, f"{sum(p.numel() for p in network.parameters()):,}")
            for name, network in trained.model.networks().items()
            if any(True for _ in network.parameters())
        ],
        pixelated=trained.codec.suffix == ".png" and max(trained.data_spec.size) < 64,
        over_time=_over_time(run, images),
        curves=[svg for name, svg in drawn.items() if not name.endswith("_gradient")],
        gradients=[svg for name, svg in drawn.items() if name.endswith("_gradient")],
        numbers=[] if evaluation is None else [_row(number) for number in evaluation.numbers],
        config=save_yaml(run.config()),
        environment=save_yaml(run.read_json("env.json", {})),
        skipped=stored.get("skipped") or [],
        **health_section(run),
        **shown,
    )


def picture(image: Any) -> str:
    """Return a PIL picture as a data URI (PNG)."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return _data_uri(buffer.getvalue(), "png")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def _sounds(trained: Trained, codec: AudioCodec, raws: list[Any]) -> list[dict[str, str]]:
    """Return the first recordings to look at and to listen to, as many as a page holds well."""
    few = raws[: max(1, min(codec.shown, _SOUND_BYTES // (2 * codec.length)))]
    labels = trained.class_names(len(few)) or [""] * len(few)
    return [
        {
            "picture": picture(codec.preview([raw])),
            "sound": "data:audio/wav;base64,"
            + base64.b64encode(make_wav(raw, codec.rate)).decode(),
            "label": label,
        }
        for raw, label in zip(few, labels, strict=True)
    ]


def duration(seconds: float) -> str:
    """Return seconds as people say them: 8 s, 5 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(number: Number) -> tuple[str, str]:
    """Return a value and its interval, to two significant digits of the interval's half-width."""
    if number.interval is None:
        value = number.value
        return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"), ""
    low, high = number.interval
    half = (high - low) / 2
    if half <= 0:
        return f"{number.value:.3g}", f"{low:.3g} … {high:.3g}"
    places = min(8, max(0, 1 - math.floor(math.log10(half))))
    return f"{number.value:.{places}f}", f"{low:.{places}f} … {high:.{places}f}"


def _summary(name: str) -> str:
    try:
        return registry.entry(name).summary
    except ConfigError:
        return ""


def _facts(trained: Trained, run: Run) -> list[tuple[str, str]]:
    seconds = [line["train/seconds"] for line in run.metrics() if line.get("train/seconds")]
    total = sum((run.read_json("schedule.json") or {}).get("stage_steps", []))
    last = run.checkpoint().step
    steps = f"{last:,}" if last >= total else f"{last:,} of {total:,}"
    if trained.step != last:
        steps += f" (shown: the best by held-out data, {trained.step:,})"
    parameters = sum(p.numel() for p in trained.model.parameters())
    facts = [("trained for", duration(seconds[-1]))] if seconds else []
    facts += [("steps", steps), ("parameters", f"{parameters:,}")]
    counts = run.read_json("data.json", {}).get("notes", {}).get("counts")
    if counts:
        facts.append(("data", ", ".join(f"{n:,} {split}" for split, n in counts.items())))
    environment = run.read_json("env.json", {})
    device = environment.get("gpu") or environment.get("processor")
    if device:
        threads = environment.get("threads")
        facts.append(("on", f"{device}, {threads} thread{'s' if threads != 1 else ''}"))
    return facts


def _over_time(run: Run, images: bool) -> list[tuple[int, str, str]]:
    found = []
    for path in sorted((run.path / "samples").glob("step-*.png" if images else "step-*.txt")):
        step = int(path.stem.rsplit("-", 1)[1])
        if images:
            found.append((step, _data_uri(path.read_bytes(), "png"), ""))
        else:
            text = path.read_text(encoding="utf-8").split("\n\n---\n\n")[0]
            found.append((step, "", text))
    return found


def _row(number: Number) -> dict[str, str]:
    value, interval = short(number)
    passport = number.passport
    parts = [f"{passport.extractor} features" if passport.extractor else ""]
    each = say(number.evaluations, " at ", " each")
    parts.append(f"{passport.n_generated:,} samples{each}" if passport.n_generated else "")
    own = "" if passport.n_generated else each
    parts.append(f"{passport.n_real:,} real ({passport.split}){own}" if passport.n_real else "")
    full = {k: v for k, v in number.to_json()["passport"].items() if v not in ("", {})}
    return {
        "name": NAMES.get(number.name, number.name.replace("_", " ")),
        "gloss": GLOSSES.get(number.name, ""),
        "value": value,
        "interval": interval,
        "unit": number.unit,
        "better": {True: "higher", False: "lower", None: ""}[number.higher_is_better],
        "with": ", ".join(part for part in parts if part),
        "passport": save_yaml(full),
    }


def _compare_with_data(trained: Trained, data: DataSet, native: Tensor) -> dict[str, Any]:
    """Return nearest training samples of native samples, and class counts of images."""
    codec = trained.codec
    shown: dict[str, Any] = {}
    if isinstance(codec, AudioCodec | VectorCodec):
        own = "standardised columns" if isinstance(codec, VectorCodec) else "spectra"
        names = {"values": own}
        found = {"values": copying(native, data.splits, lambda x: quick_features(x, codec))}
        count = 0 if isinstance(codec, VectorCodec) else _NEIGHBOURS_SHOWN
    elif isinstance(codec, VideoCodec):
        seen = features_of(data)
        if seen is None:
            return {"neighbours_missing": f"no features of {data.spec}"}
        names = {"clips": f"clips' {seen[0]}"}
        found = {"clips": copying(native, data.splits, seen[1])}
        count = _NEIGHBOURS_SHOWN
    else:
        assert isinstance(data.spec, Grid)
        levels = data.spec.levels

        def pixels(x: Tensor) -> Tensor:
            return x.flatten(1).double() / (levels - 1)

        found = {"pixels": copying(native, data.splits, pixels)}
        extractor = default_extractor(data.name, data.spec)
        if extractor.classes:

            def features(x: Tensor) -> Tensor:
                return extractor.features(match_levels(x, levels, extractor.levels))

            found["features"] = copying(native, data.splits, features)
            shown |= _classes(trained, extractor, features(native))
        names = {"pixels": "pixels", "features": f"features ({extractor.name})"}
        count = _NEIGHBOURS_SHOWN
    order = next(iter(found.values())).distance.argsort()[:count].tolist()

    def drawn(row: Tensor) -> str:
        raw = codec.decode(row)
        drawable = isinstance(codec, AudioCodec | VideoCodec)
        return picture(codec.preview([raw]) if drawable else raw)

    def pair(row: int) -> dict[str, Any]:
        fetched = {
            k: data.splits["train"].fetch(c.index[row : row + 1])[0][0] for k, c in found.items()
        }
        return {
            "sample": drawn(native[row]),
            "nearest": [(names[k], drawn(x)) for k, x in fetched.items()],
            "close": any(bool(c.close[row]) for c in found.values()),
        }

    shown["neighbours"] = [_neighbours(names[k], c) for k, c in found.items()]
    shown["pairs"] = [pair(row) for row in order]
    return shown


def _neighbours(space: str, found: Copying) -> Neighbours:
    low, high = found.interval
    return Neighbours(
        space=space,
        share=f"{found.share:.1%} [{low:.1%}, {high:.1%}]",
        held_out=found.held_out,
        threshold=f"{found.threshold:.3g}",
        count=len(found.close),
    )


def _classes(trained: Trained, extractor: Extractor, features: Tensor) -> dict[str, Any]:
    """Return how many samples the data set's classifier takes for each class."""
    guesses = extractor.head(features).argmax(1)
    counts = torch.bincount(guesses, minlength=extractor.classes).tolist()
    condition = trained.condition if isinstance(trained.condition, Classes) else None
    names = condition.names if condition else ()
    names = names or tuple(map(str, range(extractor.classes)))
    top = max(counts)
    note = f"as the classifier {extractor.name!r} sees {len(guesses)} samples"
    by_class = condition and isinstance(trained.model.condition, Classes)
    asked = trained.model.default_condition(0, len(guesses)) if by_class else None
    if asked is not None:
        agree = float((asked.cpu() == guesses).double().mean())
        note += f"; {agree:.0%} are of the class that was asked for"
    rows = zip(names, counts, strict=True)
    return {
        "classes": [{"name": n, "count": c, "width": round(100 * c / top)} for n, c in rows],
        "classes_note": note,
    }
