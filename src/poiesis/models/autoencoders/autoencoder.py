"""Autoencoder: Hinton & Salakhutdinov, Science 313 (2006) 504-507, trained by backpropagation.

Shape letters: b batch, z latent dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.config import check, check_each
from poiesis.errors import SpecError
from poiesis.models.autoencoders.density import LatentDensity, LatentSampling
from poiesis.models.autoencoders.mixture import log_bernoulli
from poiesis.models.autoencoders.networks import (
    Labelled,
    dense,
    fitting,
    level_widths,
    linear,
    plain,
    residual,
    wave_shape,
)
from poiesis.models.base import (
    Batch,
    GenerativeModel,
    Loss,
    Optim,
    Phase,
    Schedule,
    Stage,
    preset,
)
from poiesis.rng import Noise
from poiesis.spec import Classes, Grid, Spec, Vector

__all__ = ["Autoencoder"]


class Autoencoder(GenerativeModel):
    """Autoencoder: squeezes data through a narrow code and learns to bring it back.

    Good at: reduction to few numbers, anomaly scores by reconstruction error, a first look at a
    data set; the sharpest reconstructions per latent dimension of its family.

    Not good at: sampling: its codes follow no known law; a mixture of Gaussians is fitted to them
    after training, which gives plausible but not faithful samples.

    Cost: one pass to train and one to sample; thousands of 28 px images a second on a CPU core.

    Paper: Hinton & Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks,
    doi:10.1126/science.1127647.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the autoencoder."""

        network: Literal["residual", "conv", "mlp", "linear"] = "residual"
        """residual: convolutions with residual blocks; conv: plain strided convolutions (images
        only); mlp; linear: one matrix each way, which learns the span of the principal
        components."""
        widths: tuple[int, ...] = (32, 64)
        """Channels of each level, of half the size of the one before; mlp: hidden units; residual
        on audio: channels. The decoder mirrors the encoder."""
        blocks: int = 1
        """Residual blocks per level (network residual)."""
        latent_dim: int = 32
        """Dimensions of the code."""
        distance: Literal["squared", "bernoulli"] = "squared"
        """squared: half the squared error, of images in [-1, 1], of vectors and audio as they
        are standardised; bernoulli: the cross-entropy, gray levels taken for probabilities."""
        weight_decay: float = 0.0
        """Decay of the weight matrices (AdamW), against overfitting of small data sets."""
        learning_rate: float = 1e-3
        """Learning rate of Adam."""
        decay: bool = True
        """Decay the learning rate to zero over the run (cosine), else keep it constant."""
        batch_size: int = 128
        """Samples per step."""
        ema: float = 0.999
        """Decay per step of the averaged weights, with which it works; 0 is none."""

        def __post_init__(self) -> None:
            if self.widths or self.network != "linear":
                check_each("widths", self.widths, low=1, high=8192)
            check("blocks", self.blocks, low=0, high=64)
            check("latent_dim", self.latent_dim, low=1, high=65536)
            check("weight_decay", self.weight_decay, low=0, high=100)
            check("learning_rate", self.learning_rate, low=0, high=1, open_low=True)
            check("batch_size", self.batch_size, low=1)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling(LatentSampling):
        """Sampling options of the autoencoder."""

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """Residual convolutions for images and audio, as deep as needed; dense for vectors."""
        if not _is_image(spec) and isinstance(spec, Grid):
            return cls.Config(**wave_shape(spec))
        if isinstance(spec, Grid) and spec.dims > 256:
            shape: dict[str, Any] = {"network": "residual", "widths": level_widths(spec)}
        else:
            shape = {"network": "mlp", "widths": (256, 256)}
        return cls.Config(**shape, latent_dim=_latent_dim(spec))

    @preset
    @classmethod
    def mlp(cls, spec: Spec) -> Any:
        """Two hidden layers: for vectors and images of few pixels."""
        return cls.Config(network="mlp", widths=(512, 512), latent_dim=_latent_dim(spec))

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return images in [-1, 1] (in [0, 1] for bernoulli), vectors and audio as they are."""
        if isinstance(spec, Vector):
            if config.network not in ("mlp", "linear"):
                raise SpecError(f"network {config.network!r} needs images; use mlp for a {spec}")
            if config.distance == "bernoulli" and spec.domain not in ("bits", "unit"):
                raise SpecError(f"distance bernoulli needs bits; use squared for a {spec}")
            return spec
        image = fitting("an autoencoder", config, spec)
        if image.domain == "real":
            if config.distance == "bernoulli":
                raise SpecError(f"distance bernoulli needs bits; use squared for a {spec}")
            return image
        domain = "unit" if config.distance == "bernoulli" else "signed"
        return dataclasses.replace(image, domain=domain)

    def __init__(self, config: Any, spec: Spec, condition: Classes | None = None) -> None:
        super().__init__(config, spec)
        builders = {"residual": residual, "conv": plain, "mlp": dense, "linear": linear}
        encoder, decoder = builders[config.network](config, spec, 1, 1)
        self.encoder, self.decoder = Labelled(encoder, 0), Labelled(decoder, 0)
        self.density = LatentDensity(config.latent_dim)

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for all."""
        c = self.config
        optim = Optim(
            kind="adamw" if c.weight_decay else "adam",
            lr=c.learning_rate,
            weight_decay=c.weight_decay,
            decay_matrices_only=True,
            schedule=Schedule(kind="cosine" if c.decay else "constant"),
        )
        return {"autoencoder": optim}

    def stages(self) -> Sequence[Stage]:
        """Return one stage of one phase."""
        phase = Phase(name="loss", loss=self.loss, step=("autoencoder",))
        return [Stage(phases=(phase,), batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average all weights."""
        return {"encoder": self.config.ema, "decoder": self.config.ema}

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the distance of each sample from its reconstruction, summed over values (b,)."""
        distance = self.distance(batch.x, self.decoder(self.code(batch.x), None))
        return distance, {"distance": distance}

    @torch.no_grad()
    def settle(self, batches: Callable[[int], Iterator[Batch]]) -> None:
        """Keep codes of the training data, for the density that samples are drawn from."""
        self.density.keep(self.code(batch.x).float() for batch in batches(self.density.rows))

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distance and the mean squared error, each (b,)."""
        output = self.decoder(self.code(batch.x), None)
        error = (self.shown(output) - batch.x).float().square().flatten(1).mean(1)
        return {"distance": self.distance(batch.x, output), "mse": error}

    # -- codes and distances -----------------------------------------------------------------------

    def code(self, x: Tensor) -> Tensor:
        """Return the codes (b, z) of data in the view."""
        return self.constrain(self.encoder(self.centred(x), None))

    def constrain(self, code: Tensor) -> Tensor:
        """Bring codes (b, z) to where those of data lie: here anywhere."""
        return code

    def centred(self, x: Tensor) -> Tensor:
        """Return images in [-1, 1], whatever the view; vectors and audio as they are."""
        return 2 * x - 1 if self.config.distance == "bernoulli" and _is_image(self.spec) else x

    def distance(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the distance between data and the decoder's output, float32 (b,)."""
        x, output = x.float(), output.float()
        if self.config.distance == "bernoulli":
            return -log_bernoulli(x, output)
        return 0.5 * (output - x).square().flatten(1).sum(1)

    def shown(self, output: Tensor) -> Tensor:
        """Return the decoder's output as data in the view."""
        output = output.float()
        if self.config.distance == "bernoulli":
            return output.sigmoid()
        return output.clamp(-1, 1) if _is_image(self.spec) else output

    # -- what it can do ----------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Decode codes drawn from the density that was fitted to those of the training data."""
        return self.shown(self.decoder(self.constrain(self.density.draw(noise, options)), None))

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Return z, the codes (b, z)."""
        return {"z": self.code(x).float()}

    @torch.no_grad()
    def decode(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Return data in the view. latent: z (b, z) or what `encode` returned."""
        z = latent["z"] if isinstance(latent, Mapping) else latent
        return self.shown(self.decoder(z, None))

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the decoded code, in the view."""
        return self.decode(self.encode(x))


def _is_image(spec: Spec) -> bool:
    return isinstance(spec, Grid) and spec.domain != "real"


def _latent_dim(spec: Spec) -> int:
    """Return a quarter of the values; of vectors and audio half of them."""
    if isinstance(spec, Vector):
        return min(32, max(1, spec.dims // 2))
    if len(spec.shape) == 2:  # audio
        return min(512, max(1, spec.dims // 2))
    return min(32, max(1, spec.dims // 4))
