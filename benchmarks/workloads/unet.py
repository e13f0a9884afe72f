"""The U-Net of google/ddpm-cifar10-32 (35.7M parameters): training it and sampling from it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from poiesis.models.base import GenerativeModel
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.trained import build
from workloads.common import (
    OURS,
    Gate,
    Side,
    Workload,
    engine_step,
    image_data,
    low_precision,
)

__all__ = ["WORKLOADS"]

BATCH, STEPS = 4, 20


def _model(device: torch.device) -> GenerativeModel:
    spec = image_data(1, 3, 32).spec
    # The published network's configuration has no dropout, nor has the peer's; the peer's loop
    # keeps no averaged weights.
    config = dataclasses.replace(DDPM.paper(spec), batch_size=BATCH, dropout=0.0, ema=0.0)
    return build(DDPM, config, spec, None, device=device)


def ours_train(device: torch.device) -> Callable[[], Any]:
    """Our engine: loss, gradient clipping, fused Adam."""
    return engine_step(_model(device), image_data(256, 3, 32))


def ours_sample(device: torch.device) -> Callable[[], Any]:
    """Our `sample` with its default sampler and steps."""
    model = _model(device)
    options = DDPM.Sampling(sampler="dpm-solver++", steps=STEPS)
    return lambda: model.sample(BATCH, seed=0, options=options, batch_size=BATCH)


def _peer(device: torch.device, channels_last: bool) -> Any:
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        norm_eps=1e-6,
        act_fn="silu",
        mid_block_scale_factor=1,
        time_embedding_type="positional",
    ).to(device)
    return unet.to(memory_format=torch.channels_last) if channels_last else unet


def peer_train(device: torch.device, *, bf16: bool, channels_last: bool) -> Callable[[], Any]:
    """The loop of diffusers' tutorial: add noise, predict it, Adam; no average, no clipping."""
    from diffusers import DDPMScheduler

    unet = _peer(device, channels_last).train()
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000)
    adam = torch.optim.Adam(unet.parameters(), lr=2e-4)
    images = torch.rand(BATCH, 3, 32, 32, device=device) * 2 - 1
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (BATCH,), device=device)
        noisy = scheduler.add_noise(images, noise, t)
        with low_precision(device, bf16):
            predicted = unet(noisy, t, return_dict=False)[0]
        torch.nn.functional.mse_loss(predicted.float(), noise).backward()
        adam.step()
        adam.zero_grad()

    return step


def peer_sample(device: torch.device, *, bf16: bool, channels_last: bool) -> Callable[[], Any]:
    """DPM-Solver++ over the same number of steps; diffusers has no unconditional pipeline of it."""
    from diffusers import DPMSolverMultistepScheduler

    unet = _peer(device, channels_last).eval()
    scheduler: Any = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, algorithm_type="dpmsolver++"
    )

    @torch.no_grad()
    def run() -> torch.Tensor:
        scheduler.set_timesteps(STEPS)
        x = torch.randn(BATCH, 3, 32, 32, device=device)
        for t in scheduler.timesteps:
            with low_precision(device, bf16):
                output = unet(x, t).sample
            x = scheduler.step(output.float(), t, x).prev_sample
        return x.clamp(-1, 1).cpu()

    return run


def _sides(ours: Callable[..., Any], peer: Callable[..., Any]) -> dict[str, Side]:
    modules = ("diffusers.models.unets.unet_2d", "diffusers.schedulers")

    def side(bf16: bool, channels_last: bool) -> Side:
        build = functools.partial(peer, bf16=bf16, channels_last=channels_last)
        return Side(build=build, modules=modules, bf16=bf16)

    return {
        OURS: Side(build=ours),
        "diffusers fp32": side(False, False),
        "diffusers fp32 channels-last": side(False, True),
        "diffusers bf16 channels-last": side(True, True),
    }


WORKLOADS = [
    Workload(
        name="unet-train",
        title="U-Net of 35.7M parameters, 32 px, batch 4, training",
        unit="img/s",
        items=BATCH,
        sides=_sides(ours_train, peer_train),
        gates=[Gate(against="diffusers fp32", factor=2.3), Gate(against="best", factor=1.05)],
        memory=3,
    ),
    Workload(
        name="unet-sample",
        title="the same, 20 steps of DPM-Solver++, batch 4",
        unit="img/s",
        items=BATCH,
        sides=_sides(ours_sample, peer_sample),
        gates=[Gate(against="diffusers fp32", factor=3.3), Gate(against="best", factor=1.05)],
    ),
]
