"""The engine: lengths, learning rates, averages, clipping, bad gradients, validation, precision."""

from __future__ import annotations

import errno
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.contract import toys

from poiesis import registry
from poiesis.config import from_dict
from poiesis.data import open_data
from poiesis.errors import ConfigError, PoiesisWarning, RunError
from poiesis.models.base import Optim, Schedule
from poiesis.runs import Run
from poiesis.training import grids, optimizers, schedule, verb
from poiesis.training.config import TrainConfig
from poiesis.training.ema import Average
from poiesis.training.engine import Engine
from poiesis.training.schedule import Schedule as Length
from poiesis.training.schedule import correct

VAE = {"widths": (32,), "latent_dim": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def engine_of(cls: Any, digits: Any, run: Run | None = None, **options: Any) -> Engine:
    torch.manual_seed(0)
    model = cls(toys.Toy.Config(), cls.view(None, digits.spec))
    few = {"grids": 0, "validations": 0, "checkpoints": 0}
    return Engine(model, digits, TrainConfig(**{**few, **options}), run=run, quiet=True)


def listed(name: str, digits: Any, **options: Any) -> Any:
    cls = registry.model_class(name)
    config = from_dict(cls.Config, options, base=cls.preset("default", digits.spec))
    torch.manual_seed(0)
    return cls(config, cls.view(config, digits.spec))


# -- how long ------------------------------------------------------------------------------------


def test_steps_epochs_and_shares(digits):
    rows = len(digits.splits["train"])
    assert schedule.resolve(engine_of(toys.Toy, digits, steps=7)).stage_steps == [7]
    engine = engine_of(toys.Toy, digits, epochs=1.5)
    assert schedule.resolve(engine).stage_steps == [math.ceil(1.5 * rows / 8)]
    assert schedule.resolve(engine_of(toys.Growing, digits, steps=10)).stage_steps == [3, 7]
    engine = engine_of(toys.Toy, digits, epochs=1, batch_size=rows)
    assert schedule.resolve(engine).stage_steps == [1]


def test_a_budget_is_shared_between_steps_grids_and_validations(digits, monkeypatch):
    costs = {"step 0": 0.1, "step 1": 0.4, "grid": 1.0, "validation": 2.0}
    monkeypatch.setattr(schedule, "probe", lambda engine: dict(costs))
    engine = engine_of(toys.Growing, digits, budget="200s", grids=8, validations=20)
    found = schedule.resolve(engine)
    # 15 s (half of 15 %) may go to grids: all 8 fit. 15 s to validations: 7 of 2 s.
    assert (found.grids, found.validations) == (8, 7)
    left = 200 - 8 - 14
    assert found.stage_steps[0] == pytest.approx(left / 3 / 0.1, abs=2)
    assert found.stage_steps[1] == pytest.approx(left * 2 / 3 / 0.4, abs=2)
    assert found.probe == costs


def test_a_budget_is_kept_and_recorded(digits, tmp_path):
    run = Run.create(tmp_path / "run", "digits", "toy")
    engine = engine_of(toys.Toy, digits, run, budget="2s", grids=2, validations=2, checkpoints=1)
    engine.fit()
    recorded = json.loads((run.path / "schedule.json").read_text())
    assert recorded["stage_steps"] == [engine.step]
    assert engine.step > 10
    assert set(recorded["probe"]) == {"step 0", "grid", "validation"}
    assert engine.seconds < 6  # three times the budget: this machine may be busy


@pytest.mark.parametrize("cls", [toys.Growing, toys.Replay, toys.Lazy])
def test_the_probe_changes_nothing(digits, cls):
    probed, plain = engine_of(cls, digits, steps=6), engine_of(cls, digits, steps=6)
    before = {k: dict(v) for k, v in probed.state_files().items()}
    copies = {n: t.clone() for f in before.values() for n, t in f.items() if torch.is_tensor(t)}
    schedule.probe(probed)
    after = probed.state_files()
    flat = {n: t for f in after.values() for n, t in f.items() if torch.is_tensor(t)}
    assert flat.keys() == copies.keys()
    assert all(torch.equal(copies[n], flat[n]) for n in copies)
    assert after["optimizer.safetensors"] == {}
    assert after["state.json"] == before["state.json"]
    probed.fit()
    plain.fit()
    for a, b in zip(probed.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_probe_restores_batch_statistics_and_averages(digits):
    model = listed("dcgan", digits, widths=(8,), batch_size=16, ema=0.9)
    engine = Engine(model, digits, TrainConfig(steps=3, grids=0, validations=0), quiet=True)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    shadow = {n: t.clone() for n, t in engine.average.shadow.items()}
    schedule.probe(engine)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(torch.equal(shadow[n], t) for n, t in engine.average.shadow.items())


def test_the_probe_keeps_lists_in_extra_state(digits):
    class History(toys.Toy):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.history: list[int] = []

        def after_step(self, phase: Any, step: int) -> None:
            self.history.append(step)

        def extra_state(self) -> dict[str, Any]:
            return {"history": self.history}

        def load_extra_state(self, state: dict[str, Any]) -> None:
            self.history = state["history"]

    engine = engine_of(History, digits, steps=2)
    schedule.probe(engine)
    assert engine.model.history == []


# -- learning rates and optimizers ---------------------------------------------------------------


def test_learning_rate_schedules():
    def curve(total: int, **options: Any) -> list[float]:
        return [optimizers.factor(Schedule(**options), step, total) for step in range(total)]

    assert curve(5) == [1.0] * 5
    assert curve(4, kind="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    half = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert curve(8, kind="cosine") == pytest.approx(half)
    assert curve(8, kind="cosine", final=0.1) == pytest.approx([0.1 + 0.9 * f for f in half])
    # Warm-up by steps, and by share of the stage; never zero, one right after it.
    assert curve(6, warmup=3) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 1])
    assert curve(10, warmup=0.3)[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    # A plateau, then linear to `final`.
    assert curve(10, kind="linear", start=0.6) == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest(digits):
    model = listed("transformer", digits, layers=2, width=16, heads=2)
    declared = model.optimizers()
    covered = {name: dict(optimizers.parameters(model, o)) for name, o in declared.items()}
    assert covered["muon"].keys().isdisjoint(covered["adamw"])
    assert covered["muon"].keys() | covered["adamw"].keys() == dict(model.named_parameters()).keys()
    assert all(p.ndim == 2 and n.startswith("blocks.") for n, p in covered["muon"].items())
    # Muon's mark: a step changes a matrix by a multiple of its nearest orthogonal matrix, to the
    # precision of five Newton-Schulz steps (singular values 0.7 to 1.2, Jordan et al. 2024).
    muon = optimizers.build(model, declared["muon"])
    (_, matrix) = next(iter(covered["muon"].items()))
    before = matrix.detach().clone()
    matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
    muon.step()
    singular = torch.linalg.svdvals(matrix.detach() - before)
    assert float(singular.max() / singular.min()) < 2


def test_weight_decay_spares_vectors(digits):
    model = listed("transformer", digits, recipe="nanogpt", grid=(), layers=1, width=16, heads=2)
    built = optimizers.build(model, model.optimizers()["adamw"])
    decays = {
        p.ndim: group["weight_decay"] for group in built.param_groups for p in group["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}


KINDS = {
    "adam": {},
    "adamw": {"weight_decay": 0.1},
    "adamax": {},
    "rmsprop": {"momentum": 0.9},
    "sgd": {"momentum": 0.9},
    "muon": {"select": lambda name, p: p.ndim == 2},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_optimizer_learns_and_its_state_survives(digits, kind):
    class One(toys.Toy):
        def optimizers(self) -> dict[str, Optim]:
            return {"generator": Optim(kind=kind, networks=("generator",), lr=3e-3, **KINDS[kind])}

    whole, half = engine_of(One, digits, steps=12), engine_of(One, digits, steps=12)
    whole.fit()
    half.schedule = schedule.resolve(half)
    for _ in range(5):
        half.run_step()
        half.step += 1
    files = half.state_files()
    assert files["optimizer.safetensors"]
    again = engine_of(One, digits, steps=12)
    again.schedule = half.schedule
    again.load_state_files(json_and_back(files))
    again.fit()
    start = engine_of(One, digits, steps=1)
    assert not torch.equal(start.model.generator.weight, whole.model.generator.weight)
    assert torch.equal(again.model.generator.weight, whole.model.generator.weight)
    assert torch.equal(again.model.generator.bias, whole.model.generator.bias)


def json_and_back(files: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.loads(json.dumps(value))
        if name.endswith(".json")
        else {k: v.detach().clone() for k, v in value.items()}
        for name, value in files.items()
    }


def test_gradient_clipping_bounds_the_step(digits):
    class Steep(toys.PerSample):
        def optimizers(self) -> dict[str, Optim]:
            return {"generator": Optim(kind="sgd", networks=("generator",), lr=1.0, clip=self.own)}

        def fit_loss(self, batch: Any, step: int) -> Any:
            loss, logs = super().fit_loss(batch, step)
            return 1000 * loss, logs

    def distance(own: float | None, clip: float | None) -> float:
        Steep.own = own
        engine = engine_of(Steep, digits, steps=1, clip=clip)
        before = [p.detach().clone() for p in engine.model.parameters()]
        engine.fit()
        moves = [
            (a - b.detach()).square().sum()
            for a, b in zip(before, engine.model.parameters(), strict=True)
        ]
        return float(sum(moves).sqrt())

    assert distance(None, None) > 1
    assert distance(0.5, None) == pytest.approx(0.5, rel=1e-3)
    assert distance(None, 0.25) == pytest.approx(0.25, rel=1e-3)


# -- averages ------------------------------------------------------------------------------------


def test_moving_average_of_weights_and_buffers(digits):
    class Averaged(toys.Toy):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.generator.register_buffer("statistic", torch.tensor([4.0]))
            self.generator.register_buffer("count", torch.tensor(0))

        def ema(self) -> dict[str, float]:
            return {"generator": 0.5}

    engine = engine_of(Averaged, digits, steps=1)
    average, network = Average(engine.model), engine.model.generator
    expected = float(network.bias[0].detach())
    for step in range(20):
        with torch.no_grad():
            network.bias.fill_(step)
            network.statistic.fill_(-step)
            network.count.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert float(average.shadow["generator.bias"][0]) == pytest.approx(expected, rel=1e-5)
    assert "critic.weight" not in average.shadow
    assert float(average.shadow["generator.statistic"]) == pytest.approx(-18, abs=0.1)
    assert int(average.shadow["generator.count"]) == 19
    with average.applied():
        assert network.bias[0].item() == pytest.approx(expected, rel=1e-5)
    assert network.bias[0].item() == 19
    average.restart()
    assert torch.equal(average.shadow["generator.bias"], network.bias)
    assert average.shadow["generator.bias"] is not network.bias


@pytest.mark.parametrize("name", ["vae", "dcgan", "ddpm"])
def test_a_decay_of_zero_keeps_no_averages(digits, name):
    assert Average(listed(name, digits, ema=0.9)).shadow
    assert not Average(listed(name, digits, ema=0.0)).shadow


def test_averages_fit_the_checkpoint(digits):
    """Tied weights are averaged under each name; buffers that are not saved stay out."""

    class Tied(toys.Toy):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.twin = torch.nn.Linear(4, 64)
            self.twin.weight = self.generator.weight
            self.register_buffer("table", torch.ones(3), persistent=False)

        def ema(self) -> dict[str, float]:
            return {"": 0.9}

    engine = engine_of(Tied, digits, steps=4)
    engine.fit()
    shadow = engine.average.shadow
    assert shadow.keys() == engine.model.state_dict().keys()
    assert torch.equal(shadow["twin.weight"], shadow["generator.weight"])
    assert not torch.equal(shadow["generator.weight"], engine.model.generator.weight)
    live = engine.model.generator.weight.detach().clone()
    with engine.average.applied():
        assert torch.equal(engine.model.twin.weight, shadow["generator.weight"])
        assert torch.equal(engine.model.generator.weight, shadow["generator.weight"])
    assert torch.equal(engine.model.generator.weight, live)
    again = engine_of(Tied, digits, steps=4)
    again.model.load_state_dict({**engine.model.state_dict(), **shadow})
    assert torch.equal(again.model.generator.weight, shadow["generator.weight"])


# -- health --------------------------------------------------------------------------------------


def test_bad_gradients_are_skipped_counted_and_logged(digits, tmp_path, capsys):
    class Bad(toys.PerSample):
        bad_steps: ClassVar = {2, 3}

        def after_step(self, phase: Any, step: int) -> None:
            self.seen.append(self.generator.weight.detach().clone())

    run = Run.create(tmp_path / "run", "digits", "toy")
    engine = engine_of(Bad, digits, run, steps=6, log_every=0.0)
    engine.quiet = False
    engine.fit()
    after = [seen for seen in engine.model.seen if torch.is_tensor(seen)]
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(after)]
    assert changed == [True, False, False, True, True]
    assert engine.bad_steps.total == 2
    assert [line.get("train/bad_steps") for line in run.metrics()] == [None, None, 1, 2, 2, 2]
    said = capsys.readouterr().err
    assert "step 2, phase fit: gradients not finite, step skipped; first in generator" in said


def test_too_many_bad_gradients_in_a_row_stop_the_run(digits):
    class Bad(toys.PerSample):
        bad_steps: ClassVar = {1, 3, 4, 5}

    engine = engine_of(Bad, digits, steps=9, max_bad_steps=3)
    with pytest.raises(RunError, match=r"3 steps in a row .* first in generator") as raised:
        engine.fit()
    assert engine.step == 5
    assert "\n" not in str(raised.value)


# -- validation, best, grids ---------------------------------------------------------------------


def test_validation_is_the_mean_over_held_out_rows_and_the_best_is_kept(digits, tmp_path):
    class Watched(toys.Toy):
        values = iter([5.0, 2.0, 3.0, 4.0])

        def validate(self, batch: Any) -> dict[str, Any]:
            assert not batch.training and not self.training
            if int(batch.index[0]) == 0:
                self.value = next(self.values)
            return {"watched": batch.index + self.value, "ink": batch.x.flatten(1).mean(1)}

    run = Run.create(tmp_path / "run", "digits", "toy")
    engine = engine_of(Watched, digits, run, steps=8, validations=4, checkpoints=1)
    engine.fit()
    lines = [line for line in run.metrics() if "validation/watched" in line]
    rows = len(digits.splits["validation"])
    middle = (rows - 1) / 2
    assert [line["validation/watched"] - middle for line in lines] == pytest.approx([5, 2, 3, 4])
    raw, _ = digits.splits["validation"].fetch(torch.arange(rows))
    assert lines[0]["validation/ink"] == pytest.approx(float(raw.float().mean() / 16), rel=1e-5)
    assert run.checkpoint("best").step == 4
    assert run.checkpoint("best").json("state.json")["watched"] == pytest.approx(2 + middle)
    assert run.checkpoint().step == 8


def test_each_stage_has_its_own_best(digits, tmp_path):
    """The loss of a first stage (say, pixels) is no measure for the second (say, codes)."""

    class Watched(toys.Growing):
        def validate(self, batch: Any) -> dict[str, Any]:
            return {"watched": torch.full((batch.size,), float(5 + self.level))}

    run = Run.create(tmp_path / "run", "digits", "toy")
    engine = engine_of(Watched, digits, run, steps=9, validations=9, checkpoints=1)
    engine.fit()
    # The first of equal values is kept: steps 1 and, in the second stage, 4.
    assert run.checkpoint("best").step == 4
    assert engine.best == 6


def test_grids_are_drawn_from_the_same_noise(digits, tmp_path):
    run = Run.create(tmp_path / "run", "digits", "toy")
    engine = engine_of(toys.Toy, digits, run, steps=4, grids=2)
    engine.fit()
    first = grids.draw(engine)
    assert sorted(p.name for p in (run.path / "samples").iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
    ]
    assert [a.tobytes() for a in first] == [b.tobytes() for b in grids.draw(engine)]


# -- precision, compilation ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "gan", "ddpm", "transformer"])
def test_bf16_autocast_trains(digits, name):
    tiny = {
        "vae": VAE,
        "gan": {"generator_widths": (16,), "discriminator_widths": (16,)},
        "ddpm": {"channels": 8, "multipliers": (1,), "attention": (), "blocks": 1},
        "transformer": {"layers": 1, "width": 16, "heads": 2},
    }[name]
    model = listed(name, digits, **{**tiny, "batch_size": 4})
    options = TrainConfig(steps=2, precision="bf16", grids=0, validations=1)
    engine = Engine(model, digits, options, quiet=True)
    engine.fit()
    assert engine.bad_steps.total == 0
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_wraps_every_network(digits):
    engine = engine_of(toys.Toy, digits, steps=1, compile=True)
    networks = engine.model.networks().values()
    assert all(network._compiled_call_impl is not None for network in networks)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_equals_plain_training(digits):
    plain = engine_of(toys.Toy, digits, steps=3)
    compiled = engine_of(toys.Toy, digits, steps=3, compile=True)
    plain.fit()
    compiled.fit()
    for a, b in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# -- the verb ------------------------------------------------------------------------------------


def train(out: Path, digits: Any, model: str = "vae", **options: Any) -> Run:
    few = {"grids": 0, "validations": 0, "checkpoints": 1, "steps": 2}
    config = {"model": options.pop("config", VAE)}
    return verb.train(
        model, "digits", config=config, out=out, quiet=True, opened=digits, **{**few, **options}
    )


def test_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(digits, tmp_path, monkeypatch):
    from poiesis import runs

    real, room = runs._write, [40]

    def write(path: Path, data: bytes) -> None:
        room[0] -= 1
        if room[0] < 0:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(runs, "_write", write)
    with pytest.raises(
        RunError, match="No space left on device; free some space and use --res"
    ) as e:
        train(tmp_path / "run", digits, steps=20, checkpoints=20)
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    run = Run.open(tmp_path / "run")
    assert 0 < run.checkpoint().step < 20
    assert not list((run.path / "checkpoints").glob(".*"))
    verb.train(resume=run.path, quiet=True)
    assert run.checkpoint().step == 20


def test_fine_tuning_starts_from_the_other_runs_weights(digits, tmp_path, monkeypatch):
    class Start(Engine):
        def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
            Start.weights = {n: t.clone() for n, t in model.state_dict().items()}
            super().__init__(model, *args, **kwargs)

    first = train(tmp_path / "first", digits, steps=5)
    monkeypatch.setattr(verb, "Engine", Start)
    train(tmp_path / "second", digits, init=first.path, seed=1)
    # The averaged weights, which the run is sampled with, are what is gone on from.
    expected = first.checkpoint().tensors("ema.safetensors")
    assert Start.weights.keys() == expected.keys()
    assert all(torch.equal(Start.weights[n], t) for n, t in expected.items())
    with pytest.warns(PoiesisWarning, match="tensors taken from .*; fresh: "):
        train(tmp_path / "third", digits, init=first.path, config={**VAE, "latent_dim": 5})
    with pytest.raises(RunError, match="--init needs a related run"):
        train(tmp_path / "fourth", digits, model="gan", init=first.path, config={})


def test_a_refused_run_leaves_nothing_behind(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'latent_dim'"):
        train(None, digits, config={"latentdim": 3})
    with pytest.raises(ConfigError, match=r"train\.budget and train\.steps"):
        train(None, digits, budget="5m")
    with pytest.raises(RunError, match="there is no run folder 'nowhere'"):
        train(None, digits, init="nowhere")
    assert list(tmp_path.rglob("config.yaml")) == []


def test_dry_run_writes_nothing_and_counts_parameters(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = {"latent_dim": 100, "generator_widths": (256, 512, 1024), "batch_norm": False}
    resolved = verb.resolve("gan", digits, verb.DataConfig(), model=network, train={"steps": 50})
    told = verb.dry_run(resolved, digits)
    sizes = (100, 256, 512, 1024, 64)
    dense = sum(a * b + b for a, b in itertools.pairwise(sizes))
    assert told.parameters["generator"] == dense
    assert told.steps == [50]
    assert told.seconds >= 50 * told.step_seconds[0]
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_corrected_by_the_pace_of_the_run():
    schedule = Length(stage_steps=[1000], grids=1, validations=1, checkpoints=1, seconds=100.0)
    assert not correct(schedule, 10, 14.0)
    # 20 s for 50 steps: 80 s are left, so 200 steps more.
    assert correct(schedule, 50, 20.0) and schedule.total == 250
    assert not correct(schedule, 100, 40.0)
    assert correct(schedule, 125, 50.0) and schedule.total == 250
    assert not correct(schedule, 200, 80.0) and schedule.corrected == [50, 125]


def test_steps_are_never_corrected():
    schedule = Length(stage_steps=[1000], grids=1, validations=1, checkpoints=1)
    assert not correct(schedule, 500, 1e6) and schedule.total == 1000
