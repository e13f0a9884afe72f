"""What a detection leaves behind: a table of scores, a report as Markdown and as JSON."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from poiesis.apply.detect.baselines import BASELINES, SIDE
from poiesis.apply.detect.scores import COMBINED, SCORES

if TYPE_CHECKING:
    from poiesis.apply.detect.verb import Detection

__all__ = ["as_csv", "as_json", "as_markdown"]

_NUMBERS = (
    ("auroc", "AUROC"),
    ("average_precision", "average precision"),
    ("fpr_at_95_tpr", "FPR at 95% TPR"),
    ("flagged_anomalies", "anomalies flagged"),
    ("flagged_normal", "normal flagged"),
)


def as_csv(found: Detection) -> str:
    """Return one line per image: name, class if known, score, p-value, decision, all scores."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    classes = found.inputs.classes
    others = [name for name in found.scores if name != found.score]
    label = [] if classes is None else ["class"]
    table.writerow(["name", *label, "score", "p_value", "decision", *others])
    p_values = found.p_values[found.score]
    for row, name in enumerate(found.inputs.names):
        known = [] if classes is None else [classes[row]]
        decision = "anomaly" if found.flagged[row] else "normal"
        values = [f"{found.scores[other][row]:.7g}" for other in others]
        own = f"{found.scores[found.score][row]:.7g}"
        table.writerow([name, *known, own, f"{p_values[row]:.6g}", decision, *values])
    return text.getvalue()


def as_json(found: Detection) -> dict[str, Any]:
    """Return the report as plain values."""
    known = found.anomalous
    return {
        **found.about,
        "input": found.inputs.where,
        "samples": len(found.inputs),
        "score": found.score,
        "members": list(found.members),
        "fpr": found.fpr,
        "threshold": found.threshold,
        "calibration_samples": found.calibrated_on,
        "fitted_on": found.fitted_on,
        "flagged": int(found.flagged.sum()),
        "normal_classes": list(found.normal),
        "anomalies": None if known is None else int(known.sum()),
        "scores": {name: found.numbers.get(name, {}) for name in found.scores},
        "baselines": {name: found.numbers[name] for name in found.baselines},
        "notes": found.notes,
    }


def as_markdown(found: Detection) -> str:
    """Return the report as a Markdown page."""
    about, n = found.about, len(found.inputs)
    what = {score.name: score.what for score in SCORES}
    what[COMBINED] = "sum of standardised logarithms of " + ", ".join(found.members)
    what |= {name: text for name, (text, _) in BASELINES.items()}
    lines = [
        "# Anomalies",
        "",
        f"{n:,} samples ({found.inputs.where}) judged by {about['model']}, trained on "
        f"{about['data']} ({about['run']}, step {about['step']}).",
        "",
        f"- Score: **{found.score}**; above {found.threshold:.6g} is an anomaly.",
        f"- The threshold comes from {found.calibrated_on:,} held-out normal samples: at most "
        f"{found.fpr:.4g} of normal ones are flagged, in the mean over such sets.",
        f"- Scores and baselines were fitted to {found.fitted_on:,} training samples.",
        f"- Flagged: {int(found.flagged.sum()):,} of {n:,}.",
    ]
    if found.numbers:
        assert found.anomalous is not None
        lines += [
            f"- Known: {int(found.anomalous.sum()):,} anomalies, "
            f"{int((~found.anomalous).sum()):,} normal ({', '.join(found.normal)}).",
            "",
            "Shares flagged are at the threshold of each row's own score.",
            "",
            "| | " + " | ".join(title for _, title in _NUMBERS) + " | what it is |",
            "|---|" + "---|" * (len(_NUMBERS) + 1),
        ]
        for name, numbers in found.numbers.items():
            values = [_cell(numbers.get(key)) for key, _ in _NUMBERS]
            title = f"**{name}**" if name == found.score else name
            title += " (baseline)" if name in found.baselines else ""
            lines.append(f"| {title} | {' | '.join(values)} | {what[name]} |")
        if found.baselines:
            lines += ["", f"Baselines see the pixels, averaged down to at most {SIDE} px a side."]
    else:
        lines += ["", "| score | what it is |", "|---|---|"]
        lines += [f"| {name} | {what[name]} |" for name in found.scores]
    lines += ["", *(f"- {note}" for note in found.notes)] if found.notes else []
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
