"""Autoencoders: the principal subspace, penalties, noise, the density of the codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch.func import jacrev, vmap

from poiesis.data import open_data
from poiesis.errors import ConfigError
from poiesis.models.autoencoders.autoencoder import Autoencoder
from poiesis.models.autoencoders.contractive_autoencoder import (
    ContractiveAutoencoder,
    squared_jacobian,
)
from poiesis.models.autoencoders.denoising_autoencoder import DenoisingAutoencoder
from poiesis.models.autoencoders.density import LatentDensity, LatentSampling
from poiesis.models.autoencoders.sparse_autoencoder import SparseAutoencoder, bernoulli_kl
from poiesis.models.base import Batch
from poiesis.rng import Draws, Noise
from poiesis.spec import Grid, Vector
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def batch_of(x: torch.Tensor, seed: int = 0) -> Batch:
    draws = Draws(("test", seed), total=len(x))
    return Batch(x=x, condition=None, index=torch.arange(len(x)), draws=draws, size=len(x))


def test_a_linear_autoencoder_spans_the_principal_subspace(digits):
    config = Autoencoder.Config(
        network="linear", widths=(), latent_dim=4, learning_rate=0.1, batch_size=1024, ema=0.0
    )
    torch.manual_seed(0)
    model = Autoencoder(config, Autoencoder.view(config, digits.spec))
    few = {"grids": 0, "validations": 0, "checkpoints": 0}
    Engine(model, digits, TrainConfig(steps=1000, **few), quiet=True).fit()
    x, _ = digits.splits["train"].fetch(torch.arange(len(digits.splits["train"])))
    x = x.flatten(1).double() / 16
    _, _, components = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    decoder = model.decoder.stem.weight.detach().double().numpy()
    angles = subspace_angles(decoder, components[:4].T)
    assert np.rad2deg(angles.max()) < 1
    # The next component is none of it: an angle near 90 degrees.
    assert np.rad2deg(subspace_angles(decoder, components[4:5].T).max()) > 80


def test_the_contractive_penalty_is_the_squared_jacobian():
    config = ContractiveAutoencoder.Config(network="mlp", widths=(16,), latent_dim=3)
    torch.manual_seed(0)
    model = ContractiveAutoencoder(config, Vector(features=5)).double()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    jacobian = vmap(jacrev(lambda row: model.code(row[None])[0]))(x.detach())
    wanted = jacobian.square().sum((1, 2))
    # Over the three unit directions the squares add up to the norm, exactly.
    code, unit = model.code(x), torch.eye(3, dtype=torch.float64)
    found = sum(squared_jacobian(code, x, unit[i].expand(4, 3)) for i in range(3))
    torch.testing.assert_close(found, wanted)
    drawn = [squared_jacobian(code, x, torch.randn(4, 3).double()).detach() for _ in range(4000)]
    torch.testing.assert_close(torch.stack(drawn).mean(0), wanted, rtol=0.1, atol=0)


def test_the_contractive_penalty_is_learnt(digits):
    def jacobian(weight: float) -> float:
        config = ContractiveAutoencoder.Config(
            network="mlp", widths=(32,), latent_dim=4, weight=weight, learning_rate=1e-2
        )
        torch.manual_seed(0)
        model = ContractiveAutoencoder(config, ContractiveAutoencoder.view(config, digits.spec))
        few = {"grids": 0, "validations": 0, "checkpoints": 0}
        engine = Engine(model, digits, TrainConfig(steps=60, **few), quiet=True)
        engine.fit()
        return float(engine.run_step()["penalty"])

    assert jacobian(1.0) < 0.3 * jacobian(0.0)


def test_sparse_codes():
    spec = Vector(features=12)
    x = torch.randn(50, 12)
    top = SparseAutoencoder.Config(network="linear", widths=(), latent_dim=30, active=4)
    code = SparseAutoencoder(top, spec).code(x)
    assert ((code != 0).sum(1) == 4).all()
    rectified = SparseAutoencoder.Config(
        network="linear", widths=(), latent_dim=30, sparsity="l1", weight=2.0
    )
    model = SparseAutoencoder(rectified, spec)
    values, logs = model.loss(batch_of(x), 0)
    assert (model.code(x) >= 0).all()
    torch.testing.assert_close(values, logs["distance"] + 2 * model.code(x).sum(1))
    with pytest.raises(ConfigError, match="active = 40 is more than latent_dim = 30"):
        SparseAutoencoder.Config(network="linear", widths=(), latent_dim=30, active=40)


def test_the_sparsity_divergence_is_that_of_bernoullis():
    for target, mean in ((0.05, 0.3), (0.5, 0.5), (0.2, 0.01)):
        a, b = (torch.distributions.Bernoulli(torch.tensor(p)) for p in (target, mean))
        wanted = torch.distributions.kl_divergence(a, b)
        torch.testing.assert_close(bernoulli_kl(target, torch.tensor(mean)), wanted)


@pytest.mark.parametrize("noise", ["gaussian", "salt-and-pepper", "masking"])
@pytest.mark.parametrize("domain", ["signed", "unit"])
def test_noise_of_pictures(noise, domain):
    distance = "bernoulli" if domain == "unit" else "squared"
    config = DenoisingAutoencoder.Config(
        network="mlp", widths=(8,), noise=noise, level=0.25, distance=distance
    )
    spec = DenoisingAutoencoder.view(config, Grid(channels=1, size=(16, 16)))
    assert isinstance(spec, Grid) and spec.domain == domain
    model = DenoisingAutoencoder(config, spec)
    low = 0.0 if domain == "unit" else -1.0
    x = torch.full((200, 1, 16, 16), (low + 1) / 2)
    noisy = model.corrupt(batch_of(x))
    assert noisy.min() >= low and noisy.max() <= 1
    if noise == "gaussian":
        inside = (noisy - x)[(noisy > low) & (noisy < 1)] / (1 - low)
        # A normal cut off at two standard deviations has 0.774 of its variance.
        assert float(inside.square().mean()) == pytest.approx(0.774 * 0.25**2, rel=0.03)
    else:
        assert float((noisy == low).float().mean()) == pytest.approx(
            0.25 if noise == "masking" else 0.125, abs=0.01
        )
        assert float((noisy == 1).float().mean()) == pytest.approx(
            0 if noise == "masking" else 0.125, abs=0.01
        )
    assert torch.equal(noisy, model.corrupt(batch_of(x)))


def test_codes_are_drawn_from_the_density_of_those_kept():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 1.0, 0.0]])
    which = torch.randint(2, (3000,), generator=generator)
    codes = centres[which] + torch.randn(3000, 3, generator=generator) * torch.tensor([0.5, 1, 2])
    density = LatentDensity(3)
    noise = Noise(0, range(4000))
    assert float(density.draw(noise, LatentSampling()).std()) == pytest.approx(1, abs=0.05)
    density.keep(codes.split(256))
    drawn = density.draw(Noise(0, range(4000)), LatentSampling(components=2))
    assert float((drawn[:, 0].abs() < 2).float().mean()) == 0
    assert float((drawn[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    right = drawn[drawn[:, 0] > 0]
    torch.testing.assert_close(right.mean(0), centres[0], atol=0.15, rtol=0)
    torch.testing.assert_close(right.std(0), torch.tensor([0.5, 1, 2]), atol=0.1, rtol=0)
    one = density.draw(Noise(0, range(4000)), LatentSampling(density="normal"))
    torch.testing.assert_close(one.std(0), codes.std(0), atol=0.15, rtol=0)
    still = density.draw(Noise(0, range(9)), LatentSampling(components=2, temperature=0))
    assert len(still.unique(dim=0)) <= 2
