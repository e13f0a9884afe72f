"""What samplers call: a denoising model's estimate, guided, clipped, remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poiesis.models.diffusion.autoguidance import weaker
from poiesis.sampling import diffusion

if TYPE_CHECKING:
    from poiesis.models.diffusion.denoising import DenoisingModel

__all__ = ["Guided", "guided"]


class Guided:
    """The denoiser of one call of a sampler, in the precision of x_t."""

    def __init__(self, model: DenoisingModel, condition: Tensor | None, options: Any) -> None:
        self.model = model
        self.condition = condition
        self.options = options
        scale = options.guide_scale
        self.weak = weaker(options.guide, model) if options.guide and scale != 1 else None
        self.rest: Tensor | None = None
        """What else the network said in the last call, for x_t under its condition."""
        self.earlier: Tensor | None = None
        """The last estimate, which a self-conditioned network is shown; zeros at first."""

    def __call__(self, x_t: Tensor, level: Any) -> Tensor:
        """Return the estimate of x0. level: as a path names it."""
        t = torch.full((len(x_t),), level, device=x_t.device)
        if self.model.config.self_condition and self.earlier is None:
            self.earlier = torch.zeros_like(x_t, dtype=torch.float32)
        x0 = guided(self.model, self._ask, x_t.float(), t, self.condition, self.options)
        if self.rest is not None:
            # Guidance asks twice at once: first under the condition.
            self.rest = self.rest[: len(x_t)]
        if self.weak is not None:
            worse = self.weak.denoiser(x_t.float(), t, self.condition)
            x0 = diffusion.guide(x0, worse, self.options.guide_scale)
        x0 = self.model.led(x0, x_t.float(), t, self.condition, self.options)
        if self.model.bounded:
            x0 = diffusion.clip_x0(x0, self.options.clip)
        if self.earlier is not None:
            self.earlier = x0.float()
        return x0.to(x_t)

    def _ask(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.earlier is None:
            x0, self.rest = self.model.estimate(x_t, t, condition)
        else:
            # Guidance asks twice at once, of one estimate.
            twice = len(x_t) // len(self.earlier)
            earlier = torch.cat([self.earlier] * twice)
            x0, self.rest = self.model.estimate(x_t, t, condition, earlier)
        return x0


def guided(
    model: DenoisingModel,
    ask: Callable[..., Tensor],
    x_t: Tensor,
    t: Tensor,
    condition: Tensor | None,
    options: Any,
) -> Tensor:
    """Return the estimate of x0 with classifier-free guidance; ask: the model's denoiser."""
    scale = options.guidance
    if model.told is None or condition is None or scale == 0:
        return ask(x_t, t)
    alpha, sigma = model.marginal(t[:1])
    low, high = options.guidance_interval
    if scale == 1 or not low <= float(sigma / (alpha + sigma)) <= high:
        return ask(x_t, t, condition)
    both = torch.cat([condition, torch.full_like(condition, model.told.none)])
    estimates = ask(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
    conditional, unconditional = estimates.chunk(2)
    found = diffusion.guide(conditional, unconditional, scale)
    return diffusion.rescale(found, conditional, options.guidance_rescale)
