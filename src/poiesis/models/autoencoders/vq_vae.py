"""VQ-VAE: van den Oord, Vinyals & Kavukcuoglu, arXiv:1711.00937.

Shape letters: b batch, c channels, h height and w width (of the grid of codes), n positions of the
grid (h · w), d dimensions of a code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from poiesis.config import check, check_each
from poiesis.errors import ConfigError, SpecError
from poiesis.models.autoencoders.codebook import Codebook, perplexity
from poiesis.models.autoregressive.transformer import Transformer
from poiesis.models.base import (
    Batch,
    GenerativeModel,
    Loss,
    Optim,
    Phase,
    Schedule,
    Stage,
    preset,
    within,
)
from poiesis.nn.strided import strided, upwards
from poiesis.rng import Noise
from poiesis.sampling.decoding import Decoding
from poiesis.spec import Classes, Grid, Spec, Tokens

__all__ = ["VQVAE"]


class VQVAE(GenerativeModel):
    """VQ-VAE: images as small grids of discrete codes, and a transformer that writes such grids.

    Good at: reconstructions that are sharper than a VAE's; discrete tokens for other models;
    strong compression (64 codes of 9 bits for 32 px); samples that no posterior collapse blurs.

    Not good at: a likelihood of pixels, of which it has none; fine detail below a code's patch;
    smooth interpolation.

    Cost: two stages of training, of autoencoder and prior; sampling takes one pass of the prior per
    code, then one of the decoder.

    The first stage learns encoder, codebook and decoder, the second a transformer over the codes of
    the training data, which is where samples come from and where classes act.

    Paper: van den Oord, Vinyals & Kavukcuoglu, Neural Discrete Representation Learning,
    arXiv:1711.00937.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the VQ-VAE and of its prior."""

        widths: tuple[int, ...] = (64, 128)
        """Channels after each halving of the image; their number sets the grid of codes: two
        make 8x8 of 32 px. The decoder mirrors the encoder."""
        blocks: int = 2
        """Residual blocks of encoder and decoder, at the size of the grid."""
        codes: int = 512
        """Vectors of the codebook, [2, 65536]."""
        code_dim: int = 64
        """Dimensions of a code's vector."""
        commitment: float = 0.25
        """Weight of the term that keeps encoder outputs near their codes (beta)."""
        codebook: Literal["ema", "gradient"] = "ema"
        """How codes follow encoder outputs: by moving averages, or by the gradient of a loss."""
        codebook_decay: float = 0.99
        """Decay per step of the codes' moving averages and of the counts of their use; after a
        start by kmeans it rises to that."""
        start: Literal["kmeans", "uniform"] = "kmeans"
        """kmeans: the codebook starts from encoder outputs, and follows them more closely at first;
        uniform: from small random vectors."""
        revive: float = 0.1
        """A code used less than this share of an even share moves to a vector of the batch that is
        far from its own code; 0 never moves one."""
        conditional: bool = False
        """Condition the prior on the class; needs data with classes."""
        learning_rate: float = 1e-3
        """Learning rate of Adam in the first stage."""
        decay: bool = True
        """Decay the first stage's learning rate to zero (cosine), else keep it constant."""
        batch_size: int = 128
        """Images per step of the first stage."""
        prior_layers: int = 4
        """Blocks of the transformer over codes."""
        prior_width: int = 128
        """Width of the transformer over codes, a multiple of twice its heads."""
        prior_heads: int = 4
        """Attention heads of the transformer over codes."""
        prior_dropout: float = 0.1
        """Share of activations dropped while the prior learns, against overfitting."""
        prior_batch_size: int = 64
        """Images per step of the second stage."""
        prior_share: float = 0.5
        """Share of the run that the second stage takes, [0.01, 0.99]."""

        def __post_init__(self) -> None:
            check_each("widths", self.widths, low=1, high=8192)
            check("blocks", self.blocks, low=0, high=64)
            check("codes", self.codes, low=2, high=65536)
            check("code_dim", self.code_dim, low=1, high=65536)
            check("commitment", self.commitment, low=0)
            check("codebook_decay", self.codebook_decay, low=0, high=0.999999)
            check("revive", self.revive, low=0, high=0.9)
            check("learning_rate", self.learning_rate, low=0, high=1, open_low=True)
            check("batch_size", self.batch_size, low=1)
            check("prior_layers", self.prior_layers, low=1, high=96)
            check("prior_width", self.prior_width, low=8, high=16384)
            check("prior_heads", self.prior_heads, low=1, high=self.prior_width)
            check("prior_dropout", self.prior_dropout, low=0, high=0.9)
            check("prior_batch_size", self.prior_batch_size, low=1)
            check("prior_share", self.prior_share, low=0.01, high=0.99)
            if self.prior_width % (2 * self.prior_heads):
                raise ConfigError(
                    f"prior_width = {self.prior_width} is no multiple of {2 * self.prior_heads}, "
                    "twice prior_heads; choose one"
                )

    @dataclass(frozen=True, kw_only=True)
    class Sampling(Decoding):
        """How the prior chooses codes."""

    fp32_sampling = True

    variance: Tensor

    # -- presets ---------------------------------------------------------------------------------

    @preset
    @staticmethod
    def default(spec: Spec) -> VQVAE.Config:
        """512 codes on a grid of 7 to 16 a side; of tiny images 128 on half their size."""
        if spec.dims <= 256:
            return VQVAE.Config(
                widths=(64,),
                codes=128,
                prior_layers=3,
                prior_width=64,
                prior_dropout=0.2,
                prior_batch_size=128,
            )
        side = max(spec.shape[1:], default=32)
        widths = (64, 128) if side <= 64 else (32, 64, 128)
        positions = (side / 2 ** len(widths)) ** 2
        # A step of the prior sees about 4,096 codes.
        return VQVAE.Config(
            widths=widths, prior_batch_size=min(64, max(4, round(4096 / positions)))
        )

    @preset
    @staticmethod
    def fast(spec: Spec) -> VQVAE.Config:
        """Half the channels and codes, a smaller prior: for a first look."""
        full = VQVAE.default(spec)
        return dataclasses.replace(
            full,
            widths=tuple(width // 2 for width in full.widths),
            codes=full.codes // 2,
            blocks=1,
            prior_layers=3,
            prior_width=64,
        )

    @preset
    @staticmethod
    def paper(spec: Spec) -> VQVAE.Config:
        """The paper's CIFAR-10 network (section 4.1): a gradient for the codebook, no revival.

        Its codes have the 64 dimensions of the authors' example; the prior is a transformer, not
        their PixelCNN. Sized for a GPU.
        """
        return VQVAE.Config(
            widths=(256, 256),
            codebook="gradient",
            start="uniform",
            revive=0.0,
            learning_rate=2e-4,
            decay=False,
            prior_layers=8,
            prior_width=256,
        )

    # -- construction ----------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return images in [-1, 1]; raises SpecError for other data and sizes."""
        if not isinstance(spec, Grid) or len(spec.size) != 2 or not 1 <= spec.channels <= 4:
            raise SpecError(f"a VQ-VAE learns images of 1 to 4 channels, not {spec}")
        lowest = max(8, 2 ** len(config.widths))
        if min(spec.size) < lowest or max(spec.size) > 256:
            raise SpecError(
                f"a VQ-VAE with {len(config.widths)} widths takes images of {lowest} to 256 px, "
                f"not {spec.size}; resize them"
            )
        return dataclasses.replace(spec, domain="signed")

    def __init__(self, config: Config, spec: Grid, condition: Classes | None = None) -> None:
        if config.conditional and condition is None:
            raise ConfigError("conditional = True needs data with classes; set it to False")
        super().__init__(config, spec, condition if config.conditional else None)
        step = 2 ** len(config.widths)
        self.grid = tuple(-(-side // step) for side in spec.size)
        sizes = config.widths, config.blocks
        self.encoder = strided(spec.channels, *sizes, config.code_dim)
        self.decoder = upwards(config.code_dim, *sizes, spec.channels)
        self.codebook = Codebook(
            config.codes,
            config.code_dim,
            gradient=config.codebook == "gradient",
            decay=config.codebook_decay,
            revive=config.revive,
            # Codes that begin where the encoder's outputs are have to stay with them.
            warm=config.start == "kmeans",
        )
        self.register_buffer("variance", torch.ones(()))
        prior = Transformer.Config(
            layers=config.prior_layers,
            width=config.prior_width,
            heads=config.prior_heads,
            dropout=config.prior_dropout,
            conditional=config.conditional,
            grid=self.grid,
        )
        tokens = Tokens(vocabulary=config.codes, length=self.grid[0] * self.grid[1])
        self.prior = Transformer(prior, Transformer.view(prior, tokens), self.condition)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, of the prior too: it is a part that learns here."""
        super().train(mode)
        self.prior.train(mode)
        return self

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return Adam for the first stage, and the transformer's own, named prior-…."""
        c = self.config
        learned = ("codebook",) if c.codebook == "gradient" else ()
        adam = Optim(
            networks=("encoder", "decoder", *learned),
            lr=c.learning_rate,
            schedule=Schedule(kind="cosine" if c.decay else "constant"),
        )
        prior = {f"prior-{n}": within("prior", o) for n, o in self.prior.optimizers().items()}
        return {"autoencoder": adam, **prior}

    def stages(self) -> Sequence[Stage]:
        """Return the stage of the codes and that of the prior over them."""
        c = self.config
        names = tuple(name for name in self.optimizers() if name.startswith("prior-"))
        codes = Phase(name="autoencoder", loss=self.loss, step=("autoencoder",))
        prior = Phase(name="prior", loss=self.prior.loss, step=names)
        return [
            Stage(
                name="codes",
                phases=(codes,),
                batch_size=c.batch_size,
                share=1 - c.prior_share,
            ),
            Stage(
                name="prior",
                phases=(prior,),
                batch_size=c.prior_batch_size,
                share=c.prior_share,
                transform=self.to_codes,
            ),
        ]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Take the variance of the data and, by k-means, the codebook from a batch."""
        # Of constant images it would be 0.
        self.variance.copy_(batch.x.float().var().clamp(min=1e-6))
        if self.config.start == "kmeans":
            z_nd = self.outputs(batch.x).flatten(0, 1)
            order = batch.rand(self.grid[0] * self.grid[1]).flatten().argsort()
            self.codebook.start(z_nd[order])

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the loss of the first stage (arXiv:1711.00937, eq. 3) of each sample (b,).

        The squared error is a mean over values, in units of the variance of the data, the distance
        of encoder outputs from codes a mean over positions and dimensions, as in the authors' code.
        """
        z_bnd = self.outputs(batch.x)
        codes_bn = self.codebook.nearest(z_bnd.flatten(0, 1)).view(z_bnd.shape[:2])
        e_bnd = self.codebook(codes_bn)
        # Straight through: the encoder gets the gradient at the decoder's input.
        through = z_bnd + (e_bnd - z_bnd).detach()
        distance = self.error(batch.x, through) / self.variance
        commitment = (z_bnd - e_bnd.detach()).square().mean((1, 2))
        value = distance + self.config.commitment * commitment
        if self.config.codebook == "gradient":
            value = value + (e_bnd - z_bnd.detach()).square().mean((1, 2))
        at = batch.rand()
        if torch.is_grad_enabled():  # else it is a look, which must leave no trace
            self.codebook.note(z_bnd.detach(), codes_bn, at)
        used = torch.bincount(codes_bn.flatten(), minlength=self.config.codes).float()
        return value, {
            "distance": distance,
            "commitment": commitment,
            "perplexity": perplexity(used),
            "revived": self.codebook.revived.float(),
        }

    def after_step(self, phase: Phase, step: int) -> None:
        """Move the codebook, once all micro-batches are seen."""
        if phase.name == "autoencoder":
            self.codebook.update()

    def to_codes(self, batch: Batch) -> Batch:
        """Return the batch with x the codes of its images, int64 (b, n)."""
        codes_bhw = self.encode(batch.x)["codes"]
        return dataclasses.replace(batch, x=codes_bhw.flatten(1))

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return, each (b,), what a stage watches.

        Of images the mean squared error in units of the variance of the data (distance) and in
        those of the view (mse); of codes the prior's nats per code (prior_nll).
        """
        if batch.x.ndim == 2:
            return {"prior_nll": self.prior.nll(batch.x, batch.condition).mean(1)}
        latent = self.encode(batch.x)
        mse = self.error(batch.x, latent["z"].flatten(2).mT)
        return {"distance": mse / self.variance, "mse": mse}

    # -- images and codes ------------------------------------------------------------------------

    def outputs(self, x: Tensor) -> Tensor:
        """Return encoder outputs (b, n, d), float32, of images in the view."""
        step = 2 ** len(self.config.widths)
        h, w = (step * side for side in self.grid)
        x = F.pad(x, (0, w - x.size(3), 0, h - x.size(2)), mode="replicate")
        return self.encoder(x).float().flatten(2).mT

    def error(self, x: Tensor, q_bnd: Tensor) -> Tensor:
        """Return the mean squared error of images decoded from vectors q, float32 (b,)."""
        return (self.decoded(q_bnd.mT.unflatten(2, self.grid)) - x).square().flatten(1).mean(1)

    def decoded(self, q_bdhw: Tensor) -> Tensor:
        """Return what the decoder makes of a grid of vectors, float32, not clamped to the view."""
        height, width = self.spec.size
        return self.decoder(q_bdhw)[..., :height, :width].float()

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Decode codes drawn from the prior, (n, *spec.shape)."""
        chosen = {f.name: getattr(options, f.name) for f in dataclasses.fields(Decoding)}
        codes = self.prior.draw(noise, condition, Transformer.Sampling(**chosen))
        return self.decode(codes.to(self.device).unflatten(1, self.grid))

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Return codes, int64 (b, h, w), in [0, config.codes), and their vectors z (b, d, h, w)."""
        z_bnd = self.outputs(x)
        codes = self.codebook.nearest(z_bnd.flatten(0, 1)).view(len(x), *self.grid)
        return {"codes": codes, "z": self.codebook(codes).movedim(3, 1)}

    @torch.no_grad()
    def decode(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Return images in the view; raises ConfigError for codes that are none.

        latent: codes, int64 (b, h, w), any vectors z (b, d, h, w), or what `encode` returned.
        """
        z = latent["z"] if isinstance(latent, Mapping) else latent
        if not z.is_floating_point():
            low, high = z.aminmax() if z.numel() else (torch.zeros(()), torch.zeros(()))
            if low < 0 or high >= self.config.codes:
                wrong = int(low if low < 0 else high)
                raise ConfigError(f"code {wrong} is outside [0, {self.config.codes - 1}]")
            z = self.codebook(z).movedim(3, 1)
        return self.decoded(z).clamp(-1, 1)

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the images decoded from their codes, in the view."""
        return self.decode(self.encode(x))
