"""Options of the networks that learn to remove noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.nn.dit import DiTOptions
from poiesis.nn.unet import UNetOptions

__all__ = ["NetworkOptions"]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Which network, and its sizes."""

    network: Literal["unet", "dit", "mlp"] = "unet"
    """unet: convolutions, for images, audio and video; dit: a transformer over patches of them;
    mlp: dense layers, for vectors."""
    channels: int = 32
    """Width of the first resolution, a multiple of `groups`; mlp: units of every layer."""
    multipliers: tuple[int | float, ...] = (1, 2, 2)
    """Width of each resolution in units of `channels`, from fine to coarse (network unet)."""
    blocks: int = 1
    """Residual blocks per resolution on the way down (one more on the way up); mlp: layers."""
    attention: tuple[int, ...] = (8,)
    """Resolutions with self-attention, by longer side in pixels (audio: samples), after the fold;
    the coarsest always ends in one (network unet). Of video there is attention over time there,
    too."""
    fold: int = 1
    """Samples of audio, or pixels of both sides, that become channels of one step, which makes the
    network as much smaller (network unet)."""
    groups: int = 8
    """Groups of the group normalisation (network unet)."""
    unet: UNetOptions = field(default_factory=UNetOptions)
    """Finer points of the U-Net, in which published ones differ."""
    dit: DiTOptions = field(default_factory=DiTOptions)
    """Size of the transformer (network dit)."""
    dropout: float = 0.0
    """Share of features dropped inside residual blocks."""
    recompute: bool = False
    """Keep less of a step in memory and compute it again on the way back, a third slower
    (networks unet and dit)."""
    text_width: int = 64
    """Width of the transformer that reads captions, a multiple of 4."""
    text_layers: int = 2
    """Layers of it."""

    def __post_init__(self) -> None:
        check("channels", self.channels, low=2)
        check("groups", self.groups, low=1)
        check("blocks", self.blocks, low=1, high=64)
        check("fold", self.fold, low=1, high=4096)
        check("dropout", self.dropout, low=0, high=0.99)
        check("text_width", self.text_width, low=4)
        check("text_layers", self.text_layers, low=1, high=64)
        if self.text_width % 4:
            raise ConfigError(f"text_width = {self.text_width} is not a multiple of 4")
        if self.network != "unet":
            return
        if not self.multipliers:
            raise ConfigError("multipliers is empty: give one width per resolution, e.g. 1,2,2")
        for multiplier in self.multipliers:
            check("multipliers", multiplier, low=0, open_low=True)
        if self.channels % self.groups:
            raise ConfigError(
                f"channels = {self.channels} is not a multiple of groups = {self.groups}"
            )
