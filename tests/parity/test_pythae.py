"""VAE, IWAE and VQ-VAE against pythae on equal weights, inputs and noise.

pythae asks for a package that today's Python refuses, so it stays out of the toolkit's environment:
`make parity` runs these in that of the benchmarks.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

from poiesis.models.autoencoders.iwae import IWAE
from poiesis.models.autoencoders.vae import VAE
from poiesis.models.autoencoders.vq_vae import VQVAE
from poiesis.models.base import Batch
from poiesis.rng import Draws
from poiesis.spec import Grid

pytest.importorskip("pythae", reason="run by `make parity`")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pythae.models import IWAE as PeerIWAE  # pyright: ignore
    from pythae.models import VAE as PeerVAE  # pyright: ignore
    from pythae.models import VQVAE as PeerVQVAE  # pyright: ignore
    from pythae.models import IWAEConfig, VAEConfig, VQVAEConfig  # pyright: ignore
    from pythae.models.base.base_utils import ModelOutput  # pyright: ignore
    from pythae.models.nn import BaseDecoder, BaseEncoder  # pyright: ignore

SIDE, LATENT, ROWS = 12, 6, 16
SPEC = Grid(channels=1, size=(SIDE, SIDE))


class Encoder(BaseEncoder):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        mean, log_variance = self.network(2 * x - 1, None).chunk(2, dim=1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z):
        return ModelOutput(reconstruction=self.network(z, None).sigmoid())


def make(cls, **changes):
    torch.manual_seed(0)
    config = cls.Config(
        network="mlp", widths=(40, 24), latent_dim=LATENT, likelihood="bernoulli", **changes
    )
    model = cls(config, cls.view(config, SPEC))
    with torch.no_grad():  # wider than at the start, for posteriors that differ from the prior
        for parameter in model.encoder.parameters():
            parameter.mul_(2)
    return model


def make_batch(seed=0):
    x = torch.rand(ROWS, *SPEC.shape, generator=torch.Generator().manual_seed(seed))
    draws = Draws(("test", seed), total=ROWS)
    return Batch(x=x, condition=None, index=torch.arange(ROWS), draws=draws, size=ROWS)


def peer_of(model, cls, config):
    """Return pythae's model around copies of our networks, drawing the noise given."""
    encoder, decoder = Encoder(copy.deepcopy(model.encoder)), Decoder(copy.deepcopy(model.decoder))
    return cls(config, encoder=encoder, decoder=decoder)


def with_noise(peer, eps):
    peer._sample_gauss = lambda mean, std: (mean + eps * std, eps)
    return peer


def gradients(model):
    """Return ours by name, as the peer calls them: encoder.… and decoder.…"""
    return {
        name.replace(".network.", "."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def config_of(cls, **more):
    return cls(input_dim=SPEC.shape, latent_dim=LATENT, reconstruction_loss="bce", **more)


def assert_same(ours, theirs, names=("encoder", "decoder")):
    wanted = [name for name in theirs if name.startswith(names)]
    assert wanted and all(name in ours for name in wanted)
    for name in wanted:
        assert float(theirs[name].abs().max()) > 1e-4, name
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-4, atol=2e-5, msg=name)


def test_vae_has_the_loss_the_kl_and_the_gradients():
    model, batch = make(VAE), make_batch()
    peer = with_noise(peer_of(model, PeerVAE, config_of(VAEConfig)), make_batch().randn(LATENT))
    found = peer({"data": batch.x})
    loss, logs = model.loss(batch, 0)
    assert float(found.reg_loss.detach()) > 1
    torch.testing.assert_close(logs["kl"].mean(), found.reg_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(logs["reconstruction"].mean(), found.recon_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.mean(), found.loss, rtol=1e-5, atol=0)
    loss.mean().backward()
    found.loss.backward()
    assert_same(gradients(model), gradients(peer))


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("gradient", ["plain", "double"])
def test_iwae_has_the_gradients(samples, gradient):
    """The encoder's doubly reparameterised gradient, which pythae has not, is another estimate."""
    model, batch = make(IWAE, samples=samples, gradient=gradient), make_batch()
    config = config_of(IWAEConfig, number_samples=samples)
    peer = with_noise(peer_of(model, PeerIWAE, config), make_batch().randn(samples, LATENT))
    found = peer({"data": batch.x})
    loss, logs = model.loss(batch, 0)
    torch.testing.assert_close(logs["reconstruction"].mean(), found.recon_loss, rtol=1e-5, atol=0)
    loss.mean().backward()
    found.loss.backward()
    names = ("encoder", "decoder") if gradient == "plain" else ("decoder",)
    assert_same(gradients(model), gradients(peer), names)


def test_vq_vae_has_the_codes_and_the_gradients():
    """Of the encoder by the straight-through estimator; in the peer's units of the loss."""
    spec = Grid(channels=3, size=(16, 16))
    config = VQVAE.Config(
        widths=(8, 16), blocks=1, codes=24, code_dim=5, start="uniform", revive=0.0
    )
    torch.manual_seed(0)
    model = VQVAE(config, VQVAE.view(config, spec))
    x = 2 * torch.rand(ROWS, *spec.shape, generator=torch.Generator().manual_seed(1)) - 1

    class Outputs(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(model.encoder)

        def forward(self, x):
            return ModelOutput(embedding=self.network(x))

    class Pictures(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(model.decoder)

        def forward(self, z):
            return ModelOutput(reconstruction=self.network(z))

    options = VQVAEConfig(
        input_dim=spec.shape,
        latent_dim=5,
        num_embeddings=24,
        use_ema=True,
        commitment_loss_factor=config.commitment,
    )
    peer = PeerVQVAE(options, encoder=Outputs(), decoder=Pictures()).eval()
    vectors = model.outputs(x).flatten(0, 1).detach()[::10][:24]
    model.codebook.vectors.copy_(vectors)
    peer.quantizer.embeddings.copy_(vectors)
    found = peer({"data": x})
    codes = model.encode(x)["codes"]
    assert torch.equal(codes, found.quantized_indices[:, 0]) and len(codes.unique()) > 10
    batch = Batch(
        x=x,
        condition=None,
        index=torch.arange(ROWS),
        draws=Draws(("test", 0), total=ROWS),
        size=ROWS,
    )
    # The peer sums the squared error over values, ours is their mean over the variance of the data.
    model.variance.fill_(1 / spec.dims)
    loss, logs = model.loss(batch, 0)
    torch.testing.assert_close(logs["distance"].mean(), found.recon_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.mean(), found.loss, rtol=1e-5, atol=0)
    loss.mean().backward()
    found.loss.backward()
    assert_same(gradients(model), gradients(peer))
