"""R3GAN, a GAN without tricks: Huang, Gokaslan, Kuleshov & Tompkin, arXiv:2501.05441.

Its networks are piecewise linear, which makes its gradient penalties cheap (`discriminator_loss`).
Shape letters: b batch, c channels, h height, w width, z latent dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.config import check, check_each
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, Loss, Optim, Schedule, preset
from poiesis.models.gans.adversarial import Adversarial
from poiesis.models.gans.padding import padded_size, padded_view
from poiesis.models.gans.penalties import twice_differentiable
from poiesis.nn.labels import LabelEmbedding
from poiesis.spec import Condition, Spec, Vector

__all__ = ["R3GAN"]

SLOPE = 0.2
"""Of the leaky ReLU on its negative side."""
EXPANSION = 2
"""Channels inside a block by those between blocks."""


class R3GAN(Adversarial):
    """GAN without tricks: paired scores, penalties on real and fake, residual networks.

    Good at: steady training on images and vectors; covering every mode; sharp images in one pass.

    Not good at: likelihoods, encoding; the first seconds, in which a DCGAN is ahead.

    Cost: about five times a DCGAN's step, both by default; one pass to sample.

    Paper: Huang et al., The GAN is dead; long live the GAN! A Modern Baseline GAN,
    arXiv:2501.05441.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Adversarial.Config):
        """Options of R3GAN."""

        widths: tuple[int, ...] = (768, 768, 768, 768)
        """Channels of the generator at 4 px, 8 px, …, of vectors: units; the discriminator mirrors
        them."""
        blocks: int = 2
        """Residual blocks at each width."""
        group: int = 16
        """Channels that a 3x3 convolution looks at together (images)."""
        patch: int = 1
        """Side, in pixels, of what one position of the finest feature map stands for (images);
        above 1 a coarser network is several times faster."""
        latent_dim: int = 64
        loss: str = "relativistic"
        penalty: Literal["none", "clip", "gradient", "r1", "r2", "zero-centred"] = "zero-centred"
        penalty_weight: float = 0.05
        final_penalty_weight: float = 0.005
        """The penalty's factor at the end of a cosine."""
        beta1: float = 0.0
        beta2: float = 0.9
        final_beta2: float = 0.99
        """Second-moment decay at the end of a cosine."""
        final_lr: float = 0.25
        """Share of the learning rates that is left at the end of a cosine."""
        ema_images: float = 0.0
        """Images in which the averaged weights forget half, at the end of a cosine from 0; instead
        of `ema`."""
        final_augment: float | None = None
        """Probability of ada's changes at the end of a cosine from 0; none: adapted."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_each("widths", self.widths, low=1, high=8192, most=8, example="256,128,64")
            check("group", self.group, low=1, high=8192)
            for width in self.widths:
                if EXPANSION * width % self.group:
                    raise ConfigError(
                        f"widths = {self.widths}: twice {width} channels are no multiple of "
                        f"group = {self.group}"
                    )
            check("blocks", self.blocks, low=1, high=64)
            if self.patch not in (1, 2, 4, 8):
                raise ConfigError(f"patch = {self.patch} is not 1, 2, 4 or 8")
            check("final_penalty_weight", self.final_penalty_weight, low=0)
            check("final_beta2", self.final_beta2, low=0, high=0.99999)
            check("final_lr", self.final_lr, low=0, high=1)
            check("ema_images", self.ema_images, low=0)
            check("final_augment", self.final_augment, low=0, high=1)
            if self.auxiliary_weight:
                raise ConfigError("auxiliary_weight needs a classifier, which r3gan has not; set 0")
            if self.decay:
                raise ConfigError("decay = True is final_lr = 0 in r3gan; set that")

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """A network for minutes on a CPU: it sees images in patches."""
        common: dict[str, Any] = {"ema": 0.999, "blocks": 1}
        if isinstance(spec, Vector):
            # Sharp modes need a penalty that all but vanishes, and small steps at the end.
            return cls.Config(
                widths=(64, 64),
                latent_dim=min(64, 2 * spec.dims),
                generator_lr=2e-3,
                discriminator_lr=2e-3,
                final_lr=0.02,
                beta1=0.5,
                penalty_weight=0.01,
                final_penalty_weight=3e-5,
                batch_size=256,
                **common,
            )
        size = padded_size(spec, "r3gan")
        # Half as wide where positions are most, which takes a quarter of the time off.
        widths = {8: (64, 64), 16: (128, 128, 32), 32: (256, 128, 32)}.get(size, (256, 128, 64))
        patch = size // (4 * 2 ** (len(widths) - 1))
        if patch > 4:
            widths, patch = (256, 256, 128, 64), patch // 2
        return cls.Config(
            widths=widths,
            patch=patch,
            group=32,
            generator_lr=5e-4,
            discriminator_lr=5e-4,
            penalty_weight=1.0,
            final_penalty_weight=0.1,
            augment_images=50_000,
            **common,
        )

    @preset
    @classmethod
    def cifar10(cls, spec: Spec) -> Any:
        """The official network and schedules for CIFAR-10, by class: 20.8M and 21.3M parameters."""
        if padded_size(spec, "r3gan") != 32:
            raise ConfigError(f"preset cifar10 is for images of 17 to 32 px, not {spec}")
        return cls.Config(
            conditional=True,
            batch_size=512,
            ema_images=5e6,
            augment="ada",
            final_augment=0.55,
        )

    # -- data and networks -----------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return vectors as they are, images in [-1, 1] padded to a square of 2ⁿ px."""
        if isinstance(spec, Vector):
            return spec
        size = padded_size(spec, "r3gan")
        own = config.patch * 4 * 2 ** (len(config.widths) - 1)
        if own != size:
            raise ConfigError(
                f"widths = {config.widths} with patch = {config.patch} make {own} px, not the "
                f"{size} px of the data: twice per further width, times patch"
            )
        return padded_view(spec, size)

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        classes = self.condition.count if self.condition else 0
        self.generator = _Generator(config, spec, classes)
        self.discriminator = _Discriminator(config, spec, classes)

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for each network, whose rate and memory follow a cosine."""
        c = self.config
        rates = {"discriminator": c.discriminator_lr, "generator": c.generator_lr}
        return {
            name: Optim(
                kind=c.optimizer,
                networks=(name,),
                lr=lr,
                betas=(c.beta1, c.beta2),
                final_betas=(c.beta1, c.final_beta2) if c.optimizer == "adam" else None,
                schedule=Schedule(kind="cosine", final=c.final_lr),
            )
            for name, lr in rates.items()
        }

    def ema(self) -> Mapping[str, float]:
        """Average the generator."""
        c = self.config
        if not c.ema_images:
            return {"generator": c.ema}
        half_life = self._cosine(0.0, c.ema_images) / c.batch_size
        # At the start there is nothing worth remembering, but an average it is.
        return {"generator": max(0.5 ** (1 / max(half_life, 1e-2)), 1e-30)}

    def penalty_weight(self) -> float:
        """Return the factor of the gradient penalties, which follows a cosine."""
        return self._cosine(self.config.penalty_weight, self.config.final_penalty_weight)

    def augment_chance(self) -> float:
        """Return the probability of each of ada's changes: a cosine's or the adapted one."""
        final = self.config.final_augment
        return super().augment_chance() if final is None else self._cosine(0.0, final)

    # As in the official code: less colour, and holes besides.
    augment_factors: ClassVar[Mapping[str, float]] = {"colour": 0.5, "cutout": 1.0}

    def _cosine(self, begin: float, end: float) -> float:
        return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * self.progress))

    def discriminator_loss(self, batch: Batch, step: int) -> Loss:
        """Return the loss on a real and a fake sample with both penalties (b,).

        Its gradients are those of L(D(x)) + γ/2 ‖∇D(x)‖², without differentiating twice. Between
        the kinks of its leaky ReLUs, D is linear, but for constants c: D(x) = W x + c, W = ∇D(x).
        So with a = L'(D(x)) and v = ∇D(x), held fixed, the gradient by the parameters of

            W (a x + γ v) + a c

        is a times that of D(x) plus γ vᵀ∇(W) = ∇(γ/2 ‖W‖²). One more pass through D, its kinks as
        they were and its constants times a, takes the place of the backward pass through the
        backward pass and of the one through the loss.
        """
        c = self.config
        if c.penalty != "zero-centred" or c.penalty_every > 1:
            return super().discriminator_loss(batch, step)
        with torch.no_grad():
            fake = self._fake(batch).to(batch.x.dtype)
        x = torch.cat((batch.x, fake)).requires_grad_()
        label = batch.condition
        label = None if label is None else torch.cat((label, label))
        change = self.augmentation(x.shape, _Twice(batch), step)
        kinks = Kinks()
        with twice_differentiable():
            score = self.discriminator(change(x), label, kinks)
            (slope,) = torch.autograd.grad(score.sum(), x)
            score = score.detach().requires_grad_()
            real, fake = score.chunk(2)
            values = self._game(real, fake)
            (share,) = torch.autograd.grad(values.sum(), score)
            weight = self.penalty_weight()
            mixed = share.view(-1, *[1] * (x.dim() - 1)) * x.detach() + weight * slope
            kinks.share = share
            again = self.discriminator(change(mixed, share), label, kinks)
        squares = slope.flatten(1).square().sum(1)
        penalty = weight / 2 * torch.stack(squares.chunk(2)).sum(0)
        # The value of the loss, with the gradient of that last pass.
        gradient = torch.stack((again - again.detach()).chunk(2)).sum(0)
        logs = self._note(real.detach(), fake.detach())
        return values.detach() + penalty + gradient, {**logs, "penalty": penalty}


class _Twice:
    """Draws for a batch of real samples and as many fake ones behind them."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def rand(self, *shape: int) -> Tensor:
        return torch.cat((self.batch.rand(*shape), self.batch.rand(*shape)))

    def randn(self, *shape: int) -> Tensor:
        return torch.cat((self.batch.randn(*shape), self.batch.randn(*shape)))


# -- layers --------------------------------------------------------------------------------------


@dataclass
class Kinks:
    """On which side of its leaky ReLUs a pass through a network is, for a second, linear pass."""

    kept: list[Tensor] = field(default_factory=list)
    """Inputs of the leaky ReLUs, in their order."""
    share: Tensor | None = None
    """In the second pass: a factor of the biases for each sample, (b,)."""


def _map(
    a: int,
    b: int,
    spec: Spec,
    *,
    kernel: int = 1,
    groups: int = 1,
    gain: float = 1.0,
    bias: bool = False,
) -> Any:
    """Return a linear map of a to b numbers, on maps in each place, of N(0, gain² / inputs)."""
    if isinstance(spec, Vector):
        layer = nn.Linear(a, b, bias=bias)
    else:
        layer = nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        # With few inputs, kinks that all run through 0 would miss most of the data.
        nn.init.normal_(layer.bias, std=gain if isinstance(spec, Vector) else 0.0)
    return layer


class _Layer(nn.Module):
    """A linear map with a bias, then a leaky ReLU."""

    def __init__(self, linear: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor, kinks: Kinks | None = None) -> Tensor:
        if kinks is None or kinks.share is None:
            h = self.linear(x)
            if kinks is not None:
                kinks.kept.append(h.detach())
            return F.leaky_relu(h, SLOPE)
        layer = self.linear
        if isinstance(layer, nn.Linear):
            h = F.linear(x, layer.weight)
        else:
            h = F.conv2d(x, layer.weight, padding=layer.padding, groups=layer.groups)
        assert layer.bias is not None
        constants = kinks.share[:, None] * layer.bias
        h = h + constants.to(h.dtype).view(*constants.shape, *[1] * (h.dim() - 2))
        # The derivative of a leaky ReLU at the kept input, times h.
        return torch.ops.aten.leaky_relu_backward(h, kinks.kept.pop(0), SLOPE, False)


class _Residual(nn.Module):
    """x + (1x1, grouped 3x3, 1x1), of vectors x + three dense layers; x itself at first."""

    def __init__(self, width: int, group: int, gain: float, spec: Spec) -> None:
        super().__init__()
        inside = EXPANSION * width
        self.first = _Layer(_map(width, inside, spec, gain=gain, bias=True))
        groups = inside // group
        self.middle = _Layer(
            _map(inside, inside, spec, kernel=3, groups=groups, gain=gain, bias=True)
        )
        self.last = _map(inside, width, spec, gain=0.0)

    def forward(self, x: Tensor, kinks: Kinks | None = None) -> Tensor:
        return x + self.last(self.middle(self.first(x, kinks), kinks))


class _Resize(nn.Module):
    """Change the size of maps by 2 with the filter [1, 2, 1], and their channels."""

    def __init__(self, a: int, b: int, spec: Spec, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.maps = not isinstance(spec, Vector)
        self.linear = _map(a, b, spec) if a != b else None

    def forward(self, x: Tensor, kinks: Kinks | None = None) -> Tensor:
        if self.linear is not None and self.up:
            x = self.linear(x)
        if self.maps:
            x = _along(_along(x, 2, self.up), 3, self.up)
        if self.linear is not None and not self.up:
            x = self.linear(x)
        return x


@functools.lru_cache(maxsize=32)
def _halving(n: int, device: torch.device) -> Tensor:
    """Return the matrix (n/2, n) that averages 2n values with [1, 2, 1] * [1, 1] = [1, 3, 3, 1]."""
    matrix = torch.zeros(n // 2, n + 2)
    for k, weight in enumerate((1, 3, 3, 1)):
        matrix[torch.arange(n // 2), 2 * torch.arange(n // 2) + k] = weight / 8
    return matrix[:, 1:-1].contiguous().to(device)


def _along(x: Tensor, axis: int, up: bool) -> Tensor:
    """Halve or double an axis of maps (b, c, h, w), outside of which they are 0.

    As a matrix product: unlike that of a convolution by channels, its backward pass is fast.
    """
    n = x.shape[axis]
    matrix = 2 * _halving(2 * n, x.device).T if up else _halving(n, x.device)
    matrix = matrix.to(x.dtype)  # exact, also in bf16
    if not x.is_contiguous(memory_format=torch.channels_last):
        return matrix @ x if axis == 2 else x @ matrix.T
    x = x.permute(0, 2, 3, 1)  # (b, h, w, c), as it lies in memory
    b, h, w, c = x.shape
    if axis == 2:
        y = (matrix @ x.reshape(b, h, w * c)).view(b, -1, w, c)
    else:
        y = (matrix @ x.reshape(b * h, w, c)).view(b, h, -1, c)
    return y.permute(0, 3, 1, 2)


def _stages(config: R3GAN.Config, spec: Spec, *, up: bool) -> nn.ModuleList:
    """Return the residual blocks at each width, and what leads from one to the next."""
    widths = config.widths if up else config.widths[::-1]
    # He's gain of a leaky ReLU, and a residual branch of three layers' share of the variance
    # (arXiv:1901.09321, eq. 9): all branches together then change the scale as much as one.
    branches = config.blocks * len(widths)
    gain = math.sqrt(2 / (1 + SLOPE**2)) * branches ** (-1 / 4)
    layers = nn.ModuleList()
    for i, width in enumerate(widths):
        if i:
            layers.append(_Resize(widths[i - 1], width, spec, up=up))
        layers += [_Residual(width, config.group, gain, spec) for _ in range(config.blocks)]
    return layers


class _Generator(nn.Module):
    """z (b, z) → data (b, *shape); in training not bounded, otherwise in the view's range."""

    def __init__(self, config: R3GAN.Config, spec: Any, classes: int) -> None:
        super().__init__()
        self.spec, self.patch = spec, config.patch
        z, width = config.latent_dim, config.widths[0]
        self.label = LabelEmbedding(classes, z) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=1 / math.sqrt(classes))
        flat = Vector(features=1)
        self.first = _map(2 * z if classes else z, width, flat)
        self.basis = None if isinstance(spec, Vector) else nn.Parameter(torch.randn(width, 4, 4))
        self.stages = _stages(config, spec, up=True)
        out = spec.dims if isinstance(spec, Vector) else spec.channels * config.patch**2
        self.last = _map(config.widths[-1], out, spec)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        if self.label is not None:
            assert label is not None
            z = torch.cat((z, self.label(label)), dim=1)
        if self.basis is None:
            # Vectors are cheap, and points in a plane need more digits than bf16 has.
            with torch.autocast(z.device.type, enabled=False):
                x = self._grown(self.first(z.to(self.first.weight.dtype)))
        else:
            x = self._grown(self.first(z)[:, :, None, None] * self.basis)
            x = F.pixel_shuffle(x, self.patch) if self.patch > 1 else x
        if self.training or self.spec.domain == "real":
            return x
        return x.clamp(-1 if self.spec.domain == "signed" else 0, 1)

    def _grown(self, h: Tensor) -> Tensor:
        for stage in self.stages:
            h = stage(h)
        return self.last(h)


class _Discriminator(nn.Module):
    """Data (b, *shape) → logits (b,), float32. Classes enter by the product with their vector."""

    def __init__(self, config: R3GAN.Config, spec: Any, classes: int) -> None:
        super().__init__()
        self.patch = config.patch
        maps = not isinstance(spec, Vector)
        ways = spec.channels * config.patch**2 if maps else spec.dims
        # The first layer sets how fine a structure of vectors is seen early on; a twentieth of
        # their spread, as of modes in a plane, needs about this.
        self.first = _map(ways, config.widths[-1], spec, gain=1.0 if maps else 4.0)
        self.stages = _stages(config, spec, up=False)
        width = config.widths[0]
        self.basis = nn.Parameter(torch.randn(width, 4, 4) / 4) if maps else None
        self.last = _map(width, width if classes else 1, Vector(features=1))
        self.label = LabelEmbedding(classes, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=1 / math.sqrt(width * classes))

    def forward(self, x: Tensor, label: Tensor | None, kinks: Kinks | None = None) -> Tensor:
        """Return logits; kinks: empty to keep them, kept ones for a linear pass."""
        if self.basis is None:
            with torch.autocast(x.device.type, enabled=False):
                x = x.to(self.last.weight.dtype)
                return self._score(self._features(x, kinks), label)
        x = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        h = self._features(x, kinks)
        with torch.autocast(x.device.type, enabled=False):
            return self._score((h * self.basis).sum((2, 3)), label)

    def _features(self, x: Tensor, kinks: Kinks | None) -> Tensor:
        h = self.first(x)
        for stage in self.stages:
            h = stage(h, kinks)
        return h

    def _score(self, h: Tensor, label: Tensor | None) -> Tensor:
        h = self.last(h)
        return h.squeeze(1) if self.label is None else (h * self.label(label)).sum(1)
