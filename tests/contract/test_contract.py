"""One contract for every listed model. A new model adds a line to `CASES`; nothing else here."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import make_moons

from poiesis import config as configs
from poiesis import registry
from poiesis.apply.inputs import latent_parts
from poiesis.data import open_data
from poiesis.errors import ConfigError, SpecError
from poiesis.files import make_gif, make_wav, pictures_of
from poiesis.models import capabilities
from poiesis.models.base import Batch
from poiesis.models.trained import build, load
from poiesis.rng import Draws, Noise
from poiesis.runs import Run
from poiesis.spec import Classes, Grid, Tokens, Vector
from poiesis.training import verb
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Case:
    """How the contract looks at one model: made tiny, on which data."""

    name: str
    options: Mapping[str, Any]
    data: str = "digits"
    learns: str
    """The phase whose loss must fall when it alone is stepped (adversaries: not both at once)."""
    steps: int = 40
    falls: float = 0.85
    """The loss on held-out data must fall below this share of its first value."""
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    """Test name → why this model does not pass it."""


NO_OFFSET = {
    "test_gradients_reach_every_parameter": "only differences of logits count, not their bias"
}
"""For adversarial losses that are the same for all biases of the discriminator's logit."""

CASES = {
    "vae": Case(
        name="vae",
        options={"widths": (32,), "latent_dim": 4, "learning_rate": 1e-2},
        learns="vae",
    ),
    "vae, residual, by class": Case(
        name="vae",
        options={
            "network": "residual",
            "widths": (8, 8),
            "latent_dim": 4,
            "conditional": True,
            "likelihood": "logistic",
            "learning_rate": 1e-2,
        },
        learns="vae",
    ),
    "iwae": Case(
        name="iwae",
        options={"widths": (32,), "latent_dim": 4, "learning_rate": 1e-2},
        learns="vae",
    ),
    "vdvae": Case(
        name="vdvae",
        options={
            "patch": 2,
            "sizes": (4, 1),
            "encoder": (1, 1),
            "decoder": (1, 1),
            "widths": (16, 16),
            "latent_channels": 4,
            "warmup": 5,
            "learning_rate": 1e-2,
        },
        learns="vdvae",
    ),
    "vdvae, paper, by class": Case(
        name="vdvae",
        options={
            "sizes": (8, 4, 1),
            "encoder": (1, 1, 1),
            "decoder": (1, 1, 1),
            "widths": (16, 16, 16),
            "latent_channels": 4,
            "mixtures": 2,
            "resampling": "average",
            "conditional": True,
            "warmup": 5,
            "learning_rate": 1e-2,
        },
        learns="vdvae",
    ),
    "autoencoder": Case(
        name="autoencoder",
        options={"widths": (32,), "latent_dim": 4, "learning_rate": 1e-2},
        learns="loss",
    ),
    "autoencoder, residual": Case(
        name="autoencoder",
        options={
            "network": "residual",
            "widths": (8, 8),
            "latent_dim": 4,
            "distance": "bernoulli",
            "learning_rate": 1e-2,
        },
        learns="loss",
    ),
    "beta-vae": Case(
        name="beta-vae",
        options={"widths": (32,), "latent_dim": 4, "learning_rate": 1e-2},
        learns="vae",
    ),
    "cvae": Case(
        name="cvae",
        options={"widths": (32,), "latent_dim": 4, "learning_rate": 1e-2},
        learns="vae",
    ),
    "denoising-autoencoder": Case(
        name="denoising-autoencoder",
        options={"widths": (32,), "latent_dim": 4, "learning_rate": 1e-2},
        learns="loss",
    ),
    "sparse-autoencoder": Case(
        name="sparse-autoencoder",
        options={"latent_dim": 40, "active": 5, "learning_rate": 1e-2},
        learns="loss",
    ),
    "sparse-autoencoder, kl": Case(
        name="sparse-autoencoder",
        options={"latent_dim": 16, "sparsity": "kl", "learning_rate": 1e-2},
        learns="loss",
    ),
    "contractive-autoencoder": Case(
        name="contractive-autoencoder",
        options={"widths": (32,), "latent_dim": 4, "learning_rate": 1e-2},
        learns="loss",
    ),
    "vq-vae": Case(
        name="vq-vae",
        options={
            "widths": (16,),
            "codes": 32,
            "code_dim": 8,
            "learning_rate": 1e-2,
            "prior_layers": 1,
            "prior_width": 16,
            "prior_heads": 2,
        },
        learns="autoencoder",
    ),
    "vq-vae, by gradient, by class": Case(
        name="vq-vae",
        options={
            "widths": (8, 16),
            "codes": 16,
            "code_dim": 8,
            "codebook": "gradient",
            "conditional": True,
            "learning_rate": 1e-2,
            "prior_layers": 1,
            "prior_width": 16,
            "prior_heads": 2,
        },
        learns="autoencoder",
    ),
    "vae-gan": Case(
        name="vae-gan",
        options={"widths": (8, 8), "latent_dim": 4, "learning_rate": 2e-3},
        learns="discriminator",
    ),
    "gan": Case(
        name="gan",
        options={"generator_widths": (32,), "discriminator_widths": (32,), "latent_dim": 8},
        learns="discriminator",
    ),
    "vae, vectors, by class": Case(
        name="vae",
        options={
            "widths": (32,),
            "latent_dim": 2,
            "conditional": True,
            "weight_decay": 0.0,
            "learning_rate": 1e-2,
        },
        data="moons",
        learns="vae",
        falls=0.95,
    ),
    "autoencoder, vectors": Case(
        name="autoencoder",
        options={"widths": (32,), "latent_dim": 1, "learning_rate": 1e-2},
        data="moons",
        learns="loss",
    ),
    "vae-gan, vectors": Case(
        name="vae-gan",
        options={"widths": (16, 16), "latent_dim": 2, "learning_rate": 2e-3},
        data="moons",
        learns="discriminator",
        falls=0.95,
    ),
    "gan, vectors": Case(
        name="gan",
        options={"generator_widths": (32,), "discriminator_widths": (32,), "latent_dim": 2},
        data="moons",
        learns="discriminator",
        falls=0.95,
    ),
    "denoising-autoencoder, audio": Case(
        name="denoising-autoencoder",
        options={
            "network": "residual",
            "widths": (8, 8, 8),
            "latent_dim": 8,
            "learning_rate": 1e-2,
        },
        data="tones",
        learns="loss",
        falls=0.95,
    ),
    "iwae, audio": Case(
        name="iwae",
        options={"widths": (32,), "latent_dim": 4, "network": "mlp", "learning_rate": 1e-2},
        data="tones",
        learns="vae",
        falls=0.95,
    ),
    "dcgan": Case(
        name="dcgan",
        options={"widths": (16,), "latent_dim": 8, "discriminator_lr": 2e-3},
        learns="discriminator",
    ),
    "dcgan, by class": Case(
        name="dcgan",
        options={"widths": (16, 16), "latent_dim": 8, "conditional": True, "batch_size": 32},
        learns="discriminator",
    ),
    "dcgan, tutorial, auxiliary classifier": Case(
        name="dcgan",
        options={
            "network": "tutorial",
            "widths": (16, 16),
            "discriminator_widths": (8, 16),
            "latent_dim": 8,
            "conditional": True,
            "auxiliary_weight": 1.0,
            "separate_steps": True,
            "batch_size": 32,
            "discriminator_lr": 2e-3,
        },
        learns="real",
    ),
    "dcgan, relativistic, lazy penalty": Case(
        name="dcgan",
        options={
            "widths": (16,),
            "latent_dim": 8,
            "loss": "relativistic",
            "penalty": "zero-centred",
            "penalty_every": 2,
            "instance_noise": 0.1,
            "orthogonal": 1e-4,
            "discriminator_lr": 2e-3,
        },
        learns="discriminator",
        expected_failures=NO_OFFSET,
    ),
    "cgan": Case(
        name="cgan",
        options={"generator_widths": (32,), "discriminator_widths": (32,), "latent_dim": 8},
        learns="discriminator",
    ),
    "cgan, vectors, by projection": Case(
        name="cgan",
        options={
            "generator_widths": (32,),
            "discriminator_widths": (32,),
            "latent_dim": 2,
            "projection": True,
        },
        data="moons",
        learns="discriminator",
        falls=0.95,
    ),
    "lsgan": Case(
        name="lsgan",
        options={"widths": (16,), "latent_dim": 8, "discriminator_lr": 2e-3},
        learns="discriminator",
    ),
    "wgan": Case(
        name="wgan",
        options={"widths": (16,), "latent_dim": 8, "discriminator_lr": 1e-3, "clip": 0.1},
        learns="discriminator",
        expected_failures=NO_OFFSET,
    ),
    "wgan, vectors": Case(
        name="wgan",
        options={"widths": (16, 16), "latent_dim": 2, "clip": 0.3, "discriminator_lr": 1e-2},
        data="moons",
        learns="discriminator",
        expected_failures=NO_OFFSET,
    ),
    "wgan-gp": Case(
        name="wgan-gp",
        options={"widths": (16,), "latent_dim": 8, "discriminator_lr": 1e-3},
        learns="discriminator",
        expected_failures=NO_OFFSET,
    ),
    "wgan-gp, residual, by class": Case(
        name="wgan-gp",
        options={
            "network": "residual",
            "widths": (16, 16),
            "latent_dim": 8,
            "conditional": True,
            "batch_size": 16,
            "critic_steps": 1,
            "discriminator_lr": 1e-3,
        },
        learns="discriminator",
        expected_failures=NO_OFFSET,
    ),
    "wgan-gp, vectors, by class": Case(
        name="wgan-gp",
        options={"widths": (16, 16), "latent_dim": 2, "conditional": True},
        data="moons",
        learns="discriminator",
        expected_failures=NO_OFFSET,
    ),
    "sngan": Case(
        name="sngan",
        options={
            "generator_widths": (8, 8),
            "discriminator_widths": (8, 8),
            "latent_dim": 8,
            "discriminator_lr": 2e-3,
        },
        learns="discriminator",
    ),
    "sngan, by class": Case(
        name="sngan",
        options={
            "generator_widths": (16, 8),
            "discriminator_widths": (8,),
            "latent_dim": 8,
            "conditional": True,
            "critic_steps": 2,
            "discriminator_lr": 2e-3,
        },
        learns="discriminator",
    ),
    "sagan": Case(
        name="sagan",
        options={
            "generator_widths": (8, 8),
            "discriminator_widths": (8, 8),
            "final_size": 8,
            "attention": (),
            "latent_dim": 8,
            "discriminator_lr": 2e-3,
        },
        learns="discriminator",
    ),
    "biggan": Case(
        name="biggan",
        options={
            "generator_widths": (16, 8),
            "discriminator_widths": (8, 8),
            "latent_dim": 8,
            "shared_dim": 4,
            "discriminator_lr": 2e-3,
        },
        learns="discriminator",
    ),
    "r3gan": Case(
        name="r3gan",
        options={"widths": (16, 16), "group": 8, "latent_dim": 8, "batch_size": 32},
        learns="discriminator",
    ),
    "r3gan, by class, ada, patches": Case(
        name="r3gan",
        options={
            "widths": (16,),
            "patch": 2,
            "group": 8,
            "latent_dim": 8,
            "batch_size": 32,
            "conditional": True,
            "augment": "ada",
            "augment_images": 500,
            "augment_target": 0.0,
            "ema_images": 500.0,
            "discriminator_lr": 2e-3,
        },
        learns="discriminator",
    ),
    "r3gan, vectors, by class": Case(
        name="r3gan",
        options={"widths": (16, 16), "latent_dim": 2, "conditional": True},
        data="moons",
        learns="discriminator",
        falls=0.95,
    ),
    "mocogan": Case(
        name="mocogan",
        options={"widths": (8,), "latent_dim": 8, "motion_dim": 4, "discriminator_lr": 2e-3},
        data="clips",
        learns="discriminator",
    ),
    "mocogan, by class, auxiliary classifier": Case(
        name="mocogan",
        options={
            "widths": (8, 8),
            "latent_dim": 8,
            "motion_dim": 4,
            "conditional": True,
            "auxiliary_weight": 1.0,
            "penalty": "r1",
            "penalty_weight": 0.1,
            "discriminator_lr": 2e-3,
        },
        data="clips",
        learns="discriminator",
    ),
    "ddpm": Case(
        name="ddpm",
        options={"channels": 8, "multipliers": (1,), "attention": (8,), "blocks": 1, "warmup": 5},
        learns="train",
    ),
    **{
        name: Case(
            name=name,
            options={
                "channels": 8,
                "multipliers": (1,),
                "attention": (8,),
                "blocks": 1,
                "warmup": 5,
            },
            learns="train",
        )
        for name in ("edm", "flow-matching", "score-sde")
    },
    "edm, led by a classifier": Case(
        name="edm",
        options={
            "conditional": False,
            "classifier": True,
            "channels": 8,
            "multipliers": (1, 2),
            "attention": (4,),
            "warmup": 5,
        },
        learns="train",
    ),
    **{
        f"{name}, {task}": Case(
            name=name,
            options={"task": task, "channels": 8, "multipliers": (1,), "attention": (8,)},
            learns="train",
        )
        for name, task in (("ddpm", "upscale-2"), ("flow-matching", "inpaint"))
    },
    **{
        f"{name}, dit": Case(
            name=name,
            options={
                "network": "dit",
                "dit": {"patch": 2, "width": 16, "depth": 1, "heads": 2},
                "learning_rate": 1e-2,
                "warmup": 5,
            },
            learns="train",
        )
        for name in ("ddpm", "flow-matching")
    },
    "edm, self-conditioned": Case(
        name="edm",
        options={
            "self_condition": True,
            "channels": 8,
            "multipliers": (1,),
            "attention": (8,),
            "warmup": 5,
        },
        learns="train",
    ),
    "latent-diffusion": Case(
        name="latent-diffusion",
        options={
            "widths": (8,),
            "blocks": 1,
            "latent_channels": 2,
            "discriminator_width": 4,
            "adversarial_start": 0.0,
            "learning_rate": 5e-3,
            "flow": {"channels": 8, "multipliers": (1,), "attention": (4,), "warmup": 5},
        },
        learns="autoencoder",
        expected_failures=NO_OFFSET,
    ),
    "flow-matching, by caption": Case(
        name="flow-matching",
        options={
            "channels": 8,
            "multipliers": (1,),
            "attention": (8,),
            "text_width": 8,
            "text_layers": 1,
            "warmup": 5,
        },
        data="captioned digits",
        learns="train",
    ),
    "consistency": Case(
        name="consistency",
        options={"channels": 8, "multipliers": (1,), "attention": (8,), "learning_rate": 1e-2},
        learns="train",
        steps=120,
        falls=0.95,
    ),
    **{
        f"{name}, vectors": Case(
            name=name,
            options={"network": "mlp", "channels": 64, "blocks": 2, "learning_rate": 1e-2},
            data="moons",
            learns="train",
            falls=0.95,
        )
        for name in ("ddpm", "edm", "flow-matching", "score-sde", "consistency")
    },
    **{
        f"{name}, audio": Case(
            name=name,
            options={
                "channels": 8,
                "multipliers": (1, 2),
                "attention": (7,),
                "fold": 4,
                "learning_rate": 1e-2,
            },
            data="tones",
            learns="train",
        )
        for name in ("ddpm", "flow-matching")
    },
    "transformer": Case(
        name="transformer",
        options={"layers": 2, "width": 16, "heads": 2, "batch_size": 16},
        learns="model",
    ),
    "transformer, nanogpt, by class": Case(
        name="transformer",
        options={
            "recipe": "nanogpt",
            "grid": (),
            "layers": 1,
            "width": 16,
            "heads": 2,
            "conditional": True,
            "learning_rate": 1e-2,
        },
        learns="model",
        steps=60,
    ),
    "transformer, text": Case(
        name="transformer",
        options={"layers": 2, "width": 32, "heads": 2, "context": 16},
        data="python-stdlib",
        learns="model",
    ),
}
NATIVE = {
    "image": Grid(channels=1, size=(8, 8), levels=17),
    "vector": Vector(features=2),
    "audio": Grid(channels=1, size=(64,), domain="real"),
    "video": Grid(channels=1, size=(4, 8, 8)),
    "text": Tokens(vocabulary=50, length=0, stream=True),
}
SIZES = [
    NATIVE["image"],
    Grid(channels=1, size=(28, 28)),
    Grid(channels=3, size=(32, 32)),
    Grid(channels=3, size=(64, 64)),
]
FEW = {"grids": 0, "validations": 0, "log_every": 0.0, "threads": 1}


@pytest.fixture(params=list(CASES))
def case(request) -> Case:
    found = CASES[request.param]
    test = request.node.originalname
    if test in found.expected_failures:
        reason = found.expected_failures[test]
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return found


@pytest.fixture(params=registry.names())
def name(request) -> str:
    return request.param


# -- what the tests are made of ------------------------------------------------------------------


def moons(folder: Path) -> Path:
    x, y = make_moons(300, noise=0.05, random_state=0)
    rows = [f"{a},{b},{('up', 'down')[k]}" for (a, b), k in zip(x, y, strict=True)]
    (folder / "moons.csv").write_text("\n".join(["a,b,moon", *rows]))
    return folder / "moons.csv"


def tones(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in range(40):
        wave = 5000 * np.sin(2 * np.pi * (np.arange(300) * (k % 4 + 1) / 50 + rng.random()))
        (folder / f"{k}.wav").write_bytes(make_wav(wave.astype(np.int16), 8000))
    return folder


def clips(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in range(40):
        frames = rng.integers(0, 40, (6, 8, 8, 1)).astype(np.uint8)
        for t, frame in enumerate(frames):
            place = (k + t) % 7
            (frame if k % 2 else frame.swapaxes(0, 1))[place : place + 2, 2:6] += 200
        path = folder / ("down" if k % 2 else "right") / f"{k}.gif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_gif(pictures_of(frames), 10))
    return folder


MADE: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "moons": (moons, {"label": "moon"}),
    "tones": (tones, {"length": 50}),
    "clips": (clips, {"frames": 4}),
}
"""Data sets made for these tests: how, and how they are read."""


@cache
def data_of(case_data: str):
    options = {"source": case_data}
    if case_data in MADE:
        make, own = MADE[case_data]
        with tempfile.TemporaryDirectory() as folder:
            path = str(make(Path(folder)))
            return open_data(path, configs.from_dict(verb.DataConfig, own))
    if case_data == "captioned digits":
        options = {"source": "digits", "captions": True}
    if case_data == "python-stdlib":
        options["limit"] = 50_000
    return open_data(options["source"], configs.from_dict(verb.DataConfig, options))


def config_of(case: Case) -> Any:
    cls, entry = registry.model_class(case.name), registry.entry(case.name)
    preset = cls.preset(entry.preset, data_of(case.data).spec)
    return configs.override(preset, {**entry.options, **case.options})


def new_model(case: Case):
    data = data_of(case.data)
    torch.manual_seed(0)
    cls = registry.model_class(case.name)
    return build(cls, config_of(case), data.spec, data.condition)


def new_engine(case: Case, model: Any = None, **options: Any) -> Engine:
    train = TrainConfig(**{**FEW, "steps": 4, **options})
    model = new_model(case) if model is None else model
    return Engine(model, data_of(case.data), train, quiet=True)


_ENGINES: dict[int, Engine] = {}


def trained(case: Case) -> Engine:
    """Return the engine of a model after three steps; shared, so leave its weights alone."""
    if id(case) not in _ENGINES:
        engine = _ENGINES[id(case)] = new_engine(case, steps=3)
        engine.fit()
        engine.model.eval().requires_grad_(False)
    return _ENGINES[id(case)]


def held_out(engine: Engine, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor | None]:
    x, y, _ = next(engine.loader(engine.stages[0], "validation").in_order(rows))
    return x, engine.model.condition_on(x, y, Draws(("held out",), total=len(x)))


def fixed_loss(engine: Engine, phase: Any) -> float:
    """Return a phase's mean loss over held-out rows, always with the same noise."""
    torch.manual_seed(0)
    x, y = held_out(engine, 64)
    draws = Draws(("fixed",), total=len(x))
    batch = Batch(x=x, condition=y, index=torch.arange(len(x)), draws=draws, size=len(x))
    with torch.no_grad():
        values, _ = phase.loss(batch, engine.step)
    assert values.shape == (len(x),)
    assert values.dtype in (torch.float32, torch.float64)
    return float(values.mean())


# -- training ------------------------------------------------------------------------------------


def test_every_listed_model_has_a_case():
    assert {case.name for case in CASES.values()} == set(registry.names())


def test_gradients_reach_every_parameter(case):
    model = new_model(case)
    reached = set()
    for label, parameter in model.named_parameters():

        def note(p: torch.Tensor, label: str = label) -> None:
            if p.grad is not None and bool(p.grad.abs().sum() > 0):
                reached.add(label)

        parameter.register_post_accumulate_grad_hook(note)
    # Layers that start at zero let gradients through to those before them only after a few steps.
    new_engine(case, model, steps=4 * len(model.stages())).fit()
    assert {label for label, _ in model.named_parameters()} - reached == set()


def test_a_few_steps_lower_the_loss_on_real_data(case):
    model = new_model(case)
    (stage, *_) = model.stages()
    phase = next(phase for phase in stage.phases if phase.name == case.learns)
    model.stages = lambda: [dataclasses.replace(stage, phases=(phase,))]
    engine = new_engine(case, model, steps=case.steps)
    engine.prepare()
    before = fixed_loss(engine, phase)
    engine.fit()
    after = fixed_loss(engine, phase)
    assert math.isfinite(after)
    assert after < case.falls * before, (before, after)


# -- sampling ------------------------------------------------------------------------------------


def test_samples_have_the_shape_and_domain_of_the_view(case):
    model = trained(case).model
    x = model.sample(3, seed=0)
    spec = model.spec
    assert x.shape == (3, *spec.shape)
    assert x.device.type == "cpu"
    if isinstance(spec, Tokens):
        assert x.dtype == torch.int64
        assert int(x.min()) >= 0 and int(x.max()) < spec.vocabulary
    else:
        assert x.dtype == torch.float32
        real = (-math.inf, math.inf)
        low, high = {"signed": (-1, 1), "unit": (0, 1), "bits": (0, 1), "real": real}[spec.domain]
        assert low <= float(x.min()) and float(x.max()) <= high
    assert model.sample(0).shape == (0, *spec.shape)


def test_sampling_is_seeded_and_independent_of_batch_size(case):
    model = trained(case).model
    together = model.sample(5, seed=3)
    assert torch.equal(together, model.sample(5, seed=3))
    spread = float(together.float().std(0).mean())
    assert spread > 0

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().float().max()) / spread

    # Batched arithmetic rounds differently by size; another draw would differ by about 1.
    assert apart(model.sample(5, seed=3, batch_size=2), together) < 2e-3
    assert apart(model.sample(2, seed=3, first=2), together[2:4]) < 2e-3
    assert apart(model.sample(5, seed=4), together) > 0.5


# -- runs ----------------------------------------------------------------------------------------


class Recording(Engine):
    """An engine that the test can find, and that stops itself after some steps."""

    last: Recording
    stop_after: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Recording.last = self

    def run_step(self) -> dict[str, torch.Tensor]:
        logs = super().run_step()
        self.stop = self.stop_after is not None and self.step + 1 >= self.stop_after
        return logs


def test_resume_is_bitwise_and_loading_gives_the_same_samples(case, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "Engine", Recording)
    options = {**FEW, "steps": 5, "checkpoints": 1, "snapshots": 2}

    def run(folder: str, **more: Any) -> Any:
        return verb.train(
            case.name,
            case.data,
            config={"model": dict(case.options)},
            out=tmp_path / folder,
            quiet=True,
            opened=data_of(case.data),
            **options,
            **more,
        )

    whole = run("whole").checkpoint()
    engine = Recording.last
    monkeypatch.setattr(Recording, "stop_after", 2)
    stopped = run("stopped")
    assert Recording.last.step == 2
    monkeypatch.setattr(Recording, "stop_after", None)
    monkeypatch.setattr(verb, "open_data", lambda source, config: data_of(case.data))
    resumed = verb.train(resume=stopped.path, quiet=True).checkpoint()
    assert resumed.step == whole.step == 5
    for file in ("model", "ema", "averages", "optimizer", "extra"):
        assert resumed.hashes[f"{file}.safetensors"] == whole.hashes[f"{file}.safetensors"], file
    with engine.average.applied():
        expected = engine.model.sample(3, seed=1)
    loaded = load(tmp_path / "whole", device="cpu")
    assert torch.equal(loaded.model.sample(3, seed=1), expected)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    check_averages(tmp_path / "whole", engine)
    raws = loaded.sample(2, seed=1)
    assert len(raws) == 2 and type(raws[0]) is type(data_of(case.data).codec.decode(raw_row(case)))


def check_averages(path: Path, engine: Engine) -> None:
    """An average of a kept length is the one that training had, others are made and sampled."""
    state = load(path, checkpoint="ema:0.1", device="cpu").model.state_dict()
    kept = {k: v for k, v in engine.snapshots.shadow.items() if k.startswith("0.1/")}
    names = list(engine.model.ema()) or list(engine.model.networks())
    assert kept and all(any(k[4:].startswith(name) for name in names) for k in kept)
    assert all(torch.equal(state[k[4:]], v) for k, v in kept.items())
    assert sorted(Run(path).snapshots()) == [3, 5]
    model = load(path, checkpoint="ema:0.08@5", device="cpu").model
    assert model.sample(2).float().isfinite().all()


def raw_row(case: Case) -> torch.Tensor:
    rows, _ = data_of(case.data).splits["train"].fetch(torch.arange(1))
    return rows[0]


# -- capabilities --------------------------------------------------------------------------------


def test_every_declared_capability_works(case):
    engine = trained(case)
    model = engine.model
    x, y = held_out(engine)
    able = capabilities.of(model)
    b = len(x)
    if "encode" in able:
        latent = model.encode(x, y)
        rows = latent.values() if isinstance(latent, Mapping) else [latent]
        assert all(len(row) == b and bool(torch.isfinite(row.float()).all()) for row in rows)
        again = model.encode(x[:2], None if y is None else y[:2])
        first = next(iter(again.values())) if isinstance(again, Mapping) else again
        torch.testing.assert_close(first, next(iter(rows))[:2], atol=1e-4, rtol=1e-4)
    if "decode" in able and "encode" in able:
        whole = model.decode(model.encode(x, y), y)
        assert whole.shape == x.shape
        # The part of it that the latent space consists of is enough.
        parts = latent_parts(model.encode(x, y))
        torch.testing.assert_close(model.decode(parts.get("z", parts), y), whole)
    if "draw_latent" in able:
        z = model.draw_latent(Noise(3, range(b)))
        assert z.shape[0] == b and 0.5 < float(z.std()) < 1.5
        drawn = model.sample(b, seed=3, condition=y, precision="fp32")
        torch.testing.assert_close(model.decode(z, y), drawn)
    if "reconstruct" in able:
        assert model.reconstruct(x, y).shape == x.shape
        assert torch.equal(model.reconstruct(x, y), model.reconstruct(x, y))
    if "log_prob" in able:
        check_log_prob(model, x, y)
    if "conditionals" in able:
        table = model.conditionals(x, y)
        assert table.shape == (b, model.spec.length, table.shape[-1])
        torch.testing.assert_close(table.logsumexp(-1), torch.zeros(table.shape[:2]))
        targets = x[:, -model.spec.length :]
        total = table.gather(2, targets[..., None]).squeeze(2).double().sum(1)
        torch.testing.assert_close(total, model.log_prob(x, y).nats.double(), atol=1e-3, rtol=1e-5)
    if "denoiser" in able:
        estimate = model.denoiser(x, torch.zeros(b, dtype=torch.long), y)
        assert estimate.shape == x.shape and bool(torch.isfinite(estimate).all())
    if "discriminate" in able:
        logits = model.discriminate(x, y)
        assert logits.shape == (b,) and bool(torch.isfinite(logits).all())
    if values := model.validate(
        Batch(x=x, condition=y, index=torch.arange(b), draws=Draws(("v",), total=b), size=b)
    ):
        assert all(value.shape == (b,) for value in values.values())


def check_log_prob(model: Any, x: torch.Tensor, y: torch.Tensor | None) -> None:
    found = model.log_prob(x, y, samples=4, seed=0)
    assert found.nats.shape == (len(x),)
    assert bool(torch.isfinite(found.nats).all())
    assert found.dims == model.spec.dims
    assert found.kind in ("exact", "bound", "estimate")
    assert found.measure in ("discrete", "density")
    bits = -found.nats / found.dims / 0.6931471805599453
    torch.testing.assert_close(found.bits_per_dim, bits)
    again = model.log_prob(x, y, samples=4, seed=0).nats
    assert torch.equal(again, found.nats)
    if found.measure == "discrete":
        assert float(found.nats.max()) <= 0
    if found.kind == "exact":
        torch.testing.assert_close(model.log_prob(x, y, seed=9).nats, found.nats)
        flipped = model.log_prob(x.flip(0), None if y is None else y.flip(0)).nats
        torch.testing.assert_close(flipped.flip(0), found.nats)


def test_capabilities_that_are_missing_name_models_that_have_them(case):
    model = trained(case).model
    for missing in set(capabilities.CAPABILITIES) - set(capabilities.of(model)):
        with pytest.raises(capabilities.CapabilityError, match=r"models that can: \w+"):
            capabilities.require(model, missing)


# -- configuration and documentation -------------------------------------------------------------


def test_configuration_round_trips_through_yaml(case):
    config = config_of(case)
    text = configs.save_yaml(configs.to_dict(config))
    assert configs.from_dict(type(config), yaml.safe_load(text)) == config
    with pytest.raises(ConfigError, match=r"unknown key 'batchsize' .did you mean 'batch_size'"):
        configs.from_dict(type(config), {"batchsize": 3})


def test_every_option_is_documented(name):
    cls = registry.model_class(name)
    for inner in (cls.Config, cls.Sampling):
        assert inner.__dataclass_params__.frozen
        docs = configs.field_docs(inner)
        for option in dataclasses.fields(inner):
            assert option.kw_only
            assert len(docs.get(option.name, "")) > 10, f"{inner.__qualname__}.{option.name}"


def test_class_says_what_it_is_good_at_what_it_costs_and_where_it_is_from(name):
    entry = registry.entry(name)
    doc = registry.describe(name).doc
    for section in (r"Good at", r"Not (good )?at", r"Cost", r"Papers?\b"):
        assert re.search(section, doc), section
    assert re.search(r"(arXiv|doi)", doc)
    assert entry.summary and entry.accepts and set(entry.accepts) <= set(NATIVE)


def test_unsuitable_data_is_refused(name):
    cls, entry = registry.model_class(name), registry.entry(name)
    config = cls.preset("default", NATIVE[entry.accepts[0]])
    for kind in set(NATIVE) - set(entry.accepts):
        with pytest.raises(SpecError) as raised:
            cls.view(config, NATIVE[kind])
        assert "\n" not in str(raised.value)
    for kind in entry.accepts:
        fitting = cls.preset("default", NATIVE[kind])
        assert cls.view(fitting, NATIVE[kind]) is not None


def test_every_preset_constructs(name):
    cls, entry = registry.model_class(name), registry.entry(name)
    assert "default" in cls.presets() and entry.preset in cls.presets()
    specs = [spec for spec in SIZES if "image" in entry.accepts]
    specs += [NATIVE[kind] for kind in entry.accepts if kind != "image"]
    condition = Classes(count=3)
    for preset in cls.presets():
        built = 0
        for spec in specs:
            try:
                config = cls.preset(preset, spec)
                view = cls.view(config, spec)
            except (SpecError, ConfigError):
                continue  # a preset may be for some data only: it must say so, not fail later
            with torch.device("meta"):
                model = cls(config, view, condition)
            assert sum(p.numel() for p in model.parameters()) > 0
            assert model.stages() and model.optimizers()
            built += 1
        assert built, f"{name}: preset {preset} fits no data"
    assert registry.describe(name).presets.keys() == cls.presets().keys()


def test_copies_train_alike(case):
    """Training is a function of the seed alone: no state outside the model and engine."""
    first, second = new_model(case), new_model(case)
    other = copy.deepcopy(first)
    for model in (first, second, other):
        new_engine(case, model, steps=2).fit()
    for model in (second, other):
        for label, value in first.state_dict().items():
            assert torch.equal(value, model.state_dict()[label]), label
