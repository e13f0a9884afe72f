"""The denoising U-Net for one dimension: audio, as an image that is one pixel high.

Neighbouring samples are folded into channels first, so that the finest resolution is as long as a
small image is large. Shapes: b batch, c channels, n samples, f folded samples.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from poiesis.nn.unet import UNet

__all__ = ["WaveUNet"]


class WaveUNet(UNet):
    """The network: (x_t, noise level, class) → a signal of the same shape, (b, c, n).

    signal_channels: c. fold: samples that become channels of one step; n must be divisible by
    fold · 2^(resolutions − 1). sizes: the other options of `UNet`.
    """

    def __init__(self, *, signal_channels: int, fold: int = 1, **sizes: Any) -> None:
        # Two axes, one of length 1, keep to the fast kernels for images (channels last, bf16).
        super().__init__(image_channels=signal_channels * fold, kernel=(1, 3), **sizes)
        self.fold = fold

    def forward(self, x_bcn: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (b, c, n). t, condition: see `UNet.forward`."""
        steps_bcsf = x_bcn.unflatten(2, (-1, self.fold))
        flat = steps_bcsf.transpose(2, 3).flatten(1, 2)[:, :, None]
        out = self.denoise(flat, *self.embed(t, condition))[:, :, 0]
        return out.unflatten(1, (-1, self.fold)).transpose(2, 3).flatten(2)
