"""The verb `detect`: scores, calibrated decisions and, where the truth is known, how good they are.

Nothing here sees a label of an anomaly before the decisions are made: scores are fitted to
training images, their threshold comes from held-out normal ones, and which score decides is fixed
beforehand (`scores.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poiesis.apply.detect import heatmaps
from poiesis.apply.detect.baselines import BASELINES, baseline_scores, pixel_rows
from poiesis.apply.detect.observe import Observations, observe
from poiesis.apply.detect.report import as_csv, as_json, as_markdown
from poiesis.apply.detect.scores import fit_scores
from poiesis.apply.inputs import Inputs, Progress, open_inputs
from poiesis.config import check
from poiesis.data.dataset import Split
from poiesis.errors import CapabilityError, ConfigError, DataError, RunError, suggest
from poiesis.metrics.detection import (
    auroc,
    average_precision,
    conformal_p_values,
    fpr_at_tpr,
    threshold,
)
from poiesis.metrics.extractors import get_extractor
from poiesis.models import capabilities
from poiesis.models.trained import Trained, load
from poiesis.runs import dump_json, write_atomic
from poiesis.spec import Grid

__all__ = ["Detection", "detect"]

Values = NDArray[np.float64]

_SHOWN = 10
_SCALE_ROWS = 256


@dataclass(frozen=True)
class Detection:
    """Scores of each input, decisions by one of them, and numbers where the truth is known.

    scores and p_values: score name → (n,). flagged and anomalous: bool (n,). numbers: score or
    baseline → AUROC and others.
    """

    inputs: Inputs
    score: str
    members: tuple[str, ...]
    scores: dict[str, Values]
    p_values: dict[str, Values]
    fpr: float
    threshold: float
    flagged: NDArray[np.bool_]
    anomalous: NDArray[np.bool_] | None
    normal: tuple[str, ...]
    calibrated_on: int
    fitted_on: int
    about: dict[str, Any]
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return as_json(self)


def detect(
    run: str | Path,
    source: str = "",
    *,
    out: str | Path | None = None,
    fpr: float = 0.05,
    score: str = "auto",
    normal: Sequence[str] = (),
    baselines: bool = True,
    maps: bool = False,
    split: str = "test",
    limit: int | None = None,
    fit_rows: int = 10_000,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Detection:
    """Say which images are unlike those that a model was trained on.

    source, split, limit: as in `open_inputs`; of a data set all classes. fpr: share of normal
    images that may be flagged, for which the threshold is calibrated on the run's validation part.
    score: the name of the one that decides; auto is the combined one, or the only one. normal:
    classes of the input that are normal (default: those of the run); where both kinds are known
    there, numbers tell them apart. baselines: compare with scikit-learn's detectors then. fit_rows:
    at most so many training images to fit scores and baselines to. out: a folder for scores.csv,
    report.md, report.json and heatmaps.png, with maps also a map per image; nothing is written
    before all is done. Raises DataError for too few held-out images, CapabilityError for a model
    of other data, ConfigError for an unknown score.
    """
    check("fpr", fpr, low=0, high=0.5, open_low=True)
    check("fit_rows", fit_rows, low=10)
    check("batch_size", batch_size, low=1)
    if maps and out is None:
        raise ConfigError("maps are files: say where to with --out FOLDER")
    trained = load(run, checkpoint=checkpoint, device=device)
    _suits(trained)
    if maps:
        capabilities.require(trained.model, "reconstruct")
    data = trained.open_data()
    if "validation" not in data.splits:
        raise DataError(
            "the run held no normal data out to calibrate on; train it with --data.validation 0.1"
        )
    held_out = data.splits["validation"]
    threshold(range(len(held_out)), fpr)  # refuse too few before the work begins
    inputs = open_inputs(trained, source, split=split, limit=limit, all_classes=True)
    own = data.condition.names if data.condition else _chosen(trained)
    anomalous = _anomalous(inputs, tuple(normal), own)
    train = data.splits["train"]
    chosen = torch.linspace(0, len(train) - 1, min(fit_rows, len(train))).round().long()

    sets = {
        "training images": (_rows(train, chosen), len(chosen)),
        "held-out images": (_rows(held_out, torch.arange(len(held_out))), len(held_out)),
        "images": (inputs.fetch, len(inputs)),
    }
    seen = [
        _observe(trained, what, rows, batch_size, seed, progress) for what, rows in sets.items()
    ]
    fitted = fit_scores(seen[0])
    calibration, found = fitted(seen[1]), fitted(seen[2])
    name = _pick(score, list(found))
    above = threshold(calibration[name], fpr)
    numbers: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    if anomalous is not None:
        numbers = {key: _numbers(found[key], calibration[key], anomalous, fpr) for key in found}
    own_numbers = len(numbers)
    if baselines and anomalous is not None and not anomalous.all():
        code = seen[0].get("code")
        components = None if code is None else code.shape[1]
        levels = trained.data_spec.levels
        pixels = [_pixels(rows, levels, batch_size) for rows in sets.values()]
        for key, known, values in baseline_scores(*pixels, components=components, seed=seed):
            if known is None or values is None:
                notes.append(f"{key} left out: pip install pyod")
            else:
                numbers[key] = _numbers(values, known, anomalous, fpr)
            if progress is not None:
                progress("baselines", 1, len(BASELINES))
    detection = Detection(
        inputs=inputs,
        score=name,
        members=fitted.members,
        scores=found,
        p_values={key: conformal_p_values(found[key], calibration[key]) for key in found},
        fpr=fpr,
        threshold=above,
        flagged=found[name] > above,
        anomalous=anomalous,
        normal=tuple(normal) or own,
        calibrated_on=len(held_out),
        fitted_on=len(chosen),
        about={
            "model": trained.name,
            "run": str(trained.run.path),
            "data": trained.variant,
            "step": trained.step,
            "model_hash": trained.model_hash,
        },
        numbers=numbers,
        baselines=tuple(list(numbers)[own_numbers:]),
        notes=notes,
    )
    if out is not None:
        rows = sets["held-out images"], sets["images"]
        detection.paths.extend(_write(trained, detection, *rows, Path(out), maps, batch_size))
    return detection


def _suits(trained: Trained) -> None:
    if not isinstance(trained.data_spec, Grid) or len(trained.data_spec.size) > 2:
        raise CapabilityError(f"this {trained.name} learned {trained.data_spec}, not images")
    if trained.model.condition is not None:
        raise CapabilityError(
            f"this {trained.name} asks for the class of each image, and an anomaly has none; "
            "train it with --model.conditional false"
        )


def _chosen(trained: Trained) -> tuple[str, ...]:
    """Return the run's one class, if it was chosen from a set of several."""
    return tuple(trained.config["data"].get("classes") or ())


def _anomalous(
    inputs: Inputs, normal: tuple[str, ...], own: tuple[str, ...]
) -> NDArray[np.bool_] | None:
    """Return which inputs are anomalies by their class, or None where that is not known."""
    if inputs.classes is None:
        if normal:
            raise DataError(
                f"{inputs.where} has no classes, so none can be normal; lay the files "
                "out in folders called by their class"
            )
        return None
    there = set(inputs.classes)
    for name in normal:
        if name not in there:
            hint = suggest(name, there) or f"; it has: {', '.join(sorted(there))}"
            raise DataError(f"{inputs.where} has no class {name!r}{hint}")
    expected = normal or own
    if not there & set(expected):
        return None  # folders called by something else, or another data set
    return np.array([name not in expected for name in inputs.classes])


Rows = tuple[Callable[[int, int], Tensor], int]
"""fetch(start, end) of native images, and how many there are."""


def _rows(split: Split, positions: Tensor) -> Callable[[int, int], Tensor]:
    return lambda start, end: split.fetch(positions[start:end])[0]


def _observe(
    trained: Trained, what: str, rows: Rows, batch_size: int, seed: int, progress: Progress | None
) -> Observations:
    fetch, n = rows
    return observe(
        trained,
        get_extractor("random", levels=trained.data_spec.levels),
        fetch,
        n,
        batch_size=batch_size,
        seed=seed,
        progress=None if progress is None else lambda count: progress(what, count, n),
    )


def _pixels(rows: Rows, levels: int, batch_size: int) -> NDArray[np.float32]:
    fetch, n = rows
    starts = range(0, n, batch_size)
    parts = [pixel_rows(fetch(at, min(n, at + batch_size)), levels) for at in starts]
    return np.concatenate(parts)


def _pick(score: str, there: list[str]) -> str:
    if score == "auto":
        return there[0]
    if score not in there:
        hint = suggest(score, there) or f"; it has: {', '.join(there)}"
        raise ConfigError(f"score = {score!r} is none that this model gives{hint}")
    return score


def _numbers(
    values: Values, calibration: Values, anomalous: NDArray[np.bool_], fpr: float
) -> dict[str, float]:
    """Return how well a score tells the kinds apart, and what its own threshold flags of each."""
    normal, strange = values[~anomalous], values[anomalous]
    above = threshold(calibration, fpr)
    found: dict[str, float] = {}
    if len(strange):
        found["auroc"] = auroc(normal, strange).value
        found["average_precision"] = average_precision(normal, strange)
        found["fpr_at_95_tpr"] = fpr_at_tpr(normal, strange)
        found["flagged_anomalies"] = float((strange > above).mean())
    found["flagged_normal"] = float((normal > above).mean())
    return found


# -- files ----------------------------------------------------------------------------------------


def _write(
    trained: Trained,
    found: Detection,
    held_out: Rows,
    inputs: Rows,
    out: Path,
    maps: bool,
    batch_size: int,
) -> list[Path]:
    """Write the table, the reports and the heat maps; the table, which is the result, last."""
    files: list[tuple[Path, bytes | str]] = []
    if "reconstruct" in capabilities.of(trained.model):
        fetch, n = held_out
        errors = heatmaps.error_maps(trained, fetch(0, min(n, _SCALE_ROWS)))[1]
        scale = heatmaps.full_scale(errors)
        files.append((out / "heatmaps.png", _sheet(trained, found, inputs, scale)))
        if maps:
            paths = [
                out / "maps" / PurePosixPath(n).with_suffix(".png") for n in found.inputs.names
            ]
            if len(set(paths)) < len(paths):
                where = found.inputs.where
                raise DataError(f"{where}: two files differ in their ending alone; rename one")
            each = heatmaps.each(trained, *inputs, scale, batch_size=batch_size)
            for path, picture in zip(paths, each, strict=True):
                _make(path.parent)
                write_atomic(path, heatmaps.png(picture))
    files.append((out / "report.json", dump_json(found.to_json()) + "\n"))
    files.append((out / "report.md", as_markdown(found)))
    files.append((out / "scores.csv", as_csv(found)))
    _make(out)
    for path, content in files:
        write_atomic(path, content)
    return [path for path, _ in files]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"can't write to {str(folder)!r}: {error.strerror or error}") from None


def _sheet(trained: Trained, found: Detection, inputs: Rows, scale: float) -> bytes:
    """Return the heat maps of the most and the least anomalous images."""
    order = np.argsort(-found.scores[found.score], kind="stable")
    few = min(_SHOWN // 2, len(order) // 2)
    top = order[: _SHOWN - few]
    chosen = [*top.tolist(), *order[len(order) - few :].tolist()]
    if len(order) <= _SHOWN:
        chosen = order.tolist()
    p_values = found.p_values[found.score]
    titles = []
    for row in chosen:
        label = (
            found.inputs.names[row] if found.inputs.classes is None else found.inputs.classes[row]
        )
        titles.append(f"{label[-14:]}\np {p_values[row]:.2g}")
    fetch, _ = inputs
    native = torch.cat([fetch(row, row + 1) for row in chosen])
    shown = "all" if len(order) <= _SHOWN else "the most and the least anomalous"
    heading = f"{shown}, by {found.score}; p: share of normal images as strange as that"
    gap = len(top) if len(order) > _SHOWN else 0
    return heatmaps.sheet(trained, native, titles, scale, gap=gap, heading=heading)
