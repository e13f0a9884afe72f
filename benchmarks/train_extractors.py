"""Train the small classifiers whose features judge samples, and score known faults with them.

python benchmarks/train_extractors.py mnist            trains, writes weights/mnist.safetensors
python benchmarks/train_extractors.py mnist --ladder   prints docs/extractors.md's table of it
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from poiesis.data import open_data
from poiesis.metrics import density_coverage, fid, inception_score, kid, precision_recall
from poiesis.metrics.extractors import Extractor, get_extractor
from poiesis.metrics.extractors.classifier import FORMAT, SmallClassifier

WEIGHTS = Path(__file__).parents[1] / "src/poiesis/metrics/weights"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one classifier is built and trained."""

    stride: int = 2
    widths: tuple[int, ...] = (32, 64, 128)
    pool: int = 2
    dims: int = 64
    epochs: int = 3
    batch_size: int = 128
    lr: float = 4e-3
    shift: int = 2
    flip: bool = False


RECIPES = {
    "digits": Recipe(stride=1, widths=(32, 64), epochs=40, batch_size=64, shift=1),
    "mnist": Recipe(widths=(24, 48, 96)),
    "fashion-mnist": Recipe(widths=(24, 48, 96), flip=True),
    "cifar10-jpeg": Recipe(dims=128, epochs=6, flip=True),
}


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (n, c, h, w) with a Gaussian of `sigma` pixels; edges are replicated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    n, c, h, w = x.shape
    flat = F.pad(x.reshape(n * c, 1, h, w), (radius,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return flat.reshape(n, c, h, w)


def augment(x: Tensor, recipe: Recipe, draws: torch.Generator) -> Tensor:
    """Shift, flip, and mildly blur and add noise to a batch in [0, 1], a third of it each."""

    def uniform() -> float:
        return float(torch.rand((), generator=draws))

    n, _, h, w = x.shape
    if recipe.flip:
        x = torch.where(torch.rand(n, 1, 1, 1, generator=draws) < 0.5, x.flip(3), x)
    s = recipe.shift
    top, left = torch.randint(2 * s + 1, (2,), generator=draws).tolist()
    x = F.pad(x, (s, s, s, s), mode="replicate")[:, :, top : top + h, left : left + w].clone()
    third = n // 3
    x[:third] = blur(x[:third], 0.3 + 0.5 * uniform())
    noise = torch.randn(x[third : 2 * third].shape, generator=draws)
    x[third : 2 * third] += noise * 0.1 * torch.rand(third, 1, 1, 1, generator=draws)
    return x.clamp(0, 1)


@torch.no_grad()
def scale_features(net: SmallClassifier, x: Tensor) -> None:
    """Scale the features to a mean square of 1 on real images, and the head to undo it.

    ReLU allows it, and it gives distances of all classifiers one unit.
    """
    rms = torch.cat([net.features(b) for b in x.split(500)]).square().mean().sqrt()
    net.dense.weight /= rms
    net.dense.bias /= rms
    net.head.weight *= rms


def train(name: str, recipe: Recipe, seed: int) -> None:
    data = open_data(name)
    levels = data.spec.levels
    x, y = (data.splits["train"].x.float() / (levels - 1)), data.splits["train"].y
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    about = {
        "name": name,
        "data": data.variant,
        "shape": list(x.shape[1:]),
        "levels": levels,
        "classes": data.condition.count,
        **{k: getattr(recipe, k) for k in ("stride", "widths", "pool", "dims")},
    }
    net = SmallClassifier(
        channels=x.shape[1],
        stride=recipe.stride,
        widths=recipe.widths,
        pool=recipe.pool,
        dims=recipe.dims,
        classes=data.condition.count,
    ).to(memory_format=torch.channels_last)
    steps = len(x) // recipe.batch_size * recipe.epochs
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps, pct_start=0.2
    )
    began = time.perf_counter()
    order = torch.cat([torch.randperm(len(x), generator=draws) for _ in range(recipe.epochs + 1)])
    for step in track(range(steps), description=name):
        rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        batch = augment(x[rows], recipe, draws) * 2 - 1
        loss = F.cross_entropy(net(batch.to(memory_format=torch.channels_last)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - began
    net.eval()
    scale_features(net, x[:5000] * 2 - 1)
    state = {
        k: (v.half() if "weight" in k and v.ndim > 1 else v).contiguous()
        for k, v in net.state_dict().items()
    }
    net.load_state_dict(state)  # judge what is stored
    with torch.inference_mode():
        test = data.splits["test"]
        logits = torch.cat([net(b.float() * 2 / (levels - 1) - 1) for b in test.x.split(500)])
    about["test_accuracy"] = float((logits.argmax(1) == test.y).float().mean())
    path = WEIGHTS / f"{name}.safetensors"
    save_file(state, path, metadata={"format": FORMAT, "about": json.dumps(about)})
    print(
        f"{name}: test accuracy {about['test_accuracy']:.4f} after {seconds:.0f} s, {steps} steps"
    )
    print(f"{path.stat().st_size} bytes, {sum(p.numel() for p in net.parameters())} parameters")


def faults(x: Tensor, y: Tensor, n: int, levels: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, n images with a known fault) made from real images x and their classes y."""
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draws)
    x, y = x[order], y[order]
    base = x[:n].float() / (levels - 1)

    def stored(images: Tensor) -> Tensor:
        return (images.clamp(0, 1) * (levels - 1)).round().to(torch.uint8)

    yield "real", x[:n]
    noise = torch.randn(base.shape, generator=draws)
    for sigma in (0.05, 0.1, 0.2, 0.4):
        yield f"noise σ = {sigma:g}", stored(base + sigma * noise)
    for sigma in (0.5, 1.0, 1.5, 2.0):
        yield f"blur σ = {sigma:g} px", stored(blur(base, sigma))
    for distinct in (n // 4, n // 20, n // 100):
        yield f"{distinct} images, copied", x[:distinct].repeat(n // distinct + 1, 1, 1, 1)[:n]
    for missing in (1, 3, 5, 9):
        kept = x[y >= missing]
        yield f"{missing} of 10 classes missing", kept.repeat(n // len(kept) + 1, 1, 1, 1)[:n]


def score(name: str, extractor: Extractor, seed: int) -> None:
    data = open_data(name)
    train = data.splits["train"]
    held_out = torch.cat([data.splits["validation"].x, data.splits["test"].x])
    n = min(2000, len(held_out))
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))
    real = extractor.features(held_out[order[:n]])
    print(f"\n`{name}` by `{extractor.name}` ({extractor.sha256[:12]}), n = {n} on each side\n")
    print("| generated set | FID | KID·1000 | IS | precision | recall | density | coverage |")
    print("|---|---|---|---|---|---|---|---|")
    for fault, images in faults(train.x, train.y, n, data.spec.levels, seed):
        fake = extractor.features(images)
        cells = [f"{fid(real, fake).value:.3g}", f"{1000 * kid(real, fake).value:.3g}"]
        has_classes = extractor.classes > 0
        cells.append(f"{inception_score(extractor.head(fake)).value:.2f}" if has_classes else "–")
        pairs = (*precision_recall(real, fake), *density_coverage(real, fake))
        cells += [f"{estimate.value:.3f}" for estimate in pairs]
        print(f"| {fault} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--ladder", action="store_true", help="score faults instead of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.ladder:
        levels = open_data(arguments.name).spec.levels
        for extractor in (arguments.name, "random"):
            score(arguments.name, get_extractor(extractor, levels=levels), arguments.seed)
    else:
        train(arguments.name, RECIPES[arguments.name], arguments.seed)


if __name__ == "__main__":
    main()
