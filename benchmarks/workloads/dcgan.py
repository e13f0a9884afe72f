"""Training a DCGAN at 64 px, against the loop that tutorials show."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from poiesis.models.gans.dcgan import DCGAN
from poiesis.models.trained import build
from workloads.common import OURS, Gate, Side, Workload, engine_step, image_data

__all__ = ["WORKLOADS"]

BATCH, WIDTH, LATENT = 64, 64, 100


def ours(device: torch.device) -> Callable[[], Any]:
    """Our engine on the same widths, without averaged weights, which the loop has not either."""
    data = image_data(512, 3, 64)
    config = DCGAN.Config(
        widths=(8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH), latent_dim=LATENT, batch_size=BATCH
    )
    return engine_step(build(DCGAN, config, data.spec, None, device=device), data)


def _generator() -> nn.Sequential:
    widths = [LATENT, 8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        stride, padding = (2, 1) if i else (1, 0)
        layers += [
            nn.ConvTranspose2d(a, b, 4, stride, padding, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1, bias=False), nn.Tanh())


def _discriminator() -> nn.Sequential:
    widths = [3, WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Conv2d(a, b, 4, 2, 1, bias=False))
        if i:
            layers.append(nn.BatchNorm2d(b))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    return nn.Sequential(*layers, nn.Conv2d(8 * WIDTH, 1, 4, bias=False), nn.Flatten(0))


def plain_loop(device: torch.device) -> Callable[[], Any]:
    """Real, fake, then generator, with default Adam, in float32: no tricks."""
    generator, discriminator = _generator().to(device), _discriminator().to(device)
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for net in (generator, discriminator)
    )
    bce = nn.BCEWithLogitsLoss()
    real = torch.rand(BATCH, 3, 64, 64, device=device) * 2 - 1
    ones, zeros = torch.ones(BATCH, device=device), torch.zeros(BATCH, device=device)

    def step() -> None:
        discriminator.zero_grad()
        bce(discriminator(real), ones).backward()
        fake = generator(torch.randn(BATCH, LATENT, 1, 1, device=device))
        bce(discriminator(fake.detach()), zeros).backward()
        adam_d.step()
        generator.zero_grad()
        bce(discriminator(fake), ones).backward()
        adam_g.step()

    return step


WORKLOADS = [
    Workload(
        name="dcgan-train",
        title="DCGAN 64 px, ngf = ndf = 64, batch 64, training",
        unit="img/s",
        items=BATCH,
        sides={OURS: Side(build=ours), "plain loop fp32": Side(build=plain_loop)},
        gates=[Gate(against="plain loop fp32", factor=2.5)],
        memory=3,
    )
]
