"""What training is watched by: numbers of a model's samples beside those of real data, and of its
networks.

Each number of the samples has a null, what other real data give in its place: `Reference` holds
some training rows and knows, from sets of further ones, how its numbers spread where nothing is
wrong. Shape letters: n samples, d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.data.dataset import DataSet
from poiesis.metrics.birthday import duplicate_threshold, effective_support
from poiesis.metrics.distances import in_balls, neighbour_radii
from poiesis.metrics.ndb import bin_counts, compare_bins, fit_bins
from poiesis.metrics.overfitting import (
    separation,
    separation_error,
    sign_overfitting,
    validation_overfitting,
)
from poiesis.metrics.vendi import vendi
from poiesis.models.base import GenerativeModel
from poiesis.rng import generator
from poiesis.spec import Grid

__all__ = ["Null", "Reference", "judgement", "moved", "place", "stretch"]

REFERENCE = 1024
"""Most real samples that generated ones are compared with."""
POOL = 2048
"""Most real samples, others than these, that sets for the nulls are drawn from."""
SETS = 12
"""Sets of real samples for the nulls."""
_BALLS, _NEIGHBOURS = 5, 3
"""Neighbours in coverage and in precision and recall, as in evaluation."""
_PER_BIN = 5
"""Generated samples expected in a bin, below which the z-test is no good."""
_PER_KIND = 25
"""The same of bins that must be told from half as full: an empty one then is, by 3.6 sigma."""
_CLOSE = 1e-3
"""Share of the pairs of real samples that counts as close: a close pair is a duplicate."""
_SCALE = 0.5
"""Bandwidth of the kernel over the median distance of real samples: fine enough to tell modes
apart, coarse enough not to see how sharp each of them is."""
_DIRECTION = 4096
_ITERATIONS = 8
_MATRICES = (nn.Linear, nn.modules.conv._ConvNd)
_SIDE = 32
"""Pixels of the side to which large images are averaged for duplicates."""
_CLIP = (4, 16, 16)
"""The same for clips: frames, height and width."""


@dataclass(frozen=True, kw_only=True)
class Null:
    """What a number is for real samples: its mean and standard deviation over sets of them."""

    mean: float
    sd: float


class Reference:
    """Real samples to compare generated ones with, and the nulls that follow from them.

    features: takes native rows (n, …), returns (n, d). samples: how many generated samples a
    comparison will have; fewer where there is little data. nulls: if they are known already.
    Raises DataError where images do not fit their extractor.
    """

    def __init__(
        self,
        data: DataSet,
        features: Callable[[Tensor], Tensor],
        *,
        samples: int = 512,
        nulls: Mapping[str, Null] | None = None,
        seed: int = 0,
    ) -> None:
        split = data.splits["train"]
        self._features = features
        self._levels = data.spec.levels if isinstance(data.spec, Grid) else None
        self.samples = min(samples, len(split) // 4)
        own = min(REFERENCE, len(split) // 2)
        count = min(own + POOL, len(split))
        rows = torch.randperm(len(split), generator=generator("monitors", seed))[:count]
        native, _ = split.fetch(rows)
        real, values = features(native), self._values(native)
        self._real = real[:own]
        self._radii = {k: neighbour_radii(self._real, k) for k in (_BALLS, _NEIGHBOURS)}
        self._bins = [
            fit_bins(self._real, max(2, min(100, self.samples // each)), seed=seed)
            for each in (_PER_BIN, _PER_KIND)
        ]
        self._counts = [bin_counts(centres, self._real) for centres in self._bins]
        some = self.samples
        self._bandwidth = _SCALE * duplicate_threshold(real[:some], 0.5)
        self._value_bandwidth = _SCALE * duplicate_threshold(values[:some], 0.5)
        self._close = duplicate_threshold(values[:some], _CLOSE)
        self.nulls = nulls or self._nulls(real[own:], values[own:], seed)

    def _nulls(self, features: Tensor, values: Tensor, seed: int) -> dict[str, Null]:
        found: dict[str, list[float]] = {}
        for k in range(SETS):
            order = torch.randperm(len(features), generator=generator("nulls", seed, k))
            rows = order[: self.samples]
            for name, value in self._compare(features[rows], values[rows]).items():
                found.setdefault(name, []).append(value)
        tensors = {n: torch.tensor(v, dtype=torch.float64) for n, v in found.items()}
        return {n: Null(mean=float(t.mean()), sd=float(t.std())) for n, t in tensors.items()}

    def compare(self, native: Tensor) -> dict[str, float]:
        """Return the numbers of native rows (n, …)."""
        return self._compare(self._features(native), self._values(native))

    def _compare(self, features: Tensor, values: Tensor) -> dict[str, float]:
        among, _ = in_balls(self._real, self._radii[_NEIGHBOURS], features)
        _, held = in_balls(self._real, self._radii[_BALLS], features)
        reached, _ = in_balls(features, neighbour_radii(features, _NEIGHBOURS), self._real)
        bins, kinds = (
            compare_bins(counts, bin_counts(centres, features))
            for counts, centres in zip(self._counts, self._bins, strict=True)
        )
        support = effective_support(values, self._close)
        return {
            "precision": float((among > 0).double().mean()),
            "recall": float((reached > 0).double().mean()),
            "coverage": float((held > 0).double().mean()),
            "ndb": bins.different,
            "lost": kinds.lost,
            "vendi": vendi(features, bandwidth=self._bandwidth),
            "variety": vendi(values, bandwidth=self._value_bandwidth),
            # Without a close pair the support is at least what one would tell of.
            "support": min(support, math.comb(len(values), 2)),
        }

    def _values(self, native: Tensor) -> Tensor:
        if self._levels is None:
            return native.flatten(1).double()
        if native.dim() == 5:
            # Of clips a few frames, small: in full they would take gigabytes.
            t, h, w = (min(side, most) for side, most in zip(native.shape[2:], _CLIP, strict=True))
            pooled = [F.adaptive_avg_pool3d(some.float(), (t, h, w)) for some in native.split(64)]
            return torch.cat(pooled).double().flatten(1) / (self._levels - 1)
        x = native.double() / (self._levels - 1)
        if min(x.shape[2:]) > _SIDE:
            x = F.adaptive_avg_pool2d(x, _SIDE)
        return x.flatten(1)


def judgement(train: Tensor, validation: Tensor, generated: Tensor) -> dict[str, float]:
    """Return what the logits (n,) of a discriminator say of it.

    fooled: chance of a generated sample to look more real than a training one, 1/2 where they are
    alike. r_t, overfit: the two heuristics of ADA. overfit_sigmas: how surely training data look
    more real than held-out ones, in standard errors of the null.
    """
    sigma = separation_error(len(train), len(validation))
    return {
        "fooled": 1 - separation(train, generated),
        "r_t": sign_overfitting(train),
        "overfit": validation_overfitting(train, validation, generated),
        "overfit_sigmas": (separation(train, validation) - 0.5) / sigma,
    }


@torch.no_grad()
def place(network: nn.Module) -> float:
    """Return where the weights of a network are along one fixed random direction, over their norm.

    It changes by about as much as the weights do, relative to their norm; see `moved`.
    """
    along = squares = 0.0
    for index, weight in enumerate(_own(network)):
        some = weight.detach().flatten()
        # A few thousand of each tensor tell as much as all.
        some = some[:: max(1, len(some) // _DIRECTION)].double().cpu()
        direction = torch.randn(len(some), generator=generator("place", index))
        along += float(some @ direction.double())
        squares += float(some.square().sum())
    return along / math.sqrt(squares) if squares else 0.0


def moved(now: float, before: float) -> float:
    """Return about how far weights went between two of their places, relative to their norm."""
    return abs(now - before)


@torch.no_grad()
def stretch(network: nn.Module) -> float:
    """Return the largest singular value of any matrix or kernel, by power iteration; 0 for none.

    Kernels are seen as matrices (out, in x height x width). With few iterations it comes out a
    little low. The network must be in evaluation mode, where reading a weight changes nothing.
    """
    largest = 0.0
    for index, module in enumerate(network.modules()):
        weight = getattr(module, "weight", None)
        if not isinstance(module, _MATRICES) or hasattr(weight, "full_tensor"):
            continue
        matrix = weight.detach().float().flatten(1)  # pyright: ignore[reportOptionalMemberAccess]
        v = torch.randn(matrix.shape[1], generator=generator("stretch", index)).to(matrix.device)
        for _ in range(_ITERATIONS):
            u = F.normalize(matrix @ v, dim=0)
            v = F.normalize(matrix.T @ u, dim=0)
        largest = max(largest, float((matrix @ v).norm()))
    return largest


def _own(network: nn.Module) -> Iterator[Tensor]:
    """Yield the trained weights that this process holds whole, without those of parts."""
    for module in _modules(network):
        for weight in module.parameters(recurse=False):
            if not hasattr(weight, "full_tensor") and weight.numel():
                yield weight


def _modules(network: nn.Module) -> Iterator[nn.Module]:
    if isinstance(network, GenerativeModel):
        return
    yield network
    for child in network.children():
        yield from _modules(child)
