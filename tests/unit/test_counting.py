"""Evaluations of a network for each sample: what results say, against counts known beforehand."""

import json

import pytest
import torch

import poiesis
from poiesis.apply.edit import edit, inpaint
from poiesis.apply.translate import upscale
from poiesis.cli.main import main
from poiesis.data.provenance import read_recipe
from poiesis.evaluation.protocol import EvaluationConfig, evaluate
from poiesis.models.diffusion import guidance
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.edm import EDM
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.samples import reproduce
from poiesis.models.trained import load
from poiesis.rng import Noise
from poiesis.sampling.counting import asked, counting, drawn, say
from poiesis.spec import Classes, Vector

HOW = {"threads": 1, "quiet": True, "grids": 0}
SMALL = {"channels": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4}
TINY = {"network": "mlp", "channels": 8, "blocks": 1}


def made(cls, classes=0):
    torch.manual_seed(0)
    condition = Classes(count=classes) if classes else None
    return cls(cls.Config(**TINY), Vector(features=2), condition).eval()


def each(model, n=5, **options):
    with counting() as count:
        model.sample(n, options=model.Sampling(**options), batch_size=2)
    assert count.samples == n
    return count.each


def test_counts_nest_and_divide_by_what_was_drawn():
    with counting() as outer:
        asked(6)
        with counting() as inner:
            asked(4)
            drawn(2)
        drawn(3)
    asked(100)
    assert (outer.rows, outer.samples, outer.each) == (10, 5, 2)
    assert (inner.rows, inner.samples, inner.each) == (4, 2, 2)
    with counting() as none:
        drawn(5)
    assert none.each is None and say(none.each, ", ") == ""
    assert say(1) == "1 evaluation" and say(35.5, ", ", " each") == ", 35.5 evaluations each"


@pytest.mark.parametrize(
    ("sampler", "steps", "expected"),
    [
        ("ancestral", 30, 30),
        ("ddim", 20, 20),
        ("euler", 20, 20),
        ("heun", 18, 35),  # the paper's: two calls a step but for the last
        ("dpm-solver++", 20, 20),
        ("unipc", 7, 7),
    ],
)
def test_samplers_take_what_their_papers_say(sampler, steps, expected):
    for cls in (DDPM, EDM, FlowMatching):
        assert each(made(cls), sampler=sampler, steps=steps) == expected


def test_adaptive_counts_what_it_took():
    model = made(FlowMatching)
    torch.nn.init.normal_(model.mlp.outlet.weight)  # it begins at zero, with nothing to solve
    network, calls = model.mlp.forward, []
    model.mlp.forward = lambda x, *more: calls.append(len(x)) or network(x, *more)
    coarse = each(model, sampler="adaptive", tolerance=1e-2)
    assert coarse == sum(calls) / 5 and coarse >= 8  # the seven of a step, and the last
    assert each(model, sampler="adaptive", tolerance=1e-6) > coarse


def test_guidance_doubles_where_it_acts():
    model = made(EDM, classes=3)
    ddim = {"sampler": "ddim", "steps": 20}
    assert each(model, **ddim) == 20
    assert each(model, **ddim, guidance=0) == 20
    assert each(model, **ddim, guidance=2) == 40
    path = model.path(model.Sampling(**ddim))
    shares = [s / (a + s) for a, s in zip(path.alpha, path.sigma, strict=True)][:-1]
    acts = sum(0.3 <= share <= 0.8 for share in shares)
    assert 0 < acts < 20
    assert each(model, **ddim, guidance=2, guidance_interval=(0.3, 0.8)) == 20 + acts
    assert each(made(EDM), **ddim, guidance=2) == 20  # nothing to guide to


def test_a_weaker_guide_adds_its_own(monkeypatch):
    model, weak = made(EDM, classes=3), made(EDM, classes=3)
    monkeypatch.setattr(guidance, "weaker", lambda guide, own: weak)
    how = {"sampler": "heun", "steps": 5, "guide": "weak"}
    assert each(model, **how) == 18
    assert each(model, **how, guidance=2) == 27
    assert each(model, **how, guide_scale=1) == 9


def test_likelihood_counts_its_solver():
    model = made(FlowMatching)
    network, calls = model.mlp.forward, []
    model.mlp.forward = lambda x, *more: calls.append(len(x)) or network(x, *more)
    with counting() as count:
        model.log_prob(Noise(0, range(6)).randn(2))
    assert count.rows == sum(calls) and count.rows % 6 == 0
    with counting() as count:
        made(DDPM).log_prob(Noise(0, range(6)).randn(2), samples=10)
    assert count.rows == 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "edm"
    model = {**SMALL, "conditional": True}
    poiesis.train("edm", "digits", steps=2, config={"model": model}, out=out, **HOW)
    return out


def test_samples_say_it_and_repeat_it(run, tmp_path, capsys):
    ask = ["sample", str(run), "-n", "5", "--quiet", "--batch-size", "2", "--threads", "1"]
    assert main([*ask, "-o", str(tmp_path / "a"), "--sampling.steps", "3"]) == 0
    assert "5 samples, 5 evaluations each: " in capsys.readouterr().out
    for path in sorted((tmp_path / "a").glob("0*.png")):
        assert read_recipe(path)["evaluations"] == 5
        again = reproduce(path, tmp_path / "again.png")
        assert again.read_bytes() == path.read_bytes()


def test_shards_say_it_and_go_on(run, tmp_path, capsys):
    ask = ["sample", str(run), "-n", "7", "--quiet", "--shard-size", "3", "--threads", "1"]
    ask += ["--sampling.sampler", "adaptive", "--sampling.tolerance", "0.1", "--batch-size", "2"]
    folder = tmp_path / "many"
    assert main([*ask, "-o", str(folder)]) == 0
    first = capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shards = json.loads(before["manifest.json"])["shards"]
    mean = sum(s["evaluations"] * s["count"] for s in shards) / 7
    assert f"7 samples in 3 shards{say(mean, ', ', ' each')}: " in first
    assert "evaluations" in first and mean > 10
    (folder / "shard-00001.zip").unlink()
    assert main([*ask, "-o", str(folder)]) == 0
    assert capsys.readouterr().out == first
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_edits_say_it(run, capsys):
    how = {"limit": 3, "seed": 1}
    options = {"steps": 4}
    assert edit(run, variants=2, strength=0.5, options=options, **how).evaluations == 3
    assert inpaint(run, mask="left", resamples=2, options=options, **how).evaluations == 7
    assert main(["edit", str(run), "--limit", "2", "--quiet", "--sampling.steps", "2"]) == 0
    assert "2 pictures of 2 (digits, test), 1 evaluation each" in capsys.readouterr().out


def test_enlarging_says_it(tmp_path):
    model = {**SMALL, "task": "upscale-2"}
    out = tmp_path / "large"
    poiesis.train("flow-matching", "digits", steps=2, config={"model": model}, out=out, **HOW)
    found = upscale(out, limit=3, variants=2, options={"steps": 4, "sampler": "ddim"})
    assert found.evaluations == 4


def test_numbers_say_it(run):
    found = evaluate(run, EvaluationConfig(samples=40, likelihood_rows=8, extractor="random"))
    assert found["fid"].evaluations == 35 and found["sampling_speed"].evaluations == 35
    assert found["nll"].evaluations > 35
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found
    old = found["fid"].to_json()
    del old["evaluations"]
    assert type(found["fid"]).from_json(old).evaluations is None


def test_models_in_one_pass_say_nothing(tmp_path, capsys):
    out = tmp_path / "vae"
    poiesis.train("vae", "digits", steps=2, out=out, **HOW)
    assert main(["sample", str(out), "-n", "2", "--quiet", "-o", str(tmp_path / "new")]) == 0
    assert "2 samples: " in capsys.readouterr().out
    assert "evaluations" not in read_recipe(tmp_path / "new" / "00000.png")


def test_latents_and_consistency_count_their_networks(tmp_path):
    flow = {**SMALL, "batch_size": 8, "multipliers": (1,), "attention": (4,)}
    latent = {"widths": (8,), "blocks": 0, "latent_channels": 2, "flow": flow}
    out = tmp_path / "latent"
    poiesis.train("latent-diffusion", "digits", steps=4, config={"model": latent}, out=out, **HOW)
    model = load(out).model
    assert each(model, sampler="ddim", steps=6) == 6
    out = tmp_path / "consistency"
    poiesis.train("consistency", "digits", steps=2, config={"model": SMALL}, out=out, **HOW)
    assert each(load(out).model, steps=2) == 2
