"""Autoguidance: a weaker version of a model shows it which way is worse (arXiv 2406.02507)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from poiesis.errors import ConfigError

if TYPE_CHECKING:
    from poiesis.models.diffusion.denoising import DenoisingModel

__all__ = ["weaker"]


def weaker(guide: str, model: DenoisingModel) -> Any:
    """Return the model that `guide` names, RUN or RUN@CHECKPOINT (latest, best or a step).

    Raises RunError if there is none, ConfigError if it is of another kind than `model`, or learnt
    other data, classes or noise: the two must say the same of one x_t.
    """
    from poiesis.models.trained import load

    run, _, checkpoint = guide.partition("@")
    found: Any = load(run, checkpoint=checkpoint or "auto", device=str(model.device)).model
    shares = torch.linspace(0.05, 0.95, 7, device=model.device)
    wrong = ""
    if type(found) is not type(model):
        wrong = f"is {type(found).__name__}, not {type(model).__name__}"
    elif found.spec != model.spec:
        wrong = f"makes a {found.spec}, not a {model.spec}"
    elif found.condition != model.condition:
        wrong = "learnt other classes or captions"
    else:
        t = model.spread_times(shares)
        pairs = zip(found.marginal(t), model.marginal(t), strict=True)
        if not all(torch.equal(own, other) for own, other in pairs):
            wrong = "learnt with other noise"
    if wrong:
        raise ConfigError(
            f"guide = {guide!r} {wrong}; give an earlier checkpoint of the same run "
            "(RUN@STEP) or a smaller model trained alike"
        )
    return found
