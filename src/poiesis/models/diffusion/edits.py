"""What denoising models do to given data: variants, gaps filled in, the way back to noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poiesis.models.image_condition import Holes
from poiesis.rng import Noise
from poiesis.sampling import editing

__all__ = ["Edits", "precise"]


def precise(x: Tensor) -> Tensor:
    """Return x in double precision, where it is to be had.

    Many small steps add up (arXiv 2206.00364, appendix E).
    """
    return x if x.device.type == "mps" else x.double()


class Edits:
    """The part of a `DenoisingModel` that walks some of its path, not all of it."""

    Sampling: Any
    spec: Any
    task: Any
    bounded: bool
    draw: Any
    path: Any
    prior_std: Any
    _solved: Any
    _denoise: Any

    def edit(
        self,
        x: Tensor,
        noise: Noise,
        condition: Tensor | None = None,
        options: Any = None,
        *,
        strength: float = 0.5,
    ) -> Tensor:
        """Return variants of x (b, *spec.shape): noise added, then taken away (arXiv 2108.01073).

        strength: share of the sampler's steps that are taken, (0, 1]; 1 keeps almost nothing of x.
        """
        options = self.Sampling() if options is None else options
        path = editing.tail(self.path(options), strength)
        return self._solved(path, editing.noised(path, x, noise), noise, condition, options)

    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        noise: Noise,
        condition: Tensor | None = None,
        options: Any = None,
        *,
        resamples: int = 5,
    ) -> Tensor:
        """Return x (b, *spec.shape) with what a mask covers made anew; see `editing.inpaint`.

        mask: broadcastable to x, 1 where x is to be filled in. Of the options, sampler, eta, order
        and tolerance have no meaning here: every step is DDPM's. A model that learned the task
        inpaint samples as it always does.
        """
        options = self.Sampling() if options is None else options
        if isinstance(self.task, Holes):
            # It learned just that.
            return self.draw(noise, self.task.known(x, mask <= 0), options)
        path = self.path(options)
        start = precise(noise.randn(*self.spec.shape) * self.prior_std(path))
        denoise = self._denoise(condition, options)
        filled = editing.inpaint(denoise, path, start, x, mask, noise, resamples=resamples).float()
        filled = filled.clamp(-1, 1) if self.bounded else filled
        return torch.where(mask > 0, filled, x)

    def invert(self, x: Tensor, condition: Tensor | None = None, options: Any = None) -> Tensor:
        """Return the noise (b, *spec.shape) from which ddim without noise makes about x."""
        options = self.Sampling() if options is None else options
        return editing.invert(
            self._denoise(condition, options), self.path(options), precise(x)
        ).float()
