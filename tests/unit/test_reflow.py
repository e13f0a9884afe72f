"""Reflow: a rectified flow's lines are straighter than its teacher's."""

import pytest
import torch

import poiesis
from poiesis.errors import ConfigError
from poiesis.models.base import Batch
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.trained import load
from poiesis.rng import Draws
from poiesis.spec import Vector

PLANE = Vector(features=2)
MLP = {"network": "mlp", "channels": 64, "blocks": 2}
HOW = {"steps": 4, "grids": 0, "threads": 1, "quiet": True}
SMALL = {"channels": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4}


def fit(model, steps):
    parameters = list(model.mlp.parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for step in range(steps):
        draws = Draws(("bumps", step), total=256)
        # Two bumps left and right, which independent noise reaches on crossing lines.
        x = 0.1 * draws.randn(2)
        x[:, 0] += 1.5 * (draws.rand() < 0.5) - 0.75
        batch = Batch(x=x, condition=None, index=torch.arange(256), draws=draws, size=256)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        model.loss(batch, step)[0].mean().backward()
        optimizer.step()
    return model


@torch.no_grad()
def gap(model, noise):
    """Return the mean distance of samples in one step of Euler's from those in many of Heun's."""
    path = model.path(model.Sampling(sampler="euler", steps=1))
    one = noise - model.output(noise, torch.full((len(noise),), path.levels[0]), None)
    return float((one - model.made_of(noise, steps=50)).norm(dim=1).mean())


def test_one_step_comes_nearer_to_many_after_reflow():
    torch.manual_seed(0)
    teacher = fit(FlowMatching(FlowMatching.Config(**MLP), PLANE), 500).eval().requires_grad_(False)
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    config = FlowMatching.Config(**MLP, teacher="a run", teacher_steps=6)
    student = FlowMatching(config, PLANE, parts={"teacher": teacher})
    before = gap(student, noise)
    assert before == gap(teacher, noise)
    fit(student, 250)
    after = gap(student, noise)
    assert after < 0.5 * before
    with torch.no_grad():
        made = student.made_of(noise)
    assert float(made[:, 0].abs().mean()) == pytest.approx(0.75, abs=0.1)
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_a_run_is_straightened_and_loads_without_its_teacher(tmp_path):
    teacher = poiesis.train(
        "flow-matching", "digits", config={"model": SMALL}, out=tmp_path / "teacher", **HOW
    )
    own = {"teacher": str(teacher.path), "teacher_steps": 2}
    run = poiesis.train(
        "flow-matching", "digits", config={"model": own}, out=tmp_path / "student", **HOW
    )
    (tmp_path / "teacher").rename(tmp_path / "gone")
    pictures = load(run.path).sample(3, seed=1)
    assert len(pictures) == 3 and pictures[0].size == (8, 8)


def test_other_teachers_and_couplings_are_refused(tmp_path):
    vae = poiesis.train("vae", "digits", out=tmp_path / "vae", **HOW)
    with pytest.raises(ConfigError, match="is a VAE; give a run of flow-matching"):
        poiesis.train(
            "flow-matching",
            "digits",
            config={"model": {"teacher": str(vae.path)}},
            out=tmp_path / "other",
            **HOW,
        )
    with pytest.raises(ConfigError, match="coupling = 'optimal-transport' has no use"):
        FlowMatching.Config(teacher="x", coupling="optimal-transport")
