"""Toy models prove that the engine carries what the families will ask of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from typing import Any

import pytest
import torch
from torch.nn import functional

from poiesis import registry
from poiesis.data import open_data
from poiesis.errors import RunError
from poiesis.models.trained import load
from poiesis.runs import Run
from poiesis.training import verb
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine
from poiesis.training.schedule import Schedule
from tests.contract import toys


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def engine_of(cls: Any, digits: Any, run: Run | None = None, **options: Any) -> Engine:
    torch.manual_seed(0)
    model = cls(toys.Toy.Config(), cls.view(None, digits.spec))
    few = {"grids": 0, "validations": 0, "checkpoints": 0}
    return Engine(model, digits, TrainConfig(**{**few, **options}), run=run, quiet=True)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in engine.model.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}


def steps_of(engine: Engine, name: str) -> set[int]:
    return {int(state["step"]) for state in engine.optimizers[name].state.values()}


def assert_same_state(a: Engine, b: Engine) -> None:
    one, two = a.state_files(), b.state_files()
    for file in one:
        if file.endswith(".safetensors"):
            assert one[file].keys() == two[file].keys()
            for key, value in one[file].items():
                assert torch.equal(value, two[file][key]), (file, key)
    volatile = {"seconds"}
    for key in one["state.json"].keys() - volatile:
        assert one["state.json"][key] == two["state.json"][key], key


def resumed(cls: Any, digits: Any, tmp_path: Any, at: int, total: int) -> Engine:
    """Train `at` steps, save, load into a fresh engine and train on to `total`."""
    run = Run.create(tmp_path / "run", "digits", "toy")
    engine = engine_of(cls, digits, run, steps=total)
    original = engine.run_step

    def run_step() -> Any:
        logs = original()
        engine.stop = engine.step + 1 == at
        return logs

    engine.run_step = run_step
    engine.fit()
    assert engine.step == at
    again = engine_of(cls, digits, None, steps=total)
    with torch.no_grad():
        for parameter in again.model.parameters():
            parameter.fill_(9.0)  # everything must come from the checkpoint
    again.schedule = Schedule(**json.loads((run.path / "schedule.json").read_text()))
    again.load_checkpoint(run.checkpoint())
    again.fit()
    return again


# -- stages --------------------------------------------------------------------------------------


def test_two_stages_have_their_own_views_batches_optimizers_and_schedules(digits):
    engine = engine_of(toys.Growing, digits, steps=9)
    assert int(engine.model.level) == 0
    start = weights(engine)
    between = {}
    original = engine.run_step

    def run_step() -> Any:
        if engine.step == 3:
            between.update(weights(engine))
            assert engine.optimizers["all"].state == {}
        logs = original()
        rates.append(engine.optimizers["all"].param_groups[0]["lr"])
        return logs

    rates: list[float] = []
    engine.run_step = run_step
    engine.fit()
    seen = engine.model.seen
    assert [shape for _, shape, _, _ in seen] == [(6, 1, 4, 4)] * 3 + [(3, 1, 8, 8)] * 6
    assert moved(start, between) == {"small"}
    assert moved(between, weights(engine)) == {"generator"}
    # Fresh Adam states in the second stage: they count its own six steps only.
    assert steps_of(engine, "all") == {6}
    # A linear decay over each stage: 1, 2/3, 1/3; then 1, 5/6, ... 1/6.
    expected = [1, 2 / 3, 1 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx([1e-2 * factor for factor in expected])
    # The small view is the mean of blocks of 2 x 2 pixels, of levels 0...16 as 0...1.
    _, _, x, index = seen[0]
    raw, _ = digits.splits["train"].fetch(index)
    torch.testing.assert_close(x, functional.avg_pool2d(raw.float() / 16, 2))


@pytest.mark.parametrize("at", [2, 3, 5])
def test_resume_inside_and_between_stages(digits, tmp_path, at):
    whole = engine_of(toys.Growing, digits, steps=9)
    whole.fit()
    again = resumed(toys.Growing, digits, tmp_path, at=at, total=9)
    assert int(again.model.level) == 1
    assert_same_state(whole, again)


# -- phases --------------------------------------------------------------------------------------


def test_lazy_phase_shares_the_optimizer(digits):
    engine = engine_of(toys.Lazy, digits, steps=33)
    engine.fit()
    assert engine.model.seen == [0, 16, 32]
    assert list(engine.optimizers) == ["generator"]
    assert steps_of(engine, "generator") == {33 + 3}


def test_four_phases_over_two_optimizers(digits):
    engine = engine_of(toys.FourPhases, digits, steps=3)
    engine.fit()
    assert steps_of(engine, "critic") == {3 * 3}
    assert steps_of(engine, "generator") == {3 * 2}
    seen = engine.model.seen
    trained = [names for names, _, _ in seen]
    assert trained == ([{"critic"}] * 3 + [{"generator"}] * 2) * 3
    for (names, before, _), (_, after, _) in itertools.pairwise(seen):
        assert moved(before, after) == names
    # First repeats share one batch, the second repeat has the next.
    for step in range(3):
        batches = [index for _, _, index in seen[5 * step : 5 * step + 5]]
        assert batches[0] == batches[2] == batches[3] == batches[4]
        assert not set(batches[0]) & set(batches[1])
    rows = [row for step in range(3) for i in (0, 1) for row in seen[5 * step + i][2]]
    assert len(set(rows)) == 3 * 2 * 8


def test_phase_without_data_and_replay_buffer_that_survives_a_resume(digits, tmp_path):
    whole = engine_of(toys.Replay, digits, steps=15)
    whole.fit()
    assert whole.model.seen == [(None, None, 8)] * 15
    assert whole.model.filled == 120
    again = resumed(toys.Replay, digits, tmp_path, at=6, total=15)
    assert again.model.filled == 120
    assert len(again.model.seen) == 15 - 6
    assert torch.equal(again.model.buffer, whole.model.buffer)
    assert_same_state(whole, again)
    saved = set(whole.model.extra_state())
    assert saved == whole.model.per_process


# -- parts and preparation -----------------------------------------------------------------------


def test_model_built_on_another_run(digits, tmp_path, monkeypatch):
    entry = registry.Entry(
        name="toy",
        target="tests.contract.toys:OnAnother",
        family="toys",
        accepts=("image",),
        summary="built on another run",
    )
    monkeypatch.setitem(registry.MODELS, "toy", entry)
    few = {"grids": 0, "checkpoints": 1, "quiet": True, "opened": digits}
    options = {"widths": (16,), "latent_dim": 3}
    first = verb.train(
        "vae", "digits", config={"model": options}, steps=3, out=tmp_path / "first", **few
    )
    first_weights = first.checkpoint().tensors("ema.safetensors")
    run = verb.train(
        "toy",
        "digits",
        config={"model": {"part": str(first.path)}},
        steps=4,
        out=tmp_path / "second",
        **few,
    )
    recorded = json.loads((run.path / "parts" / "parts.json").read_text())["first"]
    copy = next((run.path / "parts" / "first" / "checkpoints").glob("step-*/model.safetensors"))
    assert recorded["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    shutil.rmtree(first.path)
    second = load(run.path, device="cpu")
    for name, value in second.model.first.state_dict().items():
        assert torch.equal(value, first_weights[name]), name
    pictures = second.sample(2, seed=0)
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
    # A resume needs the copy alone, too.
    verb.train(resume=run.path, quiet=True, steps=6)
    third = load(run.path, device="cpu")
    assert third.step == 6
    for name, value in third.model.first.state_dict().items():
        assert torch.equal(value, first_weights[name]), name
    assert not torch.equal(third.model.prior.weight, second.model.prior.weight)


def test_part_gives_codes_and_stays_in_evaluation_mode(digits):
    cls = registry.model_class("vae")
    config = cls.Config(network="mlp", widths=(16,), latent_dim=3)
    vae = cls(config, cls.view(config, digits.spec))
    model = toys.OnAnother(
        toys.Toy.Config(part="x"), toys.Toy.view(None, digits.spec), parts={"first": vae}
    )
    before = {n: p.clone() for n, p in vae.state_dict().items()}
    few = TrainConfig(steps=2, grids=0, validations=0)
    Engine(model, digits, few, quiet=True).fit()
    assert model.seen == [((8, 3), False, False)] * 2
    assert all(torch.equal(before[n], v) for n, v in vae.state_dict().items())


def test_data_dependent_start_happens_once(digits, tmp_path):
    engine = engine_of(toys.DataDependent, digits, steps=5)
    engine.prepare()
    (x,) = engine.model.seen
    torch.testing.assert_close(
        engine.model.generator.bias.sigmoid(), x.mean(0).flatten().clamp(0.01, 0.99)
    )
    engine.fit()
    assert len(engine.model.seen) == 1
    again = resumed(toys.DataDependent, digits, tmp_path, at=2, total=5)
    assert again.model.seen == []
    assert_same_state(engine, again)


# -- losses per sample ---------------------------------------------------------------------------


def test_loss_that_is_not_one_value_per_sample_is_refused(digits):
    engine = engine_of(toys.PerSample, digits, steps=1)
    engine.model.reduce = True
    with pytest.raises(RunError, match=r"shape \(\) for 8 samples; a loss holds one value per"):
        engine.fit()


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_equals_the_full_batch(digits, parts):
    full = engine_of(toys.PerSample, digits, steps=5, precision="fp32")
    split = engine_of(toys.PerSample, digits, steps=5, accumulate=parts, precision="fp32")
    full.fit()
    split.fit()
    for a, b in zip(full.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert len(split.model.seen) == 5 * parts
    for step in range(5):
        for part in (1, 2):
            rows = [seen[part] for seen in split.model.seen if seen[0] == step]
            assert torch.equal(torch.cat(rows), full.model.seen[step][part])


def test_the_loss_is_the_mean_over_samples(digits):
    """One step of gradient descent by hand gives the same weights."""
    engine = engine_of(toys.PerSample, digits, steps=1)
    weight = engine.model.generator.weight.detach().clone().requires_grad_(True)
    bias = engine.model.generator.bias.detach().clone()
    engine.fit()
    _, z, index = engine.model.seen[0]
    raw, _ = digits.splits["train"].fetch(index)
    made = torch.sigmoid(z @ weight.T + bias)
    ((made - raw.flatten(1) / 16) ** 2).mean().backward()
    torch.testing.assert_close(engine.model.generator.weight, weight - 0.5 * weight.grad)
