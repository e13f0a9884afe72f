"""An epoch of a VAE on 60,000 pictures of 28 px, against pythae's trainer with our networks."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import poiesis
from poiesis.models.autoencoders.vae import VAE
from workloads.common import OURS, Gate, Side, Workload, image_data

__all__ = ["WORKLOADS"]

# The peer's progress bar would fill the terminal. Read once, when tqdm is first imported.
os.environ.setdefault("TQDM_DISABLE", "1")

IMAGES, BATCH, HIDDEN, LATENT, RATE = 60_000, 128, 512, 16, 1e-3


def _changes() -> dict[str, Any]:
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


def ours(device: torch.device) -> Callable[[], Any]:
    """The verb `train`: one epoch into a run folder, with its checkpoint."""
    data = image_data(IMAGES, 1, 28)
    train = {"epochs": 1, "grids": 0, "validations": 0, "checkpoints": 1, "device": device.type}

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            poiesis.train(
                "vae",
                opened=data,
                config={"model": _changes(), "train": train},
                out=Path(folder) / "run",
                quiet=True,
            )

    return epoch


def pythae(device: torch.device) -> Callable[[], Any]:
    """pythae's TrainingPipeline around the same encoder and decoder; it saves its model too."""
    from pythae.models import VAE as PeerVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

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

    def epoch() -> None:
        config = VAE.Config(**_changes())
        networks = VAE(config, VAE.view(config, source.spec))
        peer = PeerVAE(
            VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce"),
            encoder=Encoder(networks.encoder),
            decoder=Decoder(networks.decoder),
        )
        with tempfile.TemporaryDirectory() as folder:
            options = BaseTrainerConfig(
                output_dir=folder,
                num_epochs=1,
                learning_rate=RATE,
                optimizer_cls="Adam",
                per_device_train_batch_size=BATCH,
                no_cuda=device.type != "cuda",
            )
            TrainingPipeline(training_config=options, model=peer)(train_data=images)

    return epoch


WORKLOADS = [
    Workload(
        name="vae-epoch",
        title="VAE epoch on 60,000 images of 28 px, whole training call",
        unit="epochs/min",
        items=60.0,
        sides={
            OURS: Side(build=ours),
            "pythae trainer": Side(build=pythae, modules=("pythae.pipelines",)),
        },
        gates=[Gate(against="pythae trainer", factor=2.0)],
        memory=1,
    )
]
