"""Guidance by a classifier of noised data: closed forms of Gaussians, gradients, refusals, use."""

import json
import math

import numpy as np
import pytest
import torch

import poiesis
from poiesis.data.codecs import VectorCodec
from poiesis.errors import ConfigError
from poiesis.interop import diffusers
from poiesis.models.diffusion.consistency import Consistency
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.edm import EDM
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.diffusion.latent_diffusion import LatentDiffusion
from poiesis.models.diffusion.score_sde import ScoreSDE
from poiesis.models.trained import load
from poiesis.rng import Noise
from poiesis.sampling.counting import counting
from poiesis.spec import Captions, Classes, Grid, Vector

HOW = {"threads": 1, "quiet": True, "grids": 0}
SMALL = {"channels": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4}
MLP = {"network": "mlp", "channels": 8, "blocks": 1}
ALONE = {"conditional": False, "classifier": True}
MEAN, STD = 1.0, 0.4
FAMILY = [DDPM, EDM, FlowMatching, ScoreSDE]


def exact(cls):
    """Return a model that knows N(±MEAN, STD²): the denoiser of both, and which one x_t is of."""
    model = cls(cls.Config(**MLP, **ALONE), Vector(features=1), Classes(count=2)).eval()
    assert model.told is None and model.condition.count == 2

    def denoiser_of(sign, x_t, t):
        alpha, sigma = model._level(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return sign * MEAN + gain * (x_t - alpha * sign * MEAN)

    def classify(x_t, t):
        alpha, sigma = model._level(t)
        score = alpha * MEAN * x_t / (alpha**2 * STD**2 + sigma**2)
        return torch.cat([-score, score], 1)

    def estimate(x_t, t, condition=None):
        shares = classify(x_t, t).softmax(1)
        x0 = shares[:, :1] * denoiser_of(-1, x_t, t) + shares[:, 1:] * denoiser_of(1, x_t, t)
        return x0, x0[:, :0]

    model.classify, model.estimate, model.denoiser_of = classify, estimate, denoiser_of
    return model


@pytest.mark.parametrize("cls", FAMILY)
def test_one_follows_bayes_rule_exactly(cls):
    """The estimate of x0 for all classes, led by the exact classifier, is that of one class."""
    model = exact(cls)
    path = model.path(model.Sampling(steps=12, sampler="ddim"))
    x = torch.linspace(-3, 3, 13)[:, None]
    for label, sign in ((0, -1), (1, 1)):
        y = torch.full((13,), label)
        for level, alpha, sigma in zip(path.levels, path.alpha, path.sigma, strict=False):
            # Beyond it stands the answer at a hundredth of the noise, which is nearly the same.
            near = {"atol": 2e-3 if sigma < 99 * alpha else 0.05, "rtol": 1e-3}
            x_t = x * math.hypot(alpha, sigma)
            t = torch.full((13,), level)
            whole = model.estimate(x_t, t)[0]
            led = model.led(whole, x_t, t, y, model.Sampling(classifier_scale=1.0))
            torch.testing.assert_close(led, model.denoiser_of(sign, x_t, t), **near)
            twice = model.led(whole, x_t, t, y, model.Sampling(classifier_scale=2.0))
            torch.testing.assert_close(twice - whole, 2 * (led - whole), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "heun", "dpm-solver++"])
def test_a_model_without_classes_samples_one(cls, sampler):
    n, model = 3000, exact(cls)
    steps = 40 if sampler == "dpm-solver++" else 200
    for label, sign in ((0, -1), (1, 1)):
        y = torch.full((n,), label)
        options = model.Sampling(sampler=sampler, steps=steps)
        x = model.sample(n, seed=label, condition=y, options=options, batch_size=n)
        assert float(x.mean()) == pytest.approx(sign * MEAN, abs=0.04)
        assert float(x.std()) == pytest.approx(STD, rel=0.08)
    both = model.sample(n, options=model.Sampling(classifier_scale=0, sampler=sampler, steps=steps))
    assert abs(float(both.mean())) < 0.1
    assert float(both.std()) == pytest.approx(math.hypot(MEAN, STD), rel=0.05)


def test_more_guidance_goes_further_from_the_other_class():
    model = exact(EDM)
    y = torch.ones(1000, dtype=torch.long)
    means = [
        float(
            model.sample(
                1000, condition=y, options=EDM.Sampling(classifier_scale=scale), batch_size=1000
            ).mean()
        )
        for scale in (0, 1, 2, 4)
    ]
    assert means == sorted(means) and means[-1] > MEAN + 0.1


@pytest.mark.parametrize("spec", [Vector(features=3), Grid(channels=1, size=(8, 8))])
def test_the_gradient_is_that_of_the_class(spec):
    torch.manual_seed(0)
    network = MLP if isinstance(spec, Vector) else SMALL
    view = EDM.view(EDM.Config(**network), spec)
    model = EDM(EDM.Config(**network, **ALONE), view, Classes(count=5)).eval()
    for parameter in model.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # some layers begin at zero
    model.requires_grad_(False).double()
    x_t = Noise(0, range(4)).randn(*view.shape)
    t, y = torch.full((4,), 0.5), torch.tensor([0, 1, 2, 3])

    def log_p(x):
        return model.classify(x, t).log_softmax(1).gather(1, y[:, None]).sum()

    with torch.autocast("cpu", enabled=False):
        model.float()
        options = EDM.Sampling(classifier_scale=3.0)
        moved = model.led(torch.zeros_like(x_t), x_t, t, y, options)
        gradient = moved / (3 * 0.25)
        step = 1e-2 * gradient / gradient.norm()
        rise = float((log_p(x_t + step) - log_p(x_t - step)) / (2 * step.norm()))
    assert rise == pytest.approx(float(gradient.norm()), rel=0.02) and rise > 1e-3
    # Each row's is its own: nothing of one sample reaches another.
    alone = model.led(torch.zeros(1, *view.shape), x_t[:1], t[:1], y[:1], options)
    torch.testing.assert_close(alone, moved[:1], atol=1e-5, rtol=1e-3)


def test_it_acts_within_the_interval_and_is_counted():
    torch.manual_seed(0)
    model = EDM(EDM.Config(**MLP, **ALONE), Vector(features=1), Classes(count=2)).eval()

    def each(**options):
        with counting() as count:
            model.sample(4, options=EDM.Sampling(sampler="ddim", steps=20, **options))
        return count.each

    assert each() == 40 and each(classifier_scale=0) == 20
    assert 20 < each(guidance_interval=(0.3, 0.8)) < 40
    # The network has learned no classes, so there is nothing for the other kind of guidance to do.
    assert each(guidance=4, classifier_scale=0) == 20


@pytest.mark.parametrize("cls", [DDPM, FlowMatching])
def test_errors_at_pure_noise_are_not_blown_up(cls):
    """Where α is nearly or wholly 0, what a classifier says is its own error, times σ²/α."""
    torch.manual_seed(0)
    model = cls(cls.Config(**MLP, **ALONE), Vector(features=1), Classes(count=2)).eval()
    torch.nn.init.normal_(model.classifier.outlet.weight)
    level = model.path(model.Sampling(steps=20)).levels[0]
    x_t, y, t = torch.ones(2, 1), torch.tensor([0, 1]), torch.full((2,), level)
    alpha, sigma = model.marginal(t[:1])
    assert float(alpha) < 1e-3 * float(sigma)
    found = model.led(torch.zeros(2, 1), x_t, t, y, model.Sampling(classifier_scale=1.0))
    slope = 1.0  # about what the logits of such a network change by over the noise's own spread
    assert 0 < float(found.abs().max()) < 100 * slope


# -- what is refused -------------------------------------------------------------------------------


def test_refusals():
    with pytest.raises(ConfigError, match="classifier = True needs classes, and here are none"):
        EDM(EDM.Config(**MLP, classifier=True), Vector(features=1))
    captions = Captions(words=("a", "b"), length=2, examples=("a b",))
    grid = EDM.view(EDM.Config(**SMALL), Grid(channels=1, size=(8, 8)))
    with pytest.raises(ConfigError, match="classifier = True needs classes"):
        EDM(EDM.Config(**SMALL, classifier=True), grid, captions)
    with pytest.raises(ConfigError, match="classifier = True needs classes"):
        EDM(EDM.Config(**SMALL, classifier=True, task="upscale-2"), grid, Classes(count=2))
    with pytest.raises(ConfigError, match="classifier = True has no use here"):
        Consistency.Config(classifier=True)
    with pytest.raises(ConfigError, match=r"classifier_scale = -1 is outside \[0, 1000\]"):
        EDM.Sampling(classifier_scale=-1)
    model = EDM(EDM.Config(**MLP), Vector(features=1), Classes(count=2))
    with pytest.raises(ConfigError, match="classifier_scale = 2, but this model has no classifier"):
        model.sample(2, options=EDM.Sampling(classifier_scale=2.0))
    assert model.sample(2, options=EDM.Sampling(classifier_scale=0.0)).shape == (2, 1)


# -- trained models --------------------------------------------------------------------------------


def test_a_run_asked_for_a_class(tmp_path):
    """Two clouds that a model learns as one; its classifier tells them apart."""
    rng = np.random.default_rng(0)
    sides = np.repeat([-2.0, 2.0], 300)
    rows = np.stack([sides + rng.normal(0, 0.5, 600), rng.normal(0, 1, 600)], 1)
    lines = [
        f"{a},{b},{'left' if s < 0 else 'right'}" for (a, b), s in zip(rows, sides, strict=True)
    ]
    (tmp_path / "clouds.csv").write_text("\n".join(["a,b,side", *lines]))
    model = {**ALONE, "channels": 64, "blocks": 2}
    run = poiesis.train(
        "ddpm",
        str(tmp_path / "clouds.csv"),
        steps=400,
        config={"model": model, "data": {"label": "side"}},
        out=tmp_path / "run",
        **HOW,
    )
    trained = load(run.path)
    assert isinstance(trained.codec, VectorCodec)

    def left(label, **options):
        return float(np.mean([row[0] < 0 for row in trained.sample(200, label=label, **options)]))

    assert left("left") > 0.9 and left("right") < 0.1  # without being told how strongly
    assert 0.3 < left("left", classifier_scale=0.0) < 0.7
    assert {"train/classifier", "validation/class"} <= {key for m in run.metrics() for key in m}
    weights = trained.model.state_dict()
    assert not any("class_embedding" in name for name in weights)
    assert any(name.startswith("classifier.") for name in weights)


def test_latents_are_led_too(tmp_path):
    flow = {**SMALL, **ALONE, "batch_size": 8, "multipliers": (1,), "attention": (4,)}
    config = {"model": {"widths": (8,), "blocks": 0, "latent_channels": 2, "flow": flow}}
    run = poiesis.train("latent-diffusion", "digits", steps=8, config=config, out=tmp_path, **HOW)
    trained = load(run.path)
    assert isinstance(trained.model, LatentDiffusion) and trained.model.flow.told is None
    pictures = {
        (label, scale): trained.model.sample(
            1, condition=torch.tensor([label]), options=trained.options(classifier_scale=scale)
        )
        for label in (0, 7)
        for scale in (0.0, 50.0)
    }
    assert torch.equal(pictures[0, 0.0], pictures[7, 0.0])
    assert not torch.equal(pictures[0, 50.0], pictures[7, 50.0])


def test_students_and_exports_leave_it_behind(tmp_path):
    config = {"model": {**SMALL, **ALONE}}
    run = poiesis.train("ddpm", "digits", steps=2, config=config, out=tmp_path / "t", **HOW)
    files, _ = diffusers.write(load(run.path))
    assert json.loads(files["unet/config.json"])["num_class_embeds"] is None
    assert not any(b"classifier" in file for file in files.values())
    distilled = {"model": {**SMALL, "teacher": str(run.path)}}
    student = poiesis.train(
        "consistency", "digits", steps=2, config=distilled, out=tmp_path / "s", **HOW
    )
    model = load(student.path).model
    assert model.condition is None and model.student.classifier is None
    reflow = {"model": {**SMALL, "conditional": False, "classifier": True}}
    flow = poiesis.train(
        "flow-matching", "digits", steps=2, config=reflow, out=tmp_path / "f", **HOW
    )
    again = {"model": {**SMALL, "teacher": str(flow.path), "teacher_steps": 1}}
    straight = poiesis.train(
        "flow-matching", "digits", steps=2, config=again, out=tmp_path / "r", **HOW
    )
    assert load(straight.path).model.condition is None
