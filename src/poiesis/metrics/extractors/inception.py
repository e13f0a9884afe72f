"""The FID Inception network (Szegedy et al. 2015, 1512.00567, as in Heusel et al. 2017).

It is the TensorFlow network of 2015-12-05, which differs from torchvision's Inception v3: average
pools don't count padding, the pooling branch of the last block is a max, there are 1,008 classes,
and images are resized the TF1 way. Its weights (pt_inception-2015-12-05-6726825d.pth, 91 MB) are
the user's to download; module names are those of that file.

Shapes: images (b, 3, 299, 299); layers 64, 192, 768 are averaged over space, 2048 is the usual one.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.errors import ConfigError, DataError
from poiesis.metrics.extractors.base import Extractor

__all__ = ["LAYERS", "WEIGHTS_FILE", "FIDInception", "InceptionExtractor", "resize_tf1"]

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
"""The official file; the end of its name is the start of its SHA-256."""
_SHA256_START = "6726825d"
_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_FILE}"
LAYERS = (64, 192, 768, 2048)
"""Feature layers by width: after the first and second max-pool, after Mixed_6e, the last."""


class _FrozenBatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, var, self.weight, self.bias, eps=1e-3)


class _Unit(nn.Module):
    """Bias-free convolution, batch norm, ReLU."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, padding, bias=False)
        self.bn = _FrozenBatchNorm(outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, inner: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(inner, 64, 1)
        self.branch5x5_1 = _Unit(inner, 48, 1)
        self.branch5x5_2 = _Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Unit(inner, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, padding=1)
        self.branch_pool = _Unit(inner, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class _B(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3 = _Unit(inner, 384, 3, 2)
        self.branch3x3dbl_1 = _Unit(inner, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(inner, 192, 1)
        self.branch7x7_1 = _Unit(inner, width, 1)
        self.branch7x7_2 = _Unit(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = _Unit(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = _Unit(inner, width, 1)
        self.branch7x7dbl_2 = _Unit(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = _Unit(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = _Unit(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = _Unit(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = _Unit(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Unit(inner, 192, 1)
        self.branch3x3_2 = _Unit(192, 320, 3, 2)
        self.branch7x7x3_1 = _Unit(inner, 192, 1)
        self.branch7x7x3_2 = _Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Unit(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    def __init__(self, inner: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = _Unit(inner, 320, 1)
        self.branch3x3_1 = _Unit(inner, 384, 1)
        self.branch3x3_2a = _Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Unit(inner, 448, 1)
        self.branch3x3dbl_2 = _Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Unit(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else _average(x)
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(parts, 1)


class FIDInception(nn.Module):
    """The network; `forward` takes (b, 3, 299, 299) as resized and scaled by the extractor."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3)
        self.Mixed_5b = _A(192, 32)
        self.Mixed_5c = _A(256, 64)
        self.Mixed_5d = _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(768, 128)
        self.Mixed_6c = _C(768, 160)
        self.Mixed_6d = _C(768, 160)
        self.Mixed_6e = _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b = _E(1280, max_pool=False)
        self.Mixed_7c = _E(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor, layer: int = 2048) -> Tensor:
        """Return the spatial mean of a layer in `LAYERS`, shape (b, layer)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        if layer > 64:
            x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        if layer > 192:
            x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
            x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        if layer > 768:
            x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


class InceptionExtractor(Extractor):
    """FID's own features: images of 1, 3 or 4 channels in `levels` levels, any size.

    Grey is repeated to three channels; a fourth channel (alpha) is refused with DataError.
    """

    net: FIDInception
    name = "inception"
    resizer = "tf1-bilinear-299"
    classes = 1008

    def __init__(
        self, net: FIDInception, sha256: str, *, layer: int = 2048, levels: int = 256
    ) -> None:
        if layer not in LAYERS:
            raise ConfigError(f"layer = {layer} is none of {', '.join(map(str, LAYERS))}")
        self.net = net.eval().requires_grad_(False)
        self.sha256 = sha256
        self.layer = str(layer)
        self.dims = layer
        self.levels = levels

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, layer: int = 2048, levels: int = 256
    ) -> InceptionExtractor:
        """Read the official weights from `path`, $POIESIS_INCEPTION or ~/.cache/poiesis.

        Raises DataError, saying where it looked and how to get the file, if it is missing or other.
        """
        file = _find(path)
        try:
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"can't read {str(file)!r}: {error.strerror}") from None
        if not sha256.startswith(_SHA256_START):
            raise DataError(
                f"{str(file)!r} is not the official {WEIGHTS_FILE}: its SHA-256 begins with "
                f"{sha256[:8]}, not {_SHA256_START}; download it again from {_URL}"
            )
        net = FIDInception()
        try:
            net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except (RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{str(file)!r} holds no FID Inception weights: {reason}") from None
        return cls(net, sha256, layer=layer, levels=levels)

    def features(self, images: Tensor, *, batch_size: int = 32, progress: Any = None) -> Tensor:
        """Return features (n, dims); see `Extractor.features`. Some 10 images/s on one core."""
        return super().features(images, batch_size=batch_size, progress=progress)

    def head(self, features: Tensor) -> Tensor:
        """Return logits (n, 1008) of 2,048 features, without bias as the Inception Score asks."""
        if self.dims != 2048:
            raise ConfigError(f"layer {self.layer} has no logits: use the extractor inception")
        weight = self.net.fc.weight
        return F.linear(features.to(weight.device), weight).cpu()

    def _forward(self, images: Tensor) -> Tensor:
        x = images.float() * (255 / (self.levels - 1))
        x = resize_tf1(x.expand(-1, 3, -1, -1), 299)
        return self.net((x - 128) / 128, self.dims)

    def _check(self, images: Tensor) -> None:
        super()._check(images)
        if images.shape[1] not in (1, 3):
            raise DataError(
                f"images of {images.shape[1]} channels: the extractor 'inception' takes 1 or 3"
            )


def resize_tf1(x: Tensor, size: int) -> Tensor:
    """Resize (b, c, h, w) to size x size as TensorFlow 1's bilinear did: no half-pixel shift.

    Source row i·h/size in float32, between its floor and the next row inside; no antialiasing.
    """
    for dim in (2, 3):
        length = x.shape[dim]
        source = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        low = source.floor().long()
        high = (low + 1).clamp(max=length - 1)
        shape = (-1, 1) if dim == 2 else (-1,)
        part = (source - low).view(shape)
        first, second = x.index_select(dim, low), x.index_select(dim, high)
        x = first + (second - first) * part
    return x


def _find(path: str | Path | None) -> Path:
    cache = Path.home() / ".cache" / "poiesis" / WEIGHTS_FILE
    named = path or os.environ.get("POIESIS_INCEPTION")
    file = Path(named).expanduser() if named else cache
    if file.is_dir():
        file = file / WEIGHTS_FILE
    if not file.is_file():
        raise DataError(
            f"the FID Inception weights are not at {str(file)!r}: download {_URL} to "
            f"{str(cache)!r}, or set POIESIS_INCEPTION to where the file is"
        )
    return file
