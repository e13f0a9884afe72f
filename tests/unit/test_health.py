"""Health monitors: nulls, looks that change nothing, alarms on faults made on purpose, rollback."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from typing import Any, ClassVar

import pytest
import torch

from poiesis import registry
from poiesis.config import from_dict
from poiesis.data import open_data
from poiesis.errors import ConfigError
from poiesis.metrics.density_coverage import expected_coverage
from poiesis.metrics.features import features_of
from poiesis.models.gans.gan import GAN
from poiesis.rng import mix
from poiesis.runs import Run
from poiesis.training import alarms, monitors, schedule
from poiesis.training.alarms import Check
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine
from poiesis.training.health import SHARE, Health
from poiesis.training.monitors import Null, Reference

QUIET = {"grids": 0, "validations": 0, "checkpoints": 0}


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture(scope="module")
def ring():
    return open_data("ring")


def engine_of(cls: Any, data: Any, run: Run | None = None, *, seed: int = 0, **options: Any):
    """Return an engine for a model class or a listed name; `model` holds its options."""
    changes = options.pop("model", {})
    cls = registry.model_class(cls) if isinstance(cls, str) else cls
    config = from_dict(cls.Config, changes, base=cls.preset("default", data.spec))
    torch.manual_seed(mix("init", seed))
    model = cls(config, cls.view(config, data.spec), data.condition)
    return Engine(model, data, TrainConfig(**{**QUIET, **options}), run=run, quiet=True, seed=seed)


# -- nulls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ring", "digits"])
def test_nulls_are_what_other_real_data_give(name):
    data = open_data(name)
    _, features = features_of(data)
    reference = Reference(data, features)
    nulls, n = reference.nulls, reference.samples
    own = min(monitors.REFERENCE, len(data.splits["train"]) // 2)
    # Real sets against the reference: the closed form of coverage, whatever the data.
    expected = expected_coverage(own, n, 5)
    assert nulls["coverage"].mean == pytest.approx(expected, abs=0.03)
    assert nulls["lost"].mean < 0.01
    # Held-out data, which the reference has not seen, are within their spread and raise nothing.
    rows = min(n, len(data.splits["validation"]))
    values = reference.compare(data.splits["validation"].fetch(torch.arange(rows))[0])
    check = Check(step=9999, since=9999, values=values)
    assert alarms.wrong([check, check], nulls) == []
    for number in ("coverage", "precision", "recall", "vendi"):
        assert values[number] == pytest.approx(nulls[number].mean, rel=0.2)
    again = Reference(data, features)
    assert again.nulls == nulls


def test_one_copy_and_half_of_the_modes_are_far_from_the_null(ring):
    _, features = features_of(ring)
    reference = Reference(ring, features)
    rows, modes = ring.splits["train"].fetch(torch.arange(4096))
    nulls = reference.nulls

    def share(x: torch.Tensor, name: str) -> float:
        value = reference.compare(x[: reference.samples])[name]
        return value if name == "lost" else value / nulls[name].mean

    half, one = rows[modes < 4], rows[modes == 3]
    for name in ("recall", "coverage", "vendi", "variety"):
        assert share(rows, name) == pytest.approx(1, abs=0.05)
        assert share(half, name) == pytest.approx(0.5, abs=0.1)
        assert share(one, name) < 0.25
        assert share(rows[modes < 7], name) > 0.8
    assert share(half, "support") == pytest.approx(0.5, abs=0.15)
    assert share(one, "support") == pytest.approx(1 / 8, abs=0.05)
    lost = [share(x, "lost") for x in (rows, rows[modes < 7], half, one)]
    assert lost == pytest.approx([0, 1 / 8, 1 / 2, 7 / 8], abs=0.06)
    # How sharp the modes are is another question than whether they are there.
    generator = torch.Generator().manual_seed(0)
    blurred = rows[:512] + 0.1 * torch.randn(512, 2, generator=generator)
    assert share(blurred, "precision") < 0.3
    assert share(blurred, "vendi") == pytest.approx(1, abs=0.15)
    assert share(blurred, "lost") == 0


# -- rules ---------------------------------------------------------------------------------------

NULLS = {
    name: Null(mean=mean, sd=0.01 * mean)
    for name, mean in {
        "coverage": 0.95,
        "recall": 0.9,
        "precision": 0.9,
        "vendi": 20.0,
        "variety": 60.0,
        "support": 1000.0,
    }.items()
}
FINE = {
    "coverage": 0.8,
    "recall": 0.8,
    "precision": 0.8,
    "lost": 0.05,
    "vendi": 18.0,
    "variety": 55.0,
    "support": 900.0,
}
ONE_MODE = {**FINE, "recall": 0.1, "coverage": 0.1, "vendi": 1.2, "variety": 1.5, "support": 3.0}
HALF = {**FINE, "recall": 0.4, "coverage": 0.4, "lost": 0.45, "vendi": 11.0, "variety": 40.0}


def checks(*values: dict[str, float], every: int = 100) -> list[Check]:
    """Return looks every so many steps."""
    steps = itertools.count(every, every)
    return [Check(step=k, since=k, values=v) for k, v in zip(steps, values, strict=False)]


def raised(*values: dict[str, float]) -> list[str]:
    """Return the alarms of the last look."""
    return [alarm.name for alarm in alarms.judge(checks(*values), NULLS)]


WELL = [FINE] * 10
FAULTS = {
    "collapse": ONE_MODE,
    "samples got worse": {**FINE, "coverage": 0.3, "recall": 0.6},
    "discriminator too strong": {**FINE, "fooled": 0.0004},
    "discriminator overfits": {**FINE, "overfit": 0.7, "overfit_sigmas": 9.0, "r_t": 0.9},
    "standstill": {**FINE, "generator_moved": 1e-9},
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_an_alarm_needs_two_looks_in_a_row_and_is_raised_once(name):
    bad = FAULTS[name]

    def now(*looks: dict[str, float]) -> bool:
        return name in raised(*WELL, *looks)

    assert raised(*WELL) == []
    assert not now(bad)
    assert not now(bad, FINE, bad)
    assert now(bad, bad)
    assert not now(bad, bad, bad)
    assert now(bad, bad, FINE, bad, bad)
    alarm = next(a for a in alarms.judge(checks(*WELL, bad, bad), NULLS) if a.name == name)
    assert (alarm.step, alarm.since) == (1200, 1100)
    assert alarm.sentence.startswith(f"step 1200: {name}: ")
    assert "since step 1100; what helps: " in alarm.sentence
    assert "\n" not in alarm.sentence


def test_collapse_from_the_start_is_told_when_it_gets_no_better():
    for stuck in (ONE_MODE, HALF):
        assert raised(*[stuck] * 5) == []
        assert raised(*[stuck] * 6) == ["collapse"]
    # A model that begins with copies, and gets better by more than chance, is on its way.
    better = [{**ONE_MODE, "vendi": 1.2 + k, "recall": 0.01 * k} for k in range(12)]
    assert all(raised(*better[:n]) == [] for n in range(1, 13))
    # One that wanders from kind to kind has better and worse moments.
    wander = [{**ONE_MODE, "vendi": 2.0 + v} for v in (0, 0.1, 3.5, 0, 0.2, 0.1, 4, 0.3, 0, 0.2)]
    assert "collapse" in [name for n in range(1, 11) for name in raised(*wander[:n])]
    # By less than chance it does not.
    assert raised(*[{**ONE_MODE, "recall": 0.1 + 0.002 * k} for k in range(6)]) == ["collapse"]


def test_rules_know_noise_and_blur_from_collapse():
    # Noise is more varied in its values than data; blurred samples lie among the data.
    noise = {**ONE_MODE, "recall": 0.0, "variety": 120.0}
    blur = {**FINE, "recall": 0.6, "variety": 10.0, "vendi": 9.0}
    for harmless in (noise, blur):
        assert all(raised(*[harmless] * n) == [] for n in range(1, 15))
    # Numbers that were not measured break no rule.
    for nothing in ({}, {"fooled": math.nan, "overfit": math.nan}):
        assert all(raised(*[nothing] * n) == [] for n in range(1, 15))


def test_a_strong_discriminator_is_no_fault_while_samples_get_better():
    strong = [{**FINE, "fooled": 0.0, "vendi": 10.0 + 0.5 * k} for k in range(12)]
    assert all(raised(*strong[:n]) == [] for n in range(1, 13))


def test_steps_skipped_and_weights_that_explode():
    steps = [{"bad_steps": n} for n in (0, 0, 2, 3, 3)]
    assert raised(*steps[:3]) == []
    assert raised(*steps[:4]) == ["steps skipped"]
    assert raised(*steps) == []
    before = [{"generator_stretch": 3.0}] * 6
    growing = [{"generator_stretch": 3.0 * 2.5**k} for k in range(3)]
    assert raised(*before, *growing) == ["weights explode"]
    assert raised(*before, *[{"generator_stretch": 3.0 * 1.5**k} for k in range(3)]) == []


# -- numbers of networks -------------------------------------------------------------------------


def test_stretch_is_the_largest_singular_value():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
    )
    with torch.no_grad():
        network[2].weight.mul_(3)
    weights = [network[k].weight.detach().flatten(1) for k in (0, 2)]
    expected = max(float(torch.linalg.matrix_norm(weight, 2)) for weight in weights)
    assert monitors.stretch(network.eval()) == pytest.approx(expected, rel=0.03)
    normed = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(30, 20))
    for _ in range(30):
        normed(torch.randn(2, 30))
    before = {k: v.clone() for k, v in normed.state_dict().items()}
    assert monitors.stretch(normed.eval()) == pytest.approx(1, rel=0.03)
    assert all(torch.equal(before[k], v) for k, v in normed.state_dict().items())


def test_moved_is_about_the_relative_change_of_the_weights():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(60, 60), torch.nn.Linear(60, 60))
    before = monitors.place(network)
    assert monitors.place(network) == before
    found = []
    for _ in range(50):
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + 1e-3 * torch.randn_like(weight))
        now = monitors.place(network)
        found.append(monitors.moved(now, before) ** 2)
        before = now
    assert math.sqrt(sum(found) / 50) == pytest.approx(1e-3, rel=0.4)


# -- looking changes nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dcgan", "vae", "gan"])
def test_a_run_with_monitors_equals_one_without(digits, name, tmp_path):
    tiny = {
        "dcgan": {"widths": (8,), "latent_dim": 8, "batch_size": 16, "ema": 0.9},
        "vae": {"widths": (32,), "latent_dim": 4, "batch_size": 16},
        "gan": {"batch_size": 16, "dropout": 0.3},
    }[name]
    runs = [Run.create(tmp_path / way, "digits", name) for way in ("with", "without")]
    engines = [
        engine_of(name, digits, run, model=tiny, steps=12, monitors=every)
        for run, every in zip(runs, (3, None), strict=True)
    ]
    for engine in engines:
        engine.fit()
    one, two = (engine.state_files() for engine in engines)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert one[file].keys() == two[file].keys()
        assert all(torch.equal(one[file][k], two[file][k]) for k in one[file])
    looks = [line for line in runs[0].metrics() if "health/coverage" in line]
    assert [line["step"] for line in looks] == [3, 6, 9, 12]
    assert not any("health/coverage" in line for line in runs[1].metrics())
    assert not (runs[1].path / "health.json").exists()
    stored = json.loads((runs[0].path / "health.json").read_text())
    assert stored["looks"] == {"0": [3, 6, 9, 12]}
    assert stored["features"] == "digits features"
    assert ("health/fooled" in looks[0]) == (name != "vae")


def test_looks_take_their_share_of_the_time(digits, monkeypatch):
    """By a clock that says that a step takes 0.1 s and a look 2 s."""
    engine = engine_of("gan", digits, steps=2000)
    engine.schedule = schedule.resolve(engine)
    health = engine.health
    monkeypatch.setattr(health, "_rehearse", lambda: setattr(health, "cost", 2.0))
    spent, looks = 0.0, []
    for step in range(1, 2001):
        engine.step, engine.seconds = step, 0.1 * step + spent
        if health.due():
            health.looks.setdefault("0", []).append(step)
            health.spent += 2.0
            spent += 2.0
            looks.append(step)
            assert health.spent <= SHARE * engine.seconds + 1e-9
    # 200 s of training allow 10 s of looks and a little more, as these are training time too.
    assert len(looks) == 5
    assert all(b - a >= 2000 / 100 for a, b in itertools.pairwise(looks))


def test_a_resumed_run_looks_at_the_same_steps_again(digits, tmp_path):
    engine = engine_of("gan", digits, Run.create(tmp_path / "run", "digits", "gan"), steps=100)
    engine.run.write_json("health.json", {"samples": 128, "seconds": 1e9, "looks": {"0": [7, 19]}})
    engine.schedule = schedule.resolve(engine)
    engine.health.begin()
    due = []
    for engine.step in range(1, 60):
        if engine.health.due():
            due.append(engine.step)
    assert due == [7, 19]  # and none by the clock: more was spent than saved


# -- faults made on purpose ----------------------------------------------------------------------

EVERY = 100
"""Steps from look to look."""
SMALL = {
    "latent_dim": 16,
    "generator_widths": (64, 64),
    "discriminator_widths": (64, 64),
    "dropout": 0.0,
    "ema": 0.0,
}
BROKEN = 800
"""Step at which a generator breaks that was healthy."""


class OneMode(GAN):
    """Its generator stops to look at the noise."""

    def after_step(self, phase: Any, step: int) -> None:
        super().after_step(phase, step)
        if step >= BROKEN:
            with torch.no_grad():
                self.generator[0].weight.zero_()


class HalfOfTheClasses(GAN):
    """Its discriminator is shown five of the ten digits only."""

    labels: ClassVar[torch.Tensor]

    def discriminator_loss(self, batch: Any, step: int) -> Any:
        x = batch.x[self.labels[batch.index] < 5]
        shown = x[torch.arange(batch.size) % len(x)]
        return super().discriminator_loss(dataclasses.replace(batch, x=shown), step)


class Frozen(GAN):
    """Its generator learns nothing."""

    def generator_loss(self, batch: Any, step: int) -> Any:
        values, logs = super().generator_loss(batch, step)
        return 0 * values, logs


def fit(cls: Any, data: Any, tmp_path: Any, steps: int, **options: Any) -> dict[str, int]:
    """Train; return alarm → the first step at which it was raised."""
    run = Run.create(tmp_path / "run", data.name, "model")
    engine = engine_of(cls, data, run, steps=steps, **{"monitors": EVERY, **options})
    engine.fit()
    return {line["name"]: line["step"] for line in reversed(run.alarms())}


def test_a_generator_that_collapses_to_one_mode_is_told_within_200_steps(digits, tmp_path):
    found = fit(OneMode, digits, tmp_path, BROKEN + 300, model=SMALL)
    assert BROKEN < found["collapse"] <= BROKEN + 2 * EVERY


def test_half_of_the_classes_is_told_within_3000_steps(digits, tmp_path):
    HalfOfTheClasses.labels = digits.splits["train"].y
    found = fit(HalfOfTheClasses, digits, tmp_path, 3000, model=SMALL)
    assert found["collapse"] <= 3000


def test_a_frozen_generator_is_told_at_the_second_look(digits, tmp_path):
    found = fit(Frozen, digits, tmp_path, 60, model=SMALL, monitors=20)
    assert found["standstill"] == 40


def test_a_discriminator_far_too_strong_is_told_within_700_steps(digits, tmp_path):
    model = {**SMALL, "discriminator_lr": 2e-3, "generator_lr": 1e-6}
    found = fit(GAN, digits, tmp_path, 700, model=model)
    assert found["discriminator too strong"] <= alarms.GRACE + 2 * EVERY


def test_a_vae_that_ignores_its_code_is_told(digits, tmp_path):
    """Posterior collapse: so large a weight of the KL that all samples are the mean image."""
    model = {"widths": (64,), "latent_dim": 4, "beta": 1e4}
    found = fit("vae", digits, tmp_path, 800, model=model)
    assert found["collapse"] <= 700


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["gan", "vae"])
def test_healthy_runs_raise_no_alarm(digits, tmp_path, name, seed):
    model = {"gan": SMALL, "vae": {"widths": (64,), "latent_dim": 8}}[name]
    assert fit(name, digits, tmp_path, 1500, model=model, seed=seed) == {}


GANS = ("gan", "cgan", "lsgan", "dcgan", "wgan", "wgan-gp", "sngan", "sagan", "biggan", "r3gan")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", *GANS])
def test_healthy_runs_on_mnist_raise_no_alarm(tmp_path, name):
    steps = {"gan": 3000, "cgan": 3000, "lsgan": 3000, "vae": 3000}.get(name, 1200)
    assert fit(name, open_data("mnist"), tmp_path, steps) == {}


# -- rollback ------------------------------------------------------------------------------------


class Moody(GAN):
    """Its generator stands still from step 20 on, but only with the noise of seed 0."""

    def generator_loss(self, batch: Any, step: int) -> Any:
        values, logs = super().generator_loss(batch, step)
        still = step >= 20 and batch.draws.keys[1] == 0
        return values * (not still), logs


def start(folder: Any, digits: Any, **options: Any) -> Engine:
    run = Run.create(folder, "digits", "gan")
    options = {"steps": 60, "monitors": 5, "checkpoints": 12, "log_every": 0.0, **options}
    return engine_of(Moody, digits, run, model={**SMALL, "ema": 0.9}, **options)


def resumed(engine: Engine, digits: Any) -> Engine:
    """Return a new engine that goes on with the run of another."""
    again = engine_of(Moody, digits, model={**SMALL, "ema": 0.9}, steps=60)
    again.config, again.run = engine.config, engine.run
    again.health = Health(again)
    assert again.run is not None
    again.schedule = schedule.Schedule(**again.run.read_json("schedule.json"))
    again.load_checkpoint(again.run.checkpoint())
    again.run.rewind(again.step)
    return again


def end(engine: Engine) -> dict[str, Any]:
    files = engine.state_files()
    tensors = {f"{f}/{k}": v for f in files if f != "state.json" for k, v in files[f].items()}
    return tensors


def assert_same(one: Engine, two: Engine) -> None:
    a, b = end(one), end(two)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (one.step, one.attempt) == (two.step, two.attempt)
    timing = ("train/rate", "train/seconds")
    lines = [
        [{k: v for k, v in line.items() if k not in timing} for line in engine.run.metrics()]
        for engine in (one, two)
    ]
    assert lines[0] == lines[1]
    assert one.run.alarms() == two.run.alarms()


def test_an_alarm_sends_training_back_and_the_run_goes_on_healthy(digits, tmp_path):
    engine = start(tmp_path / "run", digits, rollback=2)
    engine.fit()
    assert (engine.step, engine.attempt, engine.slower) == (60, 1, 1.0)
    (alarm,) = engine.run.alarms()
    # The step of a look is the number of steps done: 25 is the first that shows step 20's fault.
    assert (alarm["name"], alarm["step"], alarm["since"]) == ("standstill", 30, 25)
    assert alarm["sent_back"] is True and alarm["attempt"] == 0
    steps = [line["step"] for line in engine.run.metrics() if "health/bad_steps" in line]
    assert steps == list(range(5, 61, 5))
    assert engine.run.read_json("health.json")["looks"] == {
        "0": [5, 10, 15, 20, 25, 30],
        "1": list(range(25, 61, 5)),
    }
    assert engine.run.checkpoint().json("state.json")["attempt"] == 1
    # Until the alarm the run was that without rollback; then it went another way.
    plain = start(tmp_path / "plain", digits)
    plain.fit()
    told = [[m for m in e.run.metrics() if m["step"] <= 20] for e in (engine, plain)]
    assert [m.get("train/generator") for m in told[0]] == [
        m.get("train/generator") for m in told[1]
    ]
    assert [a["sent_back"] for a in plain.run.alarms()] == [False]


def test_rates_are_halved_from_the_second_time_on_and_no_more_than_n_times(digits, tmp_path):
    class Hopeless(Moody):
        def generator_loss(self, batch: Any, step: int) -> Any:
            values, logs = super().generator_loss(batch, step)
            return values * (step < 20), logs

    run = Run.create(tmp_path / "run", "digits", "gan")
    options = {"steps": 60, "monitors": 5, "checkpoints": 6, "rollback": 2}
    engine = engine_of(Hopeless, digits, run, model=SMALL, **options)
    engine.fit()
    assert (engine.step, engine.attempt, engine.slower) == (60, 2, 0.5)
    rate = engine.optimizers["generator"].param_groups[0]["lr"]
    assert rate == engine.model.config.generator_lr / 2
    assert [(a["attempt"], a["sent_back"]) for a in run.alarms()] == [
        (0, True),
        (1, True),
        (2, False),
    ]


@pytest.mark.parametrize(("attempt", "step"), [(0, 22), (0, 27), (1, 22), (1, 41)])
@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_is_sent_back_resumes_bit_for_bit(digits, tmp_path, attempt, step, killed):
    whole = start(tmp_path / "whole", digits, rollback=1)
    whole.fit()
    engine = start(tmp_path / "stopped", digits, rollback=1)
    real = engine.run_step

    def stopping() -> Any:
        logs = real()
        if (engine.attempt, engine.step) == (attempt, step):
            if killed:
                raise KeyboardInterrupt
            engine.stop = True
        return logs

    engine.run_step = stopping
    with pytest.raises(KeyboardInterrupt) if killed else contextlib.nullcontext():
        engine.fit()
    again = resumed(engine, digits)
    assert (again.attempt, again.step) <= (attempt, step + 1)
    again.fit()
    assert_same(again, whole)


def test_options_are_checked():
    assert TrainConfig().monitors == "auto"
    assert from_dict(TrainConfig, {"monitors": "none"}).monitors is None
    assert from_dict(TrainConfig, {"monitors": "50"}).monitors == 50
    with pytest.raises(ConfigError, match=r"train\.monitors = 0 is outside"):
        TrainConfig(monitors=0)
    with pytest.raises(ConfigError, match=r"train\.rollback needs monitors"):
        TrainConfig(monitors=None, rollback=1)
    with pytest.raises(ConfigError, match=r"train\.monitors = 'often'"):
        from_dict(TrainConfig, {"monitors": "often"}, path="train.")
