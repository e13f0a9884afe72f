"""Which network learns a grid: of images, of audio (one dimension) or of video (three)."""

from __future__ import annotations

from typing import Any

from poiesis.errors import ConfigError, SpecError
from poiesis.nn.dit import DiT
from poiesis.nn.folded import Folded
from poiesis.nn.unet import UNet
from poiesis.nn.video_unet import VideoUNet
from poiesis.nn.wave_unet import WaveUNet
from poiesis.spec import Captions, Classes, Condition, Grid, Spec

__all__ = ["make_network", "padded", "padded_view", "side_of", "step_of"]


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


def step_of(config: Any) -> int:
    """Return what the sides of a view are multiples of."""
    if config.network == "dit":
        return config.dit.patch
    return config.fold * 2 ** (len(config.multipliers) - 1)


def padded_view(config: Any, spec: Spec, name: str) -> Grid:
    """Return a grid padded so that each resolution is half the one before, or cut into patches.

    Levels become values in [-1, 1]; real values stay. Frames of a video are not halved. Raises
    SpecError for what is no grid of one to three dimensions.
    """
    if not isinstance(spec, Grid) or len(spec.size) not in (1, 2, 3):
        kind = "images, audio, video or vectors"
        raise SpecError(f"{name} learns {kind}; this data is a {spec}")
    step = step_of(config)
    sides = [-(-side // step) * step for side in spec.size[-2:]]
    size = (*spec.size[:-2], *sides)
    domain = "real" if spec.domain == "real" else "signed"
    return Grid(channels=spec.channels, size=size, domain=domain, levels=spec.levels)


def make_network(
    config: Any, spec: Grid, condition: Condition | None, *, given: int = 0, outputs: int = 1
) -> UNet | DiT | Folded:
    """Return the network for a view of one, two or three dimensions.

    given: channels that come with the data, which the network sees and does not make. outputs:
    how many values it makes for each of the view. Raises ConfigError for attention at a resolution
    that it lacks, and for sides that patches don't divide.
    """
    captions = condition if isinstance(condition, Captions) else None
    fold = config.dit.patch if config.network == "dit" else config.fold
    axes = min(2, len(spec.size))  # Frames of a video are not folded.
    sizes: dict[str, Any] = {
        "in_channels": (spec.channels + given) * fold**axes,
        "out_channels": outputs * spec.channels * fold**axes,
        "dropout": config.dropout,
        "recompute": config.recompute,
        "classes": condition.count if isinstance(condition, Classes) else 0,
        "captions": (captions.vocabulary, captions.length) if captions else None,
        "text_width": config.text_width,
        "text_layers": config.text_layers,
    }
    if config.network == "dit":
        network: Any = DiT(size=_cut(spec, fold), options=config.dit, **sizes)
    else:
        network = _unet(config, spec, spec.channels * fold**axes, sizes)
    return network if fold == 1 else Folded(network, fold, axes)


def _cut(spec: Grid, patch: int) -> tuple[int, ...]:
    """Return the size of a view in patches; raises ConfigError where there is a rest."""
    for side in spec.size[-2:]:
        if side % patch:
            possible = ", ".join(str(n) for n in range(1, patch) if side % n == 0)
            raise ConfigError(
                f"dit.patch = {patch} does not divide a side of {side}; take one of {possible}"
            )
    return (*spec.size[:-2], *(side // patch for side in spec.size[-2:]))


def _unet(config: Any, spec: Grid, channels: int, sizes: dict[str, Any]) -> UNet:
    """Return the U-Net for a view whose folded data have so many channels."""
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
    sizes |= {
        "channels": config.channels,
        "multipliers": config.multipliers,
        "blocks": config.blocks,
        "attention": [side in config.attention for side in sides],
        "groups": config.groups,
        "options": config.unet,
    }
    if audio:
        return WaveUNet(signal_channels=channels, **sizes)
    if video:
        return VideoUNet(image_channels=channels, frames=spec.size[0], **sizes)
    return UNet(image_channels=channels, **sizes)
