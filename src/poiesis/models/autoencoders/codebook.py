"""Vector quantisation: a codebook that learns by moving averages or by gradient.

Shape letters: b samples, n vectors (all positions of all samples), k codes, d their dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poiesis import processes

__all__ = ["Codebook", "perplexity"]

_DISTANCES = 1 << 22
"""Distances held at once: bounds the memory that large grids need."""
_EPS = 1e-5
_LLOYD = 10
"""Rounds of k-means."""


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(entropy) of code counts (k,), in [1, k]: k if all codes are used alike."""
    share = counts / counts.sum()
    return torch.exp(-torch.special.xlogy(share, share).sum())


class Codebook(nn.Module):
    """k vectors of d numbers; each input takes the nearest (arXiv:1711.00937, eq. 1 and 2).

    Learned by moving averages (appendix A.1 of the paper) its vectors are buffers: `note` adds up
    what the micro-batches of a step bring, and `update`, after the step, moves the codebook once
    by the sums over all of them and over all processes. Learned by gradient they are a parameter.
    Either way codes that are hardly used are put where vectors are, if `revive` is above 0.

    decay: per step, of the averages. warm: the decay of update t is min(decay, (1 + t) / (10 + t)),
    so that the codebook keeps up with an encoder that has just begun to learn.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    revived: Tensor
    updates: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        decay: float,
        revive: float,
        gradient: bool = False,
        warm: bool = False,
    ) -> None:
        super().__init__()
        self.decay, self.revive, self.gradient, self.warm = decay, revive, gradient, warm
        vectors = (2 * torch.rand(codes, dim) - 1) / codes
        if gradient:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
            self.register_buffer("sums", vectors.clone())
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("revived", torch.zeros((), dtype=torch.long))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._noted: tuple[Tensor, Tensor] | None = None
        self._spare: list[Tensor] = []

    # -- use -------------------------------------------------------------------------------------

    def forward(self, codes: Tensor) -> Tensor:
        """Return the vectors (…, d) of codes (…), int64."""
        return nn.functional.embedding(codes, self.vectors)

    @torch.no_grad()
    def nearest(self, z_nd: Tensor) -> Tensor:
        """Return the code of the nearest vector in squared distance, int64 (n,), for float32 z."""
        # |z|² is the same for all codes. In low precision near codes would be confused.
        with torch.autocast(z_nd.device.type, enabled=False):
            half = 0.5 * self.vectors.square().sum(1)
            found = [
                # Not argmin, which takes a CPU longer than the product.
                torch.addmm(half, rows, self.vectors.T, alpha=-1).min(1).indices
                for rows in z_nd.split(max(1, _DISTANCES // len(half)))
            ]
        return torch.cat(found)

    # -- learning --------------------------------------------------------------------------------

    @torch.no_grad()
    def note(self, z_bnd: Tensor, codes_bn: Tensor, at: Tensor) -> None:
        """Take a micro-batch into the next `update`.

        z_bnd: encoder outputs (b, n, d), float32. at: uniform in [0, 1), (b,), by which each sample
        offers one of its vectors, with a chance in proportion to its squared distance from its
        code, to codes that are to be revived.
        """
        counts, sums = self._totals(z_bnd.flatten(0, 1), codes_bn.flatten())
        if self._noted is not None:
            counts, sums = counts + self._noted[0], sums + self._noted[1]
        self._noted = counts, sums
        if self.revive:
            level = (z_bnd - self(codes_bn)).square().sum(2).cumsum(1)
            n = torch.searchsorted(level, at[:, None] * level[:, -1:], right=True)
            n = n.clamp(max=level.size(1) - 1)
            self._spare.append(z_bnd[torch.arange(len(n), device=n.device), n[:, 0]])

    @torch.no_grad()
    def update(self) -> None:
        """Move the codebook by what was noted in this step, in all processes alike."""
        if self._noted is None:
            return
        (counts, sums), spare = self._noted, self._spare
        self._noted, self._spare = None, []
        processes.sum_([counts, sums])
        if not torch.isfinite(sums).all():
            return  # of a diverged encoder nothing is to be learned
        decay = torch.full_like(counts[0], self.decay)
        if self.warm:
            decay = decay.minimum((1 + self.updates) / (10 + self.updates))
        self.updates += 1
        self.counts.lerp_(counts, 1 - decay)
        if not self.gradient:
            self.sums.lerp_(sums, 1 - decay)
            self._settle()
        self.revived.zero_()
        even = counts.sum() / len(counts)
        dead = (self.counts < self.revive * even).nonzero()[:, 0]
        if len(dead):
            rows = processes.gather(torch.cat(spare)).to(sums)[: len(dead)]
            dead = dead[: len(rows)]
            self.vectors[dead] = rows
            self.counts[dead] = even
            if not self.gradient:
                self.sums[dead] = even * rows
            self.revived.fill_(len(dead))

    def _settle(self) -> None:
        """Set the vectors to the averages: sums over counts, smoothed (Laplace) near zero."""
        total = self.counts.sum()
        smoothed = (self.counts + _EPS) * (total / (total + len(self.counts) * _EPS))
        self.vectors.copy_(self.sums / smoothed[:, None])

    def _totals(self, z_nd: Tensor, codes_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many vectors (k,) each code has, and their sum (k, d)."""
        k = len(self.counts)
        counts = torch.bincount(codes_n, minlength=k).to(self.counts)
        sums = torch.zeros_like(self.vectors)
        if z_nd.device.type == "cpu":
            return counts, sums.index_add_(0, codes_n, z_nd)
        size = max(1, _DISTANCES // k)
        with torch.autocast(z_nd.device.type, enabled=False):
            for rows, codes in zip(z_nd.split(size), codes_n.split(size), strict=True):
                # A product, for other devices would add up in any order.
                sums += nn.functional.one_hot(codes, k).to(rows).T @ rows
        return counts, sums

    # -- the start -------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, z_nd: Tensor) -> None:
        """Start from k-means of vectors z_nd (n, d), float32, in random order: of its first rows.

        Of fewer vectors than codes some serve twice, to be revived elsewhere. A code that has lost
        all its vectors takes one of those farthest from theirs.
        """
        k = len(self.counts)
        self.vectors.copy_(z_nd[torch.arange(k, device=z_nd.device) % len(z_nd)])
        for _ in range(_LLOYD):
            codes = self.nearest(z_nd)
            counts, sums = self._totals(z_nd, codes)
            used = counts > 0
            self.vectors[used] = sums[used] / counts[used, None]
            empty = (~used).nonzero()[:, 0]
            far = (z_nd - self(codes)).square().sum(1)
            far = far.topk(min(len(empty), len(z_nd))).indices
            self.vectors[empty[: len(far)]] = z_nd[far]
        # Averages as if every batch had been used as this one; at least once, to stay in place.
        counts, _ = self._totals(z_nd, self.nearest(z_nd))
        self.counts.copy_(counts.clamp(min=1))
        if not self.gradient:
            self.sums.copy_(self.vectors * self.counts[:, None])
