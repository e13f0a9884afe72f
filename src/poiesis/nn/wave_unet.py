"""The denoising U-Net for one dimension: audio, as an image that is one pixel high."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from poiesis.nn.unet import UNet

__all__ = ["WaveUNet"]


class WaveUNet(UNet):
    """The network: (x_t, noise level, class) → a signal of the same shape, (b, c, n).

    signal_channels: c. sizes: the other options of `UNet`; n must be divisible by
    2^(resolutions − 1).
    """

    def __init__(self, *, signal_channels: int, **sizes: Any) -> None:
        # Two axes, one of length 1, keep to the fast kernels for images (channels last, bf16).
        super().__init__(image_channels=signal_channels, kernel=(1, 3), **sizes)

    def forward(self, x_bcn: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (b, c, n). t, condition: see `UNet.forward`."""
        return super().forward(x_bcn[:, :, None], t, condition)[:, :, 0]
