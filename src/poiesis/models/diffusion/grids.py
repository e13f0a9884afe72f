"""Which U-Net learns a grid: of images, of audio (one dimension) or of video (three)."""

from __future__ import annotations

import math
from typing import Any

from poiesis.errors import ConfigError, SpecError
from poiesis.nn.folded import Folded
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
    levels, fold = len(config.multipliers), config.fold
    sides = [fold * padded(-(-side // fold), levels) for side in spec.size[-2:]]
    size = (*spec.size[:-2], *sides)
    domain = "real" if spec.domain == "real" else "signed"
    return Grid(channels=spec.channels, size=size, domain=domain, levels=spec.levels)


def make_unet(
    config: Any, spec: Grid, condition: Condition | None, *, given: int = 0, outputs: int = 1
) -> UNet | Folded:
    """Return the network for a view of one, two or three dimensions.

    given: channels that an image comes with, which the network sees and does not make. outputs:
    how many values it makes for each of the view. Raises ConfigError for attention at a resolution
    that it lacks.
    """
    audio, video = len(spec.size) == 1, len(spec.size) == 3
    finest = max(spec.size[-2:]) // config.fold
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
    axes = 1 if audio else 2
    channels = spec.channels * config.fold**axes
    sizes["out_channels"] = outputs * channels
    if audio:
        network: UNet = WaveUNet(signal_channels=channels, **sizes)
    elif video:
        network = VideoUNet(image_channels=channels, frames=spec.size[0], **sizes)
    else:
        seen = channels + given * config.fold**axes
        network = UNet(image_channels=channels, in_channels=seen, **sizes)
    return network if config.fold == 1 else Folded(network, config.fold, axes)


def grid_sizes(spec: Grid, finest: int = 1024) -> dict[str, Any]:
    """Return options of a small network for audio, or for video beyond those for its frames.

    finest: steps of the first resolution of audio, at most; about as many as pixels of an image.
    """
    if len(spec.size) == 3:
        # A video is a batch of frames.
        return {"batch_size": max(4, min(32, 128 // spec.size[0]))}
    fold = 2 ** max(0, min(5, math.ceil(math.log2(spec.size[0] / finest))))
    steps = -(-spec.size[0] // fold)
    levels = max(1, min(5, math.ceil(math.log2(steps / _STEPS)) + 1))
    coarsest = padded(steps, levels) // 2 ** (levels - 1)
    wide = {"channels": 64 if fold > 1 else 32, "groups": 8, "fold": fold}
    widths = (1, *[2] * (levels - 1))
    return {**wide, "multipliers": widths, "attention": (coarsest,), "batch_size": 32}
