"""Averages of any length after training: lengths, profiles, snapshots, what is made of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.faults import Faults, killed_at

from poiesis.cli.main import main
from poiesis.errors import ConfigError, PoiesisWarning, RunError
from poiesis.models import averages
from poiesis.models.samples import reproduce, sample
from poiesis.models.trained import load
from poiesis.runs import Run
from poiesis.training import snapshots, verb
from poiesis.training.ema import PowerAverage

OPTIONS: dict[str, Any] = {"steps": 24, "checkpoints": 3, "validations": 2, "grids": 0}
OPTIONS |= {"threads": 1, "snapshots": 8, "quiet": True}
TINY: dict[str, dict[str, Any]] = {
    "vae": {"widths": (16,), "latent_dim": 2, "batch_size": 16},
    "dcgan": {"widths": (8,), "latent_dim": 4, "batch_size": 16},
}


def train(out: Path, name: str = "vae", **changes: Any) -> Run:
    options = {**OPTIONS, **changes}
    return verb.train(name, "digits", config={"model": TINY[name]}, out=out, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return train(tmp_path_factory.mktemp("ema") / "run")


def weights(run: Run, checkpoint: str) -> dict[str, torch.Tensor]:
    return load(run.path, checkpoint=checkpoint, device="cpu").model.state_dict()


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((one[k] - two[k]).double().square().sum()) for k in one))


# -- lengths and profiles ------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "length"), [(16.97, 0.05), (6.94, 0.10)])
def test_lengths_are_the_published_ones(gamma, length):
    """Karras et al., arXiv 2312.02696, section 3.1."""
    assert averages.length_of(gamma) == pytest.approx(length, rel=1e-3)
    assert averages.exponent(length) == pytest.approx(gamma, rel=1e-3)


@pytest.mark.parametrize("length", [0.005, 0.03, 0.1, 0.2, 0.28, averages.LONGEST])
def test_a_length_is_the_relative_width_of_its_profile(length):
    gamma, t = averages.exponent(length), 20_000
    steps = np.arange(1.0, t + 1)
    p = averages.profile(gamma, t, steps)
    mean = (p * steps).sum()
    assert p.sum() == pytest.approx(1, rel=1e-12)
    assert np.sqrt((p * (steps - mean) ** 2).sum()) / t == pytest.approx(length, rel=1e-3)
    assert averages.length_of(gamma) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, math.nan])
def test_lengths_out_of_range_are_refused(length):
    with pytest.raises(ConfigError, match=r"length of an average = .* is outside \(0, 0\.288"):
        averages.exponent(length)


def test_the_tracked_average_has_its_profile():
    """Weights that are 1 after one step only show how much that step counts."""
    length, t = 0.1, 30
    network = torch.nn.Linear(t, 1, bias=False)
    network.register_buffer("count", torch.tensor(0))
    model: Any = torch.nn.ModuleDict({"net": network})
    model.ema, model.networks = dict, lambda: {"net": network}
    average = PowerAverage(model, length)
    for step in range(t):
        with torch.no_grad():
            network.weight.zero_()
            network.weight[0, step] = 1
            network.count.fill_(step)
        average.update(step)
    expected = averages.profile(averages.exponent(length), t, np.arange(1.0, t + 1))
    found = average.shadow["net.weight"][0].double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert int(average.shadow["net.count"]) == t - 1


# -- least squares -------------------------------------------------------------------------------


def evenly(count: int, t: int) -> list[tuple[float, int]]:
    return [(length, t * k // count) for k in range(1, count + 1) for length in (0.05, 0.1)]


def dense(kept: list[tuple[float, int]], t: int) -> np.ndarray:
    steps = np.arange(1.0, t + 1)
    rows = [averages.profile(averages.exponent(length), end, steps) for length, end in kept]
    return np.stack(rows)


def test_factors_are_the_best_that_add_up_to_one(monkeypatch):
    """Against least squares over the whole matrix, the sum put in by leaving one factor out."""
    monkeypatch.setattr(averages, "_CHUNK", 37)
    kept, t = evenly(6, 300), 300
    factors, errors = averages.combine(kept, [0.03, 0.2], t)
    rows, wanted = dense(kept, t), dense([(0.03, t), (0.2, t)], t)
    free = (rows[:-1] - rows[-1]).T
    for found, error, target in zip(factors, errors, wanted, strict=True):
        rest = np.linalg.lstsq(free, target - rows[-1], rcond=None)[0]
        np.testing.assert_allclose(found, [*rest, 1 - rest.sum()], atol=1e-6)
        apart = np.linalg.norm(found @ rows - target) / np.linalg.norm(target)
        assert error == pytest.approx(apart, rel=1e-6)


@pytest.mark.parametrize(
    ("length", "most"),
    [(0.015, 0.09), (0.02, 0.045), (0.05, 1e-6), (0.08, 1e-3), (0.15, 3e-3), (0.2, 0.01)],
)
def test_32_snapshots_come_near_any_length(length, most):
    """How far the profile of the sum is from the one asked for, relative to its norm."""
    _, (error,) = averages.combine(evenly(32, 2000), [length], 2000)
    assert error < most


@pytest.mark.parametrize("length", [0.02, 0.08, 0.2])
def test_reconstruction_of_weights_that_wander(length):
    """A random walk about a large offset: the average made afterwards is the one that was."""
    draw, t = np.random.default_rng(0), 1600
    path = 100 + np.cumsum(draw.standard_normal((t, 50)), 0)
    kept = evenly(32, t)
    factors, _ = averages.combine(kept, [length], t)
    made = factors[0] @ dense(kept, t) @ path
    direct = (dense([(length, t)], t) @ path)[0]
    nearest = min(
        np.linalg.norm((dense([one], t) @ path)[0] - direct) for one in ((0.05, t), (0.1, t))
    )
    assert np.linalg.norm(made - direct) < 0.02 * nearest


# -- runs ----------------------------------------------------------------------------------------


def test_a_kept_length_is_exactly_what_was_kept(run):
    for step, path in run.snapshots().items():
        stored = load_file(path / averages.FILE)
        for length in ("0.05", "0.1"):
            made = weights(run, f"ema:{length}@{step}")
            own = {k: v for k, v in stored.items() if k.startswith(f"{length}/")}
            assert len(own) == len(made)
            assert all(torch.equal(made[k.partition("/")[2]], v) for k, v in own.items())


@pytest.mark.parametrize("name", list(TINY))
@pytest.mark.parametrize("length", [0.07, 0.15])
def test_a_made_average_is_the_one_tracked_in_training(name, length, tmp_path, monkeypatch):
    """The same training again tells, which keeps just this length."""
    made = weights(train(tmp_path / "two", name), f"ema:{length}")
    usual = weights(Run(tmp_path / "two"), "latest")
    monkeypatch.setattr(snapshots, "LENGTHS", (length,))
    tracked = weights(train(tmp_path / "one", name), f"ema:{length}")
    assert distance(made, tracked) < 0.02 * distance(usual, tracked)
    whole = [k for k, v in made.items() if not v.is_floating_point()]
    assert all(torch.equal(made[k], tracked[k]) for k in whole)
    assert bool(whole) == (name == "dcgan")  # batch normalisation counts its batches


def test_the_step_is_the_snapshot_that_was_asked_for(run):
    steps = sorted(run.snapshots())
    assert steps == [3, 6, 9, 12, 15, 18, 21, 24]
    assert load(run.path, checkpoint="ema:0.1").step == 24
    assert load(run.path, checkpoint="ema:0.1@12").step == 12
    early, late = weights(run, "ema:0.08@12"), weights(run, "ema:0.08")
    assert distance(early, late) > 0


def test_samples_of_an_average_can_be_reproduced(run, tmp_path):
    paths = sample(run.path, 3, checkpoint="ema:0.08@21", out=tmp_path / "made")
    again = reproduce(paths[2], tmp_path / "again.png")
    assert again.read_bytes() == paths[2].read_bytes()
    other = sample(run.path, 3, checkpoint="ema:0.2", out=tmp_path / "other")
    assert other[2].read_bytes() != paths[2].read_bytes()


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("ema:long", "'ema:long': 'long' is no length; write e.g. ema:0.1"),
        ("ema:", "'ema:': '' is no length; write e.g. ema:0.1"),
        ("ema:0.5", "'ema:0.5': the length = 0.5 is outside (0, 0.288675]"),
        ("ema:nan", "'ema:nan': the length = nan is outside (0, 0.288675]"),
        ("ema:0.1@end", "'ema:0.1@end': 'end' is no step; write e.g. ema:0.1@5000"),
        ("ema:0.1@7", "has no snapshot of step 7; it has: 24, 21, 18, 15, 12, 9, 6, 3"),
        ("ema:0.001", "make averages of lengths 0.025 to 0.24, not 0.001; more of them reach"),
    ],
)
def test_what_cannot_be_made_is_one_line(run, checkpoint, said, capsys, tmp_path):
    words = ["sample", str(run.path), "-n", "2", "--checkpoint", checkpoint, "--quiet"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    out = capsys.readouterr().err
    assert out.count("\n") == 1 and said in out
    assert not (tmp_path / "out").exists()


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path):
    run = train(tmp_path / "run", snapshots=0, steps=2)
    assert averages.FILE not in run.checkpoint().hashes
    with pytest.raises(RunError, match=r"holds no snapshots .* --train.snapshots 32"):
        load(run.path, checkpoint="ema:0.1")
    before = run.checkpoint().hashes
    with pytest.raises(RunError, match="can't begin in the middle of a run"):
        verb.train(resume=run.path, quiet=True, steps=4, snapshots=4)
    assert (run.checkpoint().step, run.checkpoint().hashes) == (2, before)
    assert run.config()["train"]["snapshots"] == 0


def test_raw_weights_are_no_average(run):
    with pytest.raises(ConfigError, match=r"'ema:0\.1' is an average: leave out weights = raw"):
        load(run.path, checkpoint="ema:0.1", weights="raw")


# -- what goes wrong -----------------------------------------------------------------------------


def test_damaged_snapshots_are_done_without(tmp_path):
    run = train(tmp_path / "run")
    whole = weights(run, "ema:0.08@24")
    (run.snapshots()[9] / averages.FILE).write_bytes(b"")
    with pytest.warns(PoiesisWarning, match=r"average-00000009.*is damaged; doing without it"):
        near = weights(run, "ema:0.08")
    usual = weights(run, "latest")
    assert 0 < distance(near, whole) < 0.1 * distance(usual, whole)
    (run.snapshots()[24] / averages.FILE).write_bytes(b"")
    with pytest.warns(PoiesisWarning, match="doing without it"):
        assert load(run.path, checkpoint="ema:0.08").step == 21
    with (
        pytest.warns(PoiesisWarning, match="doing without it"),
        pytest.raises(RunError, match=r"average-00000024.*is damaged"),
    ):
        load(run.path, checkpoint="ema:0.08@24")


def test_death_while_a_snapshot_is_written_leaves_the_one_before(tmp_path):
    """Every write of the second snapshot; nothing is seen of it until it is whole."""
    tensors = {"0.1/w": torch.ones(4)}
    files = {averages.FILE: tensors, "state.json": {"lengths": [0.1]}}

    def write(step: int, run: Run) -> None:
        run.save_checkpoint(step, files, kind="average", pointer=None, keep=8)

    counted = Run.create(tmp_path / "counted", "digits", "vae")
    write(1, counted)
    with Faults() as faults:
        write(2, counted)
    assert len(faults.seen) > 8
    seen = set()
    for at in range(len(faults.seen)):
        run = Run.create(tmp_path / str(at), "digits", "vae")
        write(1, run)
        assert killed_at(at, lambda run=run: write(2, run))
        steps = tuple(run.snapshots())
        seen.add(steps)
        made = averages.average(run, 0.1, buffers=())
        assert made.step == steps[0] and torch.equal(made.tensors["w"], torch.ones(4))
    assert seen == {(1,), (2, 1)}


def test_snapshots_stay_few_and_spread(tmp_path):
    run = Run.create(tmp_path / "run", "digits", "vae")
    files = {averages.FILE: {}, "state.json": {"lengths": []}}
    for step in range(1, 41):
        run.save_checkpoint(step, files, kind="average", pointer=None, keep=6)
        assert len(run.snapshots()) == min(step, 6)
    kept = list(run.snapshots())
    assert kept[0] == 40 and kept[-1] == 1
    assert max(a - b for a, b in itertools.pairwise(kept)) <= 3 * 39 / 5
    run.rewind(20)
    assert list(run.snapshots()) == [step for step in kept if step <= 20]


def test_a_longer_run_keeps_as_many(tmp_path):
    run = train(tmp_path / "run", steps=12, snapshots=4)
    assert sorted(run.snapshots()) == [3, 6, 9, 12]
    verb.train(resume=run.path, quiet=True, steps=24)
    assert len(run.snapshots()) == 4 and max(run.snapshots()) == 24


def test_sums_keep_a_variance_positive(tmp_path):
    """A statistic that is 1 at first and then 0: the sum would go a little below zero."""
    run = Run.create(tmp_path / "run", "digits", "vae")
    t, value = 320, np.where(np.arange(320) < 60, 1.0, 0.0)
    for end in range(20, t + 1, 20):
        names = itertools.product(averages.LENGTHS, ("variance", "weight"))
        own = {
            f"{n:g}/{name}": torch.tensor(dense([(n, end)], end) @ value[:end]) for n, name in names
        }
        files = {averages.FILE: own, "state.json": {"lengths": list(averages.LENGTHS)}}
        run.save_checkpoint(end, files, kind="average", pointer=None, keep=99)
    made = averages.average(run, 0.07, buffers=("variance",)).tensors
    assert float(made["weight"]) < 0 < float(made["variance"])
