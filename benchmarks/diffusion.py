"""Train diffusion models on real data under fixed budgets and score them: table, pictures.

python benchmarks/diffusion.py                  every row that is not finished yet, then the table
python benchmarks/diffusion.py flow-mnist       these rows only
python benchmarks/diffusion.py --list           what the rows are, and which are finished
python benchmarks/diffusion.py --pace 15s       steps that fit the minutes, for --steps-from

FID, precision and recall are those of 2,000 samples, classes in turn, against as many test images,
in the features of the data set's own classifier; "@20" is after 20 evaluations of the network a
sample, by the better of two samplers, the default and its stochastic twin (both are in the record).
How often the class asked for is the one seen is judged by the same classifier, at several strengths
of guidance. Text to image: benchmarks/text_to_image.py.

The budgets: see benchmarks/budget.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from budget import (
    SHOWN,
    Bench,
    Records,
    Row,
    Values,
    command,
    measured,
    record,
    rows_table,
    say,
    sheet,
    train,
)
from gans import FLOWERS, agreement
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.trained import Trained, build, load
from quality import score_images

SAMPLES = 2000
GUIDANCE = (1.0, 2.0, 3.0, 5.0)
TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10-jpeg": "CIFAR-10 (JPEG)"}
AGREEMENT = {"mnist": 0.99, "fashion-mnist": 0.93}
"""Share of samples at guidance 3 whose class is seen, to reach."""
JUDGED = ("fid", "precision", "recall")
SAMPLERS = {"ode": "dpm-solver++", "sde": "dpm-solver++sde"}
RUNS = Path("runs/diffusion")


def better_than_ddpm(data: str) -> Any:
    """Return a gate: FID and recall @20 better than ddpm's, FID no worse than its @200."""

    def reached(own: Values, others: dict[str, Values]) -> bool | None:
        ddpm = others.get(f"ddpm-{data}")
        if ddpm is None:
            return None
        better = own["fid@20"] < ddpm["fid@20"] and own["recall@20"] > ddpm["recall@20"]
        follows = own.get("agreement@3", 1) >= AGREEMENT.get(data, 0)
        return better and own["fid@20"] <= ddpm["fid@200"] and follows

    return reached


ROWS = [
    *(
        row
        for data in TITLES
        for row in (
            Row(
                name=f"ddpm-{data}",
                what=f"`ddpm`, {TITLES[data]}",
                model="ddpm",
                data=data,
                minutes=10,
                score="20, 200",
            ),
            Row(
                name=f"flow-{data}",
                what=f"`flow-matching`, {TITLES[data]}",
                model="flow-matching",
                data=data,
                minutes=10,
                score="20, guidance" if data in AGREEMENT else "20",
                gate="FID, recall @20 better than ddpm's; FID no worse than its @200"
                + (f"; class ≥ {AGREEMENT[data]:.0%} at 3" if data in AGREEMENT else ""),
                reached=better_than_ddpm(data),
            ),
        )
    ),
    Row(
        name="consistency-mnist",
        what="`consistency`, MNIST, distilled from the flow",
        model="consistency",
        data="mnist",
        changes={"teacher": str(RUNS / "flow-mnist")},
        minutes=10,
        score="consistency",
        gate="FID @2 ≤ 1.5x the teacher's @35",
        reached=lambda own, others: own["fid@2"] <= 1.5 * own["teacher fid@35"],
    ),
    Row(
        name="latent-flowers",
        what="`latent-diffusion`, flowers of 64 px",
        model="latent-diffusion",
        data=FLOWERS,
        minutes=30,
        score="latent",
        gate="samples ≥ 6x as fast as in pixels",
        reached=lambda own, others: own["speed"] / own["speed in pixels"] >= 6,
    ),
]


def draw(
    trained: Trained, row: Row, options: dict[str, Any], n: int = SAMPLES
) -> tuple[Tensor, float]:
    """Return uint8 samples and their number a second."""
    chosen = trained.options(**options)
    began = time.monotonic()
    pixels = trained.sample_native(n, seed=row.seed, options=chosen, batch_size=100)
    return pixels, n / (time.monotonic() - began)


def score(row: Row, trained: Trained) -> tuple[Values, Tensor]:
    """Return a row's numbers, and samples to show."""
    values: Values = {}

    def judge(tag: str, pixels: Tensor) -> None:
        split = "train" if row.data == FLOWERS else "test"
        found = score_images(row, pixels, split)
        values.update({f"{key}{tag}": found[key] for key in JUDGED})

    if row.score == "consistency":
        pixels, values["speed"] = draw(trained, row, {"steps": 2})
        judge("@2", pixels)
        judge("@1", draw(trained, row, {"steps": 1})[0])
        teacher = load(RUNS / "flow-mnist")
        many, values["teacher speed"] = draw(teacher, row, {"sampler": "heun", "steps": 18})
        judge(" of teacher", many)
        values["teacher fid@35"] = values.pop("fid of teacher")
        return values, pixels
    if row.score == "latent":
        pixels, values["speed"] = draw(trained, row, {})
        judge("", pixels)
        spec = trained.data_spec
        net = build(FlowMatching, FlowMatching.default(spec), spec, trained.condition)
        began = time.monotonic()
        net.sample(100, batch_size=100)  # its speed does not depend on its weights
        values["speed in pixels"] = 100 / (time.monotonic() - began)
        return values, pixels
    for steps in (20, 200) if "200" in row.score else (20,):
        drawn = {}
        for tag, sampler in SAMPLERS.items():
            options = {"sampler": sampler, "steps": steps}
            drawn[tag], speed = draw(trained, row, options)
            values.setdefault("speed", speed)
            judge(f"@{steps}, {tag}", drawn[tag])
        better = min(SAMPLERS, key=lambda tag: values[f"fid@{steps}, {tag}"])
        values.update({f"{key}@{steps}": values[f"{key}@{steps}, {better}"] for key in JUDGED})
        if steps == 20:
            pixels, best = drawn[better], better
    if "guidance" in row.score:
        asked = trained.model.default_condition(0, SAMPLES)
        assert asked is not None
        for strength in GUIDANCE:
            guided = pixels
            if strength != 1:
                options = {"sampler": SAMPLERS[best], "steps": 20, "guidance": strength}
                guided = draw(trained, row, options)[0]
                judge(f", guidance {strength:g}", guided)
            values[f"agreement@{strength:g}"] = agreement(row.data, guided, asked)
    return values, pixels


def run_row(row: Row, out: Path, folder: Path, scale: float, steps: int | None) -> dict[str, Any]:
    """Train and score one row; write its picture; return its record."""
    began = time.monotonic()
    path, done, seconds = train(row, folder, scale, steps)
    say(f"{row.name}: {done} steps in {seconds:.0f} s; scoring")
    trained = load(path)
    values, pixels = score(row, trained)
    shown = [trained.codec.decode(image) for image in pixels[:SHOWN]]
    sheet(shown).save(out / f"diffusion-{row.name}.png", optimize=True)
    if "guidance" in row.score:
        plot(values, out / f"diffusion-{row.name}-guidance.png")
    return record(
        row,
        values,
        scale=scale,
        steps=done,
        given=steps is not None,
        seconds=seconds,
        all_seconds=round(time.monotonic() - began, 1),
        config=trained.config["model"],
        parameters=sum(p.numel() for p in trained.model.parameters()),
    )


def plot(values: Values, path: Path) -> None:
    """Draw agreement, precision and recall against the strength of guidance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name in ("agreement", "precision", "recall"):
        if name == "agreement":
            line = [values[f"agreement@{s:g}"] for s in GUIDANCE]
        else:
            tags = ["@20", *(f", guidance {s:g}" for s in GUIDANCE[1:])]
            line = [values[f"{name}{tag}"] for tag in tags]
        axes.plot(GUIDANCE, line, marker="o", label=name)
    axes.set_xlabel("guidance")
    axes.set_ylim(0, 1.02)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def describe(row: Row, value: Values) -> str:
    """Return a row's result in words."""
    if row.score == "consistency":
        return (
            f"FID **{value['fid@2']:.2f}** @2, {value['fid@1']:.2f} @1; teacher "
            f"{value['teacher fid@35']:.2f} @35; {value['speed']:.0f} images/s, teacher "
            f"{value['teacher speed']:.0f}"
        )
    if row.score == "latent":
        times = value["speed"] / value["speed in pixels"]
        return (
            f"**{times:.1f}x** as fast: {value['speed']:.1f} images/s, in pixels "
            f"{value['speed in pixels']:.2f}; FID {value['fid']:.2f}"
        )
    words = "; ".join(
        f"@{steps} FID **{value[f'fid@{steps}']:.2f}**, precision "
        f"{value[f'precision@{steps}']:.2f}, recall {value[f'recall@{steps}']:.2f} (default "
        f"{value[f'fid@{steps}, ode']:.2f}, stochastic {value[f'fid@{steps}, sde']:.2f})"
        for steps in (20, 200)
        if f"fid@{steps}" in value
    )
    if "agreement@3" in value:
        seen = ", ".join(f"{100 * value[f'agreement@{s:g}']:.1f}% ({s:g})" for s in GUIDANCE)
        words += f"; class seen, by guidance: {seen}"
    return words


def table(records: Records) -> str:
    """Return the Markdown page."""
    lines = [
        "# Diffusion and flow matching on real data",
        "",
        "Made by `python benchmarks/diffusion.py`, whose head says what the numbers are; every",
        "line's full record is in `diffusion.jsonl`.",
        *rows_table("diffusion", ROWS, records, describe),
    ]
    for row in ROWS:
        if row.name in records:
            lines += ["", f"{row.what}: the first {SHOWN} samples, in order."]
            lines += ["", f"![{row.name}](diffusion-{row.name}.png)"]
            if "guidance" in row.score:
                lines += ["", f"![guidance](diffusion-{row.name}-guidance.png)"]
    if records:
        lines += ["", measured(records)]
    return "\n".join([*lines, ""])


BENCH = Bench(stem="diffusion", rows=ROWS, run=run_row, describe=describe, table=table)

if __name__ == "__main__":
    raise SystemExit(command(BENCH, __doc__ or ""))
