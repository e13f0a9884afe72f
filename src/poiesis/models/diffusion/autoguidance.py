"""Autoguidance: a weaker version of a model shows it which way is worse (arXiv 2406.02507)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from poiesis.errors import ConfigError
from poiesis.runs import Run

if TYPE_CHECKING:
    from poiesis.models.diffusion.denoising import DenoisingModel

__all__ = ["check_alike", "opened", "weaker"]


def weaker(guide: str, model: DenoisingModel) -> Any:
    """Return the model that `guide` names, RUN or RUN@CHECKPOINT (latest, best or a step).

    Of a latent diffusion it is the flow over its latents. Raises RunError if there is none,
    ConfigError if it is of another kind than `model`, or learnt other data, classes or noise: the
    two must say the same of one x_t.
    """
    found = opened(guide, model.device)
    found = getattr(found, "flow", found)
    check_alike(guide, found, model)
    shares = torch.linspace(0.05, 0.95, 7, device=model.device)
    t = model.spread_times(shares)
    pairs = zip(found.marginal(t), model.marginal(t), strict=True)
    if not all(torch.equal(own, other) for own, other in pairs):
        raise _unfit(guide, "learnt with other noise")
    return found


def opened(guide: str, device: torch.device) -> Any:
    """Return the model that `guide` names; the last one is kept, until its run is saved anew."""
    name, _, checkpoint = guide.partition("@")
    run = Run.open(name)
    saved = (run.path / "checkpoints").stat().st_mtime_ns
    return _loaded(str(run.path.resolve()), checkpoint or "auto", saved, str(device))


@functools.lru_cache(maxsize=1)
def _loaded(run: str, checkpoint: str, saved: int, device: str) -> Any:
    from poiesis.models.trained import load

    return load(run, checkpoint=checkpoint, device=device).model


def check_alike(guide: str, found: Any, model: Any) -> None:
    """Raise ConfigError if a guide is of another kind than `model` or learnt other data."""
    if type(found) is not type(model):
        raise _unfit(guide, f"is {type(found).__name__}, not {type(model).__name__}")
    if found.spec != model.spec:
        raise _unfit(guide, f"makes a {found.spec}, not a {model.spec}")
    if found.condition != model.condition:
        raise _unfit(guide, "learnt other classes or captions")


def _unfit(guide: str, wrong: str) -> ConfigError:
    return ConfigError(
        f"guide = {guide!r} {wrong}; give an earlier checkpoint of the same run (RUN@STEP) or a "
        "smaller model trained alike"
    )
