"""What a trained model is asked about each image: one pass, after which scores need no model.

Shape letters: n images, f features, z values of a code.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.apply.inputs import flat_code
from poiesis.metrics.extractors import Extractor
from poiesis.models import capabilities
from poiesis.models.trained import Trained
from poiesis.rng import generator

__all__ = ["Observations", "difference", "observe", "webp_bits"]

Observations = dict[str, Tensor]
"""Name → one row per image; what a model can't say is missing.

pixels (n,): mean squared error of the reconstruction, black to white being 1. features and
features_error (n, f): the extractor's of the image, and by how much those of its reconstruction
differ. code and code_error (n, z): likewise of the model's encoder. nats (n,): -log p. excess_bits
(n,): bits by the model, less those of a lossless WebP. fake (n,): minus the discriminator's logit.
"""

_WIDEST_CODE = 512
"""Values per code; a wider one is projected at random, or its covariance could not be estimated."""


@torch.no_grad()
def observe(
    trained: Trained,
    extractor: Extractor,
    fetch: Callable[[int, int], Tensor],
    n: int,
    *,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Observations:
    """Return the observations of native images fetch(start, end), (b, *spec.shape), 0…n."""
    model: Any = trained.model
    can = set(capabilities.of(model))
    found: dict[str, list[Tensor]] = {}
    for start in range(0, n, batch_size):
        end = min(n, start + batch_size)
        native = fetch(start, end)
        x = trained.view.apply(native).to(model.device)
        here: Observations = {"features": extractor.features(native)}
        code = _code(model, x) if "encode" in can else None
        if code is not None:
            here["code"] = code
        if "reconstruct" in can:
            output = model.reconstruct(x)
            back = trained.view.invert(output.cpu())
            here["pixels"] = difference(trained, native, back).square().flatten(1).mean(1)
            here["features_error"] = here["features"] - extractor.features(back)
            if code is not None:
                here["code_error"] = code - _code(model, output)
        if "log_prob" in can:
            log_prob = model.log_prob(x, seed=seed + start)
            here["nats"] = -log_prob.nats
            if log_prob.measure == "discrete":
                bits = torch.tensor([webp_bits(row) for row in native], dtype=torch.float64)
                here["excess_bits"] = -log_prob.nats.cpu() / math.log(2) - bits
        if "discriminate" in can:
            here["fake"] = -model.discriminate(x).float()
        for name, rows in here.items():
            found.setdefault(name, []).append(rows.double().cpu())
        if progress is not None:
            progress(end - start)
    return {name: torch.cat(rows) for name, rows in found.items()}


def difference(trained: Trained, native: Tensor, back: Tensor) -> Tensor:
    """Return an image less its reconstruction, both native; black to white is 1."""
    return (native.float() - back.float()) / (trained.data_spec.levels - 1)


def _code(model: Any, x: Tensor) -> Tensor:
    code = flat_code(model.encode(x))
    width = code.shape[1]
    if width <= _WIDEST_CODE:
        return code
    # Distances are kept up to some percent (Johnson & Lindenstrauss 1984).
    random = torch.randn(width, _WIDEST_CODE, generator=generator("project codes", width))
    return code @ (random / _WIDEST_CODE**0.5).to(code)


def webp_bits(row: Tensor) -> int:
    """Return the bits of an image's levels (c, h, w) as a lossless WebP file.

    Two channels, which WebP lacks, lie side by side in a grey image. As in Serrà et al.,
    arXiv:1909.11480, who measure an input's complexity by such a compressor.
    """
    pixels = row.numpy().astype(np.uint8)
    if len(pixels) in (3, 4):
        picture = Image.fromarray(pixels.transpose(1, 2, 0))
    else:
        picture = Image.fromarray(np.concatenate(list(pixels), axis=1))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, quality=100, method=4)
    return 8 * file.tell()
