"""Plain float32 training loops as textbooks and tutorials write them, to compare with.

DCGAN: Radford et al., arXiv:1511.06434, at 32 px. DDPM: Ho et al., arXiv:2006.11239, with a small
U-Net of 32, 64 and 128 channels. Everything is written out plainly: no averaged weights, no
schedule of the step size, contiguous tensors, default Adam. Images are (n, 1, 32, 32) in [-1, 1].
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TEXTBOOKS", "DCGANLoop", "DDPMLoop", "fit"]

SAVE_EVERY = 60.0
"""Seconds between two saved states."""


class DCGANLoop:
    """DCGAN with 256, 128 and 64 channels; binary cross-entropy, Adam 2e-4 (0.5, 0.999)."""

    batch_size = 128

    def __init__(self) -> None:
        self.nets = nn.ModuleDict({"generator": _generator(), "discriminator": _discriminator()})
        for module in self.nets.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for net in self.nets.values()
        ]

    def step(self, real: Tensor) -> None:
        """Train the discriminator on real and fake images, then the generator."""
        g, d = self.nets["generator"], self.nets["discriminator"]
        opt_g, opt_d = self.optimizers
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        opt_d.zero_grad()
        fake = g(torch.randn(len(real), 100, 1, 1))
        F.binary_cross_entropy_with_logits(d(real).flatten(), ones).backward()
        F.binary_cross_entropy_with_logits(d(fake.detach()).flatten(), zeros).backward()
        opt_d.step()
        opt_g.zero_grad()
        F.binary_cross_entropy_with_logits(d(fake).flatten(), ones).backward()
        opt_g.step()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Return n images; batch norm by its running averages."""
        self.nets.eval()
        z = torch.randn(n, 100, 1, 1)
        return torch.cat([self.nets["generator"](part) for part in z.split(250)])


def _generator() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(100, 256, 4, 1, 0, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 1, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def _discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 1, 4, 1, 0, bias=False),
    )


class DDPMLoop:
    """DDPM: 1,000 levels, linear betas, predicts the noise; Adam 2e-4."""

    batch_size = 64
    levels = 1000
    steps = 50
    """Of the sampler, DDIM (arXiv:2010.02502): all 1,000 levels would take an hour for 2,000."""

    def __init__(self) -> None:
        self.nets = nn.ModuleDict({"unet": _UNet((32, 64, 128))})
        self.optimizers = [torch.optim.Adam(self.nets.parameters(), lr=2e-4)]
        betas = torch.linspace(1e-4, 0.02, self.levels, dtype=torch.float64)
        self.kept = (1 - betas).cumprod(0).float()

    def step(self, real: Tensor) -> None:
        """Predict the noise at a random level, mean squared error."""
        t = torch.randint(0, self.levels, (len(real),))
        noise = torch.randn_like(real)
        kept = self.kept[t][:, None, None, None]
        noisy = kept.sqrt() * real + (1 - kept).sqrt() * noise
        loss = F.mse_loss(self.nets["unet"](noisy, t), noise)
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Return n images by DDIM without noise; the clean estimate is clamped at each step."""
        self.nets.eval()
        return torch.cat([self._sample(min(100, n - i)) for i in range(0, n, 100)])

    def _sample(self, n: int) -> Tensor:
        x = torch.randn(n, 1, 32, 32)
        times = torch.linspace(self.levels - 1, 0, self.steps).round().long()
        for i, t in enumerate(times):
            now = self.kept[t]
            after = self.kept[times[i + 1]] if i + 1 < self.steps else torch.tensor(1.0)
            noise = self.nets["unet"](x, t.expand(n))
            clean = ((x - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
            noise = (x - now.sqrt() * clean) / (1 - now).sqrt()
            x = after.sqrt() * clean + (1 - after).sqrt() * noise
        return x


class _ResBlock(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU; the level is added between them."""

    def __init__(self, a: int, b: int, time_width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, a), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, b), nn.Conv2d(b, b, 3, padding=1)
        self.time = nn.Linear(time_width, b)
        self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class _Attention(nn.Module):
    """Self-attention of one head over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
        return x + self.out((v @ weights.transpose(1, 2)).reshape(x.shape))


class _UNet(nn.Module):
    """One block a resolution on the way down, two on the way up; attention at the coarsest."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = widths
        self.width, time = a, 4 * a
        self.time = nn.Sequential(nn.Linear(a, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.first = nn.Conv2d(1, a, 3, padding=1)
        self.down1, self.half1 = _ResBlock(a, a, time), nn.Conv2d(a, a, 3, 2, 1)
        self.down2, self.half2 = _ResBlock(a, b, time), nn.Conv2d(b, b, 3, 2, 1)
        self.down3, self.attention, self.middle = (
            _ResBlock(b, c, time),
            _Attention(c),
            _ResBlock(c, c, time),
        )
        self.up2, self.up2b = _ResBlock(c + b, b, time), _ResBlock(b, b, time)
        self.up1, self.up1b = _ResBlock(b + a, a, time), _ResBlock(a, a, time)
        self.norm, self.last = nn.GroupNorm(8, a), nn.Conv2d(a, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half) / half)
        time = self.time(torch.cat((angle.sin(), angle.cos()), dim=1))
        fine = self.down1(self.first(x), time)
        medium = self.down2(self.half1(fine), time)
        h = self.middle(self.attention(self.down3(self.half2(medium), time)), time)
        h = F.interpolate(h, scale_factor=2.0)
        h = self.up2b(self.up2(torch.cat((h, medium), dim=1), time), time)
        h = F.interpolate(h, scale_factor=2.0)
        h = self.up1b(self.up1(torch.cat((h, fine), dim=1), time), time)
        return self.last(F.silu(self.norm(h)))


TEXTBOOKS = {"dcgan": DCGANLoop, "ddpm": DDPMLoop}


def fit(
    loop: DCGANLoop | DDPMLoop,
    images: Tensor,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    state: Path,
    seed: int = 0,
    say: Callable[[int, float], None] = lambda step, spent: None,
) -> tuple[int, float]:
    """Train for so many seconds or steps; return the steps done and the seconds they took.

    images: uint8 (n, 1, 28, 28), padded with black to 32 px. state: file that holds all it takes to
    go on after an interruption; it is written every minute.
    """
    done, before = 0, 0.0
    torch.manual_seed(seed)
    if state.exists():
        saved = torch.load(state, weights_only=True)
        loop.nets.load_state_dict(saved["nets"])
        for optimizer, values in zip(loop.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        torch.set_rng_state(saved["random"])
        done, before = saved["done"], saved["seconds"]
    loop.nets.train()
    began = last = time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - began

    def save() -> None:
        saved = {
            "nets": loop.nets.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in loop.optimizers],
            "random": torch.get_rng_state(),
            "done": done,
            "seconds": spent(),
        }
        temporary = state.with_suffix(".tmp")
        torch.save(saved, temporary)
        os.replace(temporary, state)

    while (spent() < seconds) if steps is None and seconds is not None else done < (steps or 0):
        rows = torch.randint(len(images), (loop.batch_size,))
        loop.step(F.pad(images[rows].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0))
        done += 1
        if time.monotonic() - last > SAVE_EVERY:
            last = time.monotonic()
            save()
            say(done, spent())
    save()
    return done, spent()
