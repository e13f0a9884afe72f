"""Which U-Net learns a grid: of images, of audio (one dimension) or of video (three)."""

from __future__ import annotations

import math
from typing import Any

from poiesis.errors import ConfigError, SpecError
from poiesis.nn.unet import UNet
from poiesis.nn.video_unet import VideoUNet
from poiesis.nn.wave_unet import WaveUNet
from poiesis.spec import Captions, Classes, Condition, Grid, Spec

__all__ = ["grid_sizes", "make_unet", "padded", "padded_view", "side_of"]

_STEPS = 128
"""Steps of audio below which a resolution has attention."""


def side_of(spec: Spec, name: str) -> int:
    """Return the longer side of an image spec; raises SpecError for anything else."""
    if not isinstance(spec, Grid) or len(spec.size) != 2:
        kind = "images, (channels, height, width)"
        raise SpecError(f"{name} learns {kind}; this data is a {spec}")
    return max(spec.size)


def padded(side: int, resolutions: int) -> int:
    """Return the next multiple of 2^(resolutions − 1)."""
    unit = 2 ** (resolutions - 1)
    return -(-side // unit) * unit


def padded_view(config: Any, spec: Spec, name: str) -> Grid:
    """Return a grid padded so that each resolution is half the one before.

    Levels become values in [-1, 1]; real values stay. Frames of a video are not halved. Raises
    SpecError for what is no grid of one to three dimensions.
    """
    if not isinstance(spec, Grid) or len(spec.size) not in (1, 2, 3):
        kind = "images, audio, video or vectors"
        raise SpecError(f"{name} learns {kind}; this data is a {spec}")
    levels = len(config.multipliers)
    if len(spec.size) == 1:
        size = tuple(config.fold * padded(-(-side // config.fold), levels) for side in spec.size)
    else:
        if config.fold != 1:
            raise SpecError(f"fold = {config.fold} is for audio; use 1 for a {spec}")
        frames = spec.size[:-2]
        size = (*frames, *(padded(side, levels) for side in spec.size[-2:]))
    domain = "real" if spec.domain == "real" else "signed"
    return Grid(channels=spec.channels, size=size, domain=domain, levels=spec.levels)


def make_unet(config: Any, spec: Grid, condition: Condition | None) -> UNet:
    """Return the network for a view of one, two or three dimensions.

    Raises ConfigError for attention at a resolution that it lacks.
    """
    audio, video = len(spec.size) == 1, len(spec.size) == 3
    finest = spec.size[0] // config.fold if audio else max(spec.size[-2:])
    sides = [finest // 2**i for i in range(len(config.multipliers))]
    strange = [side for side in config.attention if side not in sides]
    if strange:
        unit = "steps" if audio else "px"
        raise ConfigError(
            f"attention = {strange[0]} is not a resolution of this network;"
            f" it has {', '.join(map(str, sides))} {unit}"
        )
    captions = condition if isinstance(condition, Captions) else None
    sizes: dict[str, Any] = {
        "channels": config.channels,
        "multipliers": config.multipliers,
        "blocks": config.blocks,
        "attention": [side in config.attention for side in sides],
        "groups": config.groups,
        "dropout": config.dropout,
        "recompute": config.recompute,
        "classes": condition.count if isinstance(condition, Classes) else 0,
        "options": config.unet,
        "captions": (captions.vocabulary, captions.length) if captions else None,
        "text_width": config.text_width,
        "text_layers": config.text_layers,
    }
    if audio:
        return WaveUNet(signal_channels=spec.channels, fold=config.fold, **sizes)
    if video:
        return VideoUNet(image_channels=spec.channels, frames=spec.size[0], **sizes)
    return UNet(image_channels=spec.channels, **sizes)


def grid_sizes(spec: Grid) -> dict[str, Any]:
    """Return options of a small network for audio, or for video beyond those for its frames."""
    if len(spec.size) == 3:
        # A video is a batch of frames.
        return {"batch_size": max(4, min(32, 128 // spec.size[0]))}
    # About a thousand steps of a few samples, as many as a small image has pixels.
    fold = 2 ** max(0, min(5, math.ceil(math.log2(spec.size[0] / 1024))))
    steps = -(-spec.size[0] // fold)
    levels = max(1, min(5, math.ceil(math.log2(steps / _STEPS)) + 1))
    coarsest = padded(steps, levels) // 2 ** (levels - 1)
    wide = {"channels": 64 if fold > 1 else 32, "groups": 8, "fold": fold}
    widths = (1, *[2] * (levels - 1))
    return {**wide, "multipliers": widths, "attention": (coarsest,), "batch_size": 32}
