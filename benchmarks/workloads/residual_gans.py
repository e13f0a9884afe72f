"""Training residual GANs at 32 px, against plain loops of the same networks.

The loops are float32 and contiguous, with torch's own spectral norm, and do what papers write:
upsample, then convolve; the gradient penalty through a gradient of the gradient. Both sides step
the critic once to one step of the generator and keep no averaged weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from poiesis.models.gans.biggan import BigGAN
from poiesis.models.gans.sngan import SNGAN
from poiesis.models.gans.wgan_gp import WGANGP
from poiesis.models.trained import build
from workloads.common import OURS, Gate, Side, Workload, engine_step, image_data

__all__ = ["WORKLOADS"]

BATCH, LATENT, CLASSES = 64, 128, 10
PLAIN = "plain loop fp32"

Layer = Callable[..., nn.Module]


def ours(cls: Any, preset: str, device: torch.device, *, classes: int = 0) -> Callable[[], Any]:
    """Our engine on the networks of a preset."""
    data = image_data(512, 3, 32, classes)
    config = dataclasses.replace(
        cls.preset(preset, data.spec), critic_steps=1, batch_size=BATCH, ema=0.0
    )
    return engine_step(build(cls, config, data.spec, data.condition, device=device), data)


# -- the networks as papers draw them ------------------------------------------------------------


class _Norm(nn.Module):
    """BatchNorm; of classes each has its own gains."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=not classes)
        if classes:
            self.gain, self.bias = (nn.Embedding(classes, width) for _ in range(2))
        self.classes = classes

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm(x)
        if not self.classes:
            return x
        return (1 + self.gain(y))[:, :, None, None] * x + self.bias(y)[:, :, None, None]


class _Up(nn.Module):
    def __init__(self, a: int, b: int, classes: int, wrap: Layer) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(a, classes), _Norm(b, classes)
        self.conv1 = wrap(nn.Conv2d(a, b, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(b, b, 3, padding=1))
        self.shortcut = wrap(nn.Conv2d(a, b, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, y)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, y)))
        return h + self.shortcut(F.interpolate(x, scale_factor=2))


class _Generator(nn.Module):
    def __init__(self, widths: tuple[int, ...], classes: int, wrap: Layer) -> None:
        super().__init__()
        self.input = wrap(nn.Linear(LATENT, 16 * widths[0]))
        self.blocks = nn.ModuleList(_Up(a, b, classes, wrap) for a, b in itertools.pairwise(widths))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.output = wrap(nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.input(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            h = block(h, y)
        return self.output(F.relu(self.norm(h))).tanh()


class _Down(nn.Module):
    def __init__(self, a: int, b: int, wrap: Layer, *, first: bool, halve: bool) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = wrap(nn.Conv2d(a, b, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(b, b, 3, padding=1))
        self.shortcut = wrap(nn.Conv2d(a, b, 1)) if halve or a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        x = self.shortcut(x)
        return F.avg_pool2d(h, 2) + F.avg_pool2d(x, 2) if self.halve else h + x


class _Discriminator(nn.Module):
    def __init__(
        self, widths: tuple[int, ...], halved: int, classes: int, wrap: Layer, *, mean: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                _Down(a, b, wrap, first=i == 0, halve=i < halved)
                for i, (a, b) in enumerate(itertools.pairwise((3, *widths)))
            )
        )
        self.output = wrap(nn.Linear(widths[-1], 1))
        self.label = wrap(nn.Embedding(classes, widths[-1])) if classes else None
        self.mean = mean

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.blocks(x))
        h = h.mean((2, 3)) if self.mean else h.sum((2, 3))
        logit = self.output(h).flatten()
        return logit if self.label is None else logit + (self.label(y) * h).sum(1)


# -- the loops -----------------------------------------------------------------------------------


def _plain(module: nn.Module) -> nn.Module:
    return module


def hinge_loop(
    device: torch.device, classes: int, generator: nn.Module, discriminator: nn.Module
) -> Callable[[], Any]:
    """Hinge loss; the critic on real and fake, then the generator."""
    g, d = generator.to(device), discriminator.to(device)
    adam_g, adam_d = (torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.0, 0.9)) for n in (g, d))
    real = torch.rand(BATCH, 3, 32, 32, device=device) * 2 - 1
    y = torch.arange(BATCH, device=device) % max(1, classes)

    def step() -> None:
        d.zero_grad()
        fake = g(torch.randn(BATCH, LATENT, device=device), y).detach()
        (F.relu(1 - d(real, y)).mean() + F.relu(1 + d(fake, y)).mean()).backward()
        adam_d.step()
        g.zero_grad()
        (-d(g(torch.randn(BATCH, LATENT, device=device), y), y).mean()).backward()
        adam_g.step()

    return step


def sngan_loop(device: torch.device) -> Callable[[], Any]:
    """SNGAN's networks: spectral norm in the discriminator."""
    return hinge_loop(
        device,
        0,
        _Generator((256,) * 4, 0, _plain),
        _Discriminator((128,) * 4, 2, 0, spectral_norm, mean=False),
    )


def biggan_loop(device: torch.device) -> Callable[[], Any]:
    """BigGAN's networks for CIFAR-10: spectral norm in both, classes in both."""
    return hinge_loop(
        device,
        CLASSES,
        _Generator((256,) * 4, CLASSES, spectral_norm),
        _Discriminator((256,) * 4, 2, CLASSES, spectral_norm, mean=False),
    )


def wgan_gp_loop(device: torch.device) -> Callable[[], Any]:
    """WGAN-GP's networks; its penalty differentiates the critic twice."""
    g = _Generator((256,) * 4, 0, _plain).to(device)
    d = _Discriminator((128,) * 4, 2, 0, _plain, mean=True).to(device)
    adam_g, adam_d = (torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.0, 0.9)) for n in (g, d))
    real = torch.rand(BATCH, 3, 32, 32, device=device) * 2 - 1
    y = torch.zeros(BATCH, dtype=torch.long, device=device)

    def step() -> None:
        d.zero_grad()
        fake = g(torch.randn(BATCH, LATENT, device=device), y).detach()
        share = torch.rand(BATCH, 1, 1, 1, device=device)
        mixed = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(d(mixed, y).sum(), mixed, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        (d(fake, y).mean() - d(real, y).mean() + 10 * penalty).backward()
        adam_d.step()
        g.zero_grad()
        (-d(g(torch.randn(BATCH, LATENT, device=device), y), y).mean()).backward()
        adam_g.step()

    return step


def _workload(
    name: str, title: str, cls: Any, preset: str, loop: Any, factor: float, classes: int = 0
) -> Workload:
    def build_ours(device: torch.device) -> Callable[[], Any]:
        return ours(cls, preset, device, classes=classes)

    return Workload(
        name=f"{name}-train",
        title=f"{title} at 32 px, batch {BATCH}, training",
        unit="img/s",
        items=BATCH,
        sides={OURS: Side(build=build_ours), PLAIN: Side(build=loop)},
        gates=[Gate(against=PLAIN, factor=factor)],
    )


WORKLOADS = [
    _workload("sngan", "SNGAN, 256 and 128 channels", SNGAN, "paper", sngan_loop, 2.3),
    _workload("biggan", "BigGAN, 10 classes", BigGAN, "cifar10", biggan_loop, 2.3, CLASSES),
    _workload("wgan-gp", "WGAN-GP, 256 and 128 channels", WGANGP, "paper", wgan_gp_loop, 1.7),
]
