"""Epochs of VAE, IWAE and VQ-VAE, against pythae's trainer with our networks."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import poiesis
from poiesis.models.autoencoders.vae import VAE
from poiesis.models.autoencoders.vq_vae import VQVAE
from workloads.common import OURS, Gate, Side, Workload, image_data

__all__ = ["WORKLOADS"]

# The peer's progress bar would fill the terminal. Read once, when tqdm is first imported.
os.environ.setdefault("TQDM_DISABLE", "1")

IMAGES, BATCH, HIDDEN, LATENT, RATE = 60_000, 128, 512, 16, 1e-3
SAMPLES = 5
"""Importance samples of the IWAE."""
PICTURES, WIDTHS, BLOCKS, CODES, CODE_DIM = 6_400, (64, 128), 2, 512, 64
"""Of the VQ-VAE, whose pictures have three channels and 32 px."""


def _dense() -> dict[str, Any]:
    """The options that both sides share; no averaged weights, which the peer has not."""
    return {
        "network": "mlp",
        "widths": (HIDDEN,),
        "latent_dim": LATENT,
        "likelihood": "bernoulli",
        "learning_rate": RATE,
        "decay": False,
        "weight_decay": 0.0,
        "batch_size": BATCH,
        "ema": 0.0,
    }


def _codes() -> dict[str, Any]:
    """The peer's way: moving averages from a random start, no codes revived.

    The second stage, which the peer has not, is as small as it can be.
    """
    return {
        "widths": WIDTHS,
        "blocks": BLOCKS,
        "codes": CODES,
        "code_dim": CODE_DIM,
        "start": "uniform",
        "revive": 0.0,
        "learning_rate": RATE,
        "decay": False,
        "batch_size": BATCH,
        "prior_share": 0.01,
        "prior_layers": 1,
        "prior_width": 8,
        "prior_heads": 1,
    }


def ours(
    device: torch.device,
    *,
    name: str,
    options: dict[str, Any],
    images: int,
    channels: int,
    side: int,
) -> Callable[[], Any]:
    """The verb `train`: one epoch into a run folder, with its checkpoint."""
    data = image_data(images, channels, side)
    epochs = 1 / (1 - options.get("prior_share", 0.0))
    train = {"epochs": epochs, "grids": 0, "validations": 0, "checkpoints": 1}

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            poiesis.train(
                name,
                opened=data,
                config={"model": options, "train": {**train, "device": device.type}},
                out=Path(folder) / "run",
                quiet=True,
            )

    return epoch


def _trained(device: torch.device, make: Callable[[], Any], images: torch.Tensor) -> None:
    """Let pythae's TrainingPipeline train a model for an epoch; it saves its model too."""
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    with tempfile.TemporaryDirectory() as folder:
        options = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            learning_rate=RATE,
            optimizer_cls="Adam",
            per_device_train_batch_size=BATCH,
            no_cuda=device.type != "cuda",
        )
        TrainingPipeline(training_config=options, model=make())(train_data=images)


def pythae_dense(device: torch.device, *, samples: int) -> Callable[[], Any]:
    """pythae's VAE, or with samples its IWAE, around our encoder and decoder."""
    from pythae.models import IWAE as PeerIWAE
    from pythae.models import VAE as PeerVAE
    from pythae.models import IWAEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> Any:
            mean, log_variance = self.network(2 * x - 1, None).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z, None).sigmoid())

    logging.disable(logging.WARNING)
    source = image_data(IMAGES, 1, 28)
    images = source.splits["train"].x.float().div(255)
    options: dict[str, Any] = {
        "input_dim": (1, 28, 28),
        "latent_dim": LATENT,
        "reconstruction_loss": "bce",
    }

    def make() -> Any:
        config = VAE.Config(**_dense())
        networks = VAE(config, VAE.view(config, source.spec))
        sides = {"encoder": Encoder(networks.encoder), "decoder": Decoder(networks.decoder)}
        if samples:
            return PeerIWAE(IWAEConfig(**options, number_samples=samples), **sides)
        return PeerVAE(VAEConfig(**options), **sides)

    return lambda: _trained(device, make, images)


def pythae_codes(device: torch.device) -> Callable[[], Any]:
    """pythae's VQ-VAE around our encoder and decoder."""
    from pythae.models import VQVAE as PeerVQVAE
    from pythae.models import VQVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> Any:
            return ModelOutput(embedding=self.network(x))

    class Decoder(BaseDecoder):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z))

    logging.disable(logging.WARNING)
    source = image_data(PICTURES, 3, 32)
    images = source.splits["train"].x.float().div(127.5).sub(1)

    def make() -> Any:
        config = VQVAE.Config(**_codes())
        networks = VQVAE(config, VQVAE.view(config, source.spec))
        options = VQVAEConfig(
            input_dim=(3, 32, 32),
            latent_dim=CODE_DIM,
            num_embeddings=CODES,
            use_ema=True,
            decay=config.codebook_decay,
            commitment_loss_factor=config.commitment,
        )
        return PeerVQVAE(
            options, encoder=Encoder(networks.encoder), decoder=Decoder(networks.decoder)
        )

    return lambda: _trained(device, make, images)


def _epoch(
    name: str,
    title: str,
    unit: str,
    items: float,
    mine: Callable[..., Any],
    peer: Callable[..., Any],
) -> Workload:
    return Workload(
        name=f"{name}-epoch",
        title=title,
        unit=unit,
        items=items,
        sides={
            OURS: Side(build=mine),
            "pythae trainer": Side(build=peer, modules=("pythae.pipelines",)),
        },
        gates=[Gate(against="pythae trainer", factor=2.0)],
        memory=1,
    )


_GRAY: dict[str, Any] = {"images": IMAGES, "channels": 1, "side": 28}
_COLOUR: dict[str, Any] = {"images": PICTURES, "channels": 3, "side": 32}

WORKLOADS = [
    _epoch(
        "vae",
        "VAE epoch on 60,000 images of 28 px, whole training call",
        "epochs/min",
        60.0,
        functools.partial(ours, name="vae", options=_dense(), **_GRAY),
        functools.partial(pythae_dense, samples=0),
    ),
    _epoch(
        "iwae",
        f"IWAE of {SAMPLES} samples, otherwise the same",
        "epochs/min",
        60.0,
        functools.partial(
            ours,
            name="iwae",
            options={**_dense(), "samples": SAMPLES, "gradient": "plain", "dynamic": False},
            **_GRAY,
        ),
        functools.partial(pythae_dense, samples=SAMPLES),
    ),
    _epoch(
        "vq-vae",
        f"VQ-VAE of {CODES} codes on {PICTURES:,} images of 32 px, whole training call",
        "img/s",
        float(PICTURES),
        functools.partial(ours, name="vq-vae", options=_codes(), **_COLOUR),
        pythae_codes,
    ),
]
