"""Augmentation of what a discriminator sees: DiffAugment (2006.10738) and ADA (2006.06676).

Both change real and generated images alike, so that the generator learns the images and not their
changes. A `Transform` has its random numbers drawn and is then a pure function, affine in the
images, which gradients pass twice (R1 and R2 need that). Shapes: images (b, c, h, w) in [-1, 1],
any number of channels and any size; results are float32, also under autocast. Numbers come from a
batch or from `Draws`, so a resumed run repeats them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from poiesis import processes

__all__ = [
    "Adaptation",
    "Source",
    "Transform",
    "ada",
    "blit",
    "cut",
    "diffaugment",
    "hue",
    "noised",
    "recolour",
    "same",
    "shift",
    "warp",
]


class Transform(Protocol):
    """A change of data (b, …) that is affine: linear, plus constants."""

    def __call__(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """Return changed data; share: a factor of the constants for each sample, (b,), or 1."""
        ...


ADAPT_EVERY = 4
"""Batches between two adaptations (2006.06676, section 3.1)."""

# The coefficients of the orthogonal wavelet sym6 (Daubechies, Ten Lectures on Wavelets, table 6.3),
# with which ADA resamples (2006.06676, appendix B).
_SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_MIDDLE = len(_SYM6) // 2 - 1
_LATE = sum(k * weight for k, weight in enumerate(_SYM6)) / sum(_SYM6) - _MIDDLE - 0.5
"""How far, in pixels of the magnified image, it moves what has no detail: no wavelet but the
shortest is symmetric."""


class Source(Protocol):
    """What numbers are drawn from: a batch, `Draws` or `Noise`."""

    def rand(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), (b, *shape)."""
        ...

    def randn(self, *shape: int) -> Tensor:
        """Standard normal draws, (b, *shape)."""
        ...


def same(x: Tensor, share: Tensor | None = None) -> Tensor:
    """Return x itself: the `Transform` that changes nothing."""
    return x


def noised(before: Transform, noise: Tensor) -> Transform:
    """Return the change `before`, and then noise (b, …) added."""
    return lambda x, share=None: before(x, share) + _scaled(noise, share)


def _scaled(constant: Tensor, share: Tensor | None) -> Tensor:
    """Return a constant (b, …) times each sample's share (b,)."""
    return constant if share is None else constant * share.view(-1, *[1] * (constant.dim() - 1))


def _real(x: Tensor) -> Tensor:
    """Return x in float32, or float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()


# -- DiffAugment -----------------------------------------------------------------------------------


def diffaugment(shape: Sequence[int], draws: Source) -> Transform:
    """Draw DiffAugment's changes of images of shape (b, c, h, w): colour, translation, cutout.

    Brightness by ±0.5, saturation by 0 to 2, contrast by 0.5 to 1.5; a shift by up to an eighth
    of the size, filled with 0; a square of half the size set to 0 (2006.10738, section 4.1).
    """
    _, _, h, w = shape
    u = draws.rand(7)
    colour = u[:, :3]
    most = torch.tensor((int(h / 8 + 0.5), int(w / 8 + 0.5)), device=u.device)
    by = (u[:, 3:5] * (2 * most + 1)).long() - most
    hole = (int(h / 2 + 0.5), int(w / 2 + 0.5))
    size = torch.tensor((h, w), device=u.device)
    odd = torch.tensor([1 - side % 2 for side in hole], device=u.device)
    centre = (u[:, 5:7] * (size + odd)).long()

    def transform(x: Tensor, share: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = _real(x)
            brightness, saturation, contrast = (v[:, None, None, None] for v in colour.unbind(1))
            x = x + _scaled(brightness - 0.5, share)
            grey = x.mean(1, keepdim=True)
            x = (x - grey) * (2 * saturation) + grey
            mean = x.mean((1, 2, 3), keepdim=True)
            x = (x - mean) * (contrast + 0.5) + mean
            return cut(shift(x, by), centre - torch.tensor(hole, device=x.device) // 2, hole)

    return transform


def shift(x: Tensor, by: Tensor) -> Tensor:
    """Shift images by whole pixels (down, right), int64 (b, 2); what comes in is 0."""
    b, _, h, w = x.shape
    rows = torch.arange(h, device=x.device) - by[:, :1]
    columns = torch.arange(w, device=x.device) - by[:, 1:]
    inside = _product((rows >= 0) & (rows < h), (columns >= 0) & (columns < w))
    flat = rows.clamp(0, h - 1)[:, :, None] * w + columns.clamp(0, w - 1)[:, None, :]
    flat = flat.view(b, 1, h * w).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, flat).view_as(x) * inside


def cut(x: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """Set a rectangle of `size` (height, width) to 0; corner: its top left, int64 (b, 2)."""
    rows = torch.arange(x.shape[2], device=x.device) - corner[:, :1]
    columns = torch.arange(x.shape[3], device=x.device) - corner[:, 1:]
    hole = _product((rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1]))
    return x * ~hole


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the mask (b, 1, h, w) of positions in the chosen rows (b, h) and columns (b, w)."""
    return (rows[:, :, None] & columns[:, None, :])[:, None]


# -- ADA -------------------------------------------------------------------------------------------


def ada(
    shape: Sequence[int], p: float, draws: Source, *, colour: float = 1.0, cutout: float = 0.0
) -> Transform:
    """Draw ADA's changes of images of shape (b, c, h, w), each with probability p.

    The pipe of 2006.06676, appendix B: blits of pixels (mirroring, quarter turns, whole shifts up
    to an eighth), geometry (scale, rotation, stretch, shift), colour (brightness, contrast,
    reflection of luma, hue, saturation). colour, cutout: factors of p for colour and for a hole of
    half the size. Where content ends, its mirror image goes on. At p = 0 the images themselves come
    back, and nothing is drawn.
    """
    if p <= 0:
        return same
    _, c, h, w = shape
    uniform, normal = draws.rand(24), draws.randn(7)
    u, n = iter(uniform.unbind(1)), iter(normal.unbind(1))
    device = uniform.device
    size = torch.tensor((w, h), dtype=torch.float32, device=device)  # in the order x, y

    def chosen(chance: float, value: Tensor, default: float) -> Tensor:
        gate = (next(u) < chance).view(-1, *(1,) * (value.dim() - 1))
        return torch.where(gate, value, default)

    mirror = chosen(p, (next(u) * 2).floor(), 0)
    # Quarter turns of what is not square would leave its grid of pixels.
    quarters = (next(u) * 4).floor() if h == w else (next(u) * 2).floor() * 2
    quarters = chosen(p, quarters, 0)
    move = torch.stack((next(u), next(u)), 1) * 0.25 - 0.125
    by = chosen(p, (move * size).round(), 0)
    blitting = _about(1 - 2 * mirror, torch.ones_like(mirror)) @ _turn(quarters)
    blitting = torch.cat((blitting, -blitting @ by[:, :, None]), 2)

    p_turn = 1 - math.sqrt(1 - min(p, 1.0))  # of two rotations: then one or both have probability p
    scale = chosen(p, (next(n) * 0.2).exp2(), 1)
    first = chosen(p_turn, (next(u) * 2 - 1) * 2, 0)
    stretch = chosen(p, (next(n) * 0.2).exp2(), 1)
    second = chosen(p_turn, (next(u) * 2 - 1) * 2, 0)
    by = chosen(p, torch.stack((next(n), next(n)), 1) * 0.125, 0) * size
    warping = _about(1 / scale, 1 / scale) @ _turn(first)
    warping = warping @ _about(1 / stretch, stretch) @ _turn(second)
    warping = torch.cat((warping, -warping @ by[:, :, None]), 2)

    brightness = chosen(p * colour, next(n) * 0.2, 0)
    contrast = chosen(p * colour, (next(n) * 0.5).exp2(), 1)
    flip = chosen(p * colour, (next(u) * 2).floor(), 0)
    angle = chosen(p * colour, (next(u) * 2 - 1) * math.pi, 0)
    saturation = chosen(p * colour, next(n).exp2(), 1)
    one, luma = torch.eye(c, device=device), torch.full((c, c), 1 / c, device=device)
    f, s, k = (v[:, None, None] for v in (flip, saturation, contrast))
    matrix = (s * (one - luma) + luma) @ hue(angle, c) @ (one - 2 * f * luma) * k
    offset = matrix.sum(2) * brightness[:, None]

    hole = (int(h / 2 + 0.5), int(w / 2 + 0.5))
    centre = torch.stack((next(u) * h, next(u) * w), 1)
    corner = (centre - torch.tensor(hole, device=device) / 2).round().long()
    holes = next(u) < p * cutout

    still = torch.eye(2, 3, device=device)
    changes: Any = (
        ((blitting != still).any(2).any(1), blit, (blitting,)),
        ((warping != still).any(2).any(1), warp, (warping,)),
        ((matrix != one).any(2).any(1) | (offset != 0).any(1), recolour, (matrix, offset)),
        (holes, lambda x, at: cut(x, at, hole), (corner,)),
    )
    # Only images that change cost something.
    steps = [(rows.nonzero().flatten(), change, numbers) for rows, change, numbers in changes]

    def transform(x: Tensor, share: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = _real(x)
            for rows, change, numbers in steps:
                if len(rows):
                    own = [v[rows] for v in numbers]
                    if change is recolour:
                        own[1] = _scaled(own[1], None if share is None else share[rows])
                    x = x.index_copy(0, rows, change(x[rows], *own))
            return x

    return transform


def _about(x: Tensor, y: Tensor) -> Tensor:
    """Return matrices that scale by x and y, (b, 2, 2)."""
    return torch.diag_embed(torch.stack((x, y), 1))


def _turn(quarters: Tensor) -> Tensor:
    """Return rotations by this many quarter turns, (b, 2, 2); exact where that is whole."""
    whole = quarters.round()
    rest = (quarters - whole) * (math.pi / 2)
    table = torch.tensor([1.0, 0.0, -1.0, 0.0], device=quarters.device)
    cos, sin = table[whole.long() % 4], table[(whole.long() - 1) % 4]
    cos, sin = cos * rest.cos() - sin * rest.sin(), sin * rest.cos() + cos * rest.sin()
    return torch.stack((cos, -sin, sin, cos), 1).view(-1, 2, 2)


def blit(x: Tensor, matrix: Tensor) -> Tensor:
    """Move pixels: as `warp`, of mirroring, quarter turns and whole shifts; values stay."""
    return _lookup(x, matrix, mode=_NEAREST)


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Warp images: of which point (x, y) of the input an output point shows the content.

    matrix: (b, 2, 3), output to input, in pixels from the centre; the y axis points down. Images
    are magnified twofold by the wavelet sym6, looked up linearly and reduced (appendix B).
    """
    (up_h, down_h), (up_w, down_w) = (_resampling(n, x.device, x.dtype) for n in x.shape[2:])
    y = up_h @ x @ up_w.T
    linear, by = matrix[:, :, :2], matrix[:, :, 2:]
    # All content is late by the same, whichever way it is turned.
    by = 2 * by + _LATE * (1 - linear.sum(2, keepdim=True))
    return down_h @ _lookup(y, torch.cat((linear, by), 2), mode=_BILINEAR) @ down_w.T


def recolour(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Return matrix · x + offset in each pixel; matrix (b, c, c), offset (b, c)."""
    return torch.baddbmm(offset[:, :, None].to(x), matrix.to(x), x.flatten(2)).view_as(x)


def hue(angle: Tensor, channels: int) -> Tensor:
    """Return rotations of colours about the grey axis, (b, c, c); only three channels have a hue.

    Rodrigues' formula about (1, 1, 1) / √3; radians, (b,).
    """
    one = torch.eye(channels, device=angle.device).expand(len(angle), -1, -1)
    if channels != 3:
        return one
    around = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * one + sin / math.sqrt(3) * around + (1 - cos) / 3


@functools.lru_cache(maxsize=32)
def _resampling(n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return matrices that magnify n values twofold, (2n, n), and reduce them again, (n, 2n)."""
    up, down = torch.zeros(2 * n, n, dtype=torch.float64), torch.zeros(n, 2 * n).double()

    def mirrored(i: int, length: int) -> int:
        i %= 2 * length
        return i if i < length else 2 * length - 1 - i

    for k, weight in enumerate(_SYM6):
        for i in range(-len(_SYM6), n + len(_SYM6)):
            if 0 <= 2 * i + k - _MIDDLE < 2 * n:
                up[2 * i + k - _MIDDLE, mirrored(i, n)] += weight * math.sqrt(2)
        for i in range(n):
            down[i, mirrored(2 * i + k - _MIDDLE, 2 * n)] += weight / math.sqrt(2)
    return up.to(device, dtype), down.to(device, dtype)


# -- looking up ------------------------------------------------------------------------------------

_BILINEAR, _NEAREST, _REFLECTION = 0, 1, 2  # torch's own numbers of them


def _lookup(x: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Look up images (b, c, h, w) at matrix · (output point), pixels from the centre."""
    h, w = x.shape[2:]
    half = torch.tensor((w / 2, h / 2), device=x.device, dtype=x.dtype)
    there = torch.cat((half, half.new_ones(1)))
    grid = nn.functional.affine_grid(
        matrix.to(x) * there / half[:, None], list(x.shape), align_corners=False
    )
    return _Lookup.apply(x, grid, mode)  # pyright: ignore[reportReturnType]


class _Lookup(torch.autograd.Function):
    """Images at the points of a grid (b, h, w, 2); linear in the images.

    torch's own can be differentiated once, this one as often as wanted.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor, mode: int) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.mode, ctx.shape = mode, x.shape
        return torch.grid_sampler_2d(x, grid, mode, _REFLECTION, False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradients[0], grid, ctx.mode, ctx.shape), None, None


class _Spread(torch.autograd.Function):
    """The transpose of `_Lookup`: adds what stands at the points to the images' pixels."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grid: Tensor, mode: int, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.mode = mode
        x = y.new_empty(shape)  # only its shape matters, the grid gets no gradient
        spread, _ = torch.ops.aten.grid_sampler_2d_backward(
            y, x, grid, mode, _REFLECTION, False, [True, False]
        )
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return _Lookup.apply(gradients[0], grid, ctx.mode), None, None, None


# -- how much --------------------------------------------------------------------------------------


class Adaptation(nn.Module):
    """ADA's probability p, led by how sure the discriminator is of real images (section 3.1).

    r_t, the mean sign of D(real), is 0 where D does not overfit and 1 where it fully does. Every
    fourth batch moves p up if r_t is above the target, else down, at a pace that takes it from 0
    to 1 in `images` images. All state is in buffers.
    """

    p: Tensor
    r_t: Tensor
    sums: Tensor

    def __init__(self, *, target: float = 0.6, images: float = 500_000) -> None:
        super().__init__()
        self.target = target
        self.images = images
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("r_t", torch.zeros(()))
        self.register_buffer("sums", torch.zeros(2))  # of signs, of images since the last move

    @torch.no_grad()
    def note(self, real: Tensor) -> None:
        """Take in the logits of real images, (b,), where 0 is what parts real from fake."""
        sums = torch.stack((real.float().sign().sum(), real.new_tensor(len(real)).float()))
        processes.sum_([sums])
        self.sums += sums

    @torch.no_grad()
    def after_batch(self, step: int) -> None:
        """Move p after 0-based batch `step`, if it is due."""
        signs, count = self.sums.unbind()
        if (step + 1) % ADAPT_EVERY or not count:
            return
        self.r_t.copy_(signs / count)
        self.p += (self.r_t - self.target).sign() * count / self.images
        self.p.clamp_(0, 1)
        self.sums.zero_()
