"""Passports refuse unequal comparisons; the protocol gives the numbers of known models."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from poiesis.data import open_data
from poiesis.data.codecs import TextCodec
from poiesis.data.dataset import DataSet, TensorSplit, TextSplit
from poiesis.errors import ConfigError, DataError, RunError
from poiesis.evaluation.images import default_extractor, evaluate_images, match_levels
from poiesis.evaluation.likelihood import evaluate_likelihood
from poiesis.evaluation.passport import (
    Number,
    Passport,
    PassportMismatch,
    check_same,
    compare_numbers,
)
from poiesis.evaluation.protocol import (
    Evaluation,
    EvaluationConfig,
    evaluate,
    load_evaluation,
)
from poiesis.metrics.extractors import get_extractor
from poiesis.metrics.text import novelty, repetition
from poiesis.models.capabilities import LogProb
from poiesis.runs import Run
from poiesis.spec import Grid, Tokens

PASSPORT = Passport(data="d", variant="d", split="test", n_real=9, n_generated=9, seed=0)


def number(value, interval=None, name="fid", better=False, **changes):
    passport = dataclasses.replace(PASSPORT, **changes)
    return Number(
        name=name, value=value, interval=interval, higher_is_better=better, passport=passport
    )


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


# -- passports ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("extractor", "inception"),
        ("sha256", "ab"),
        ("layer", "64"),
        ("resizer", "bicubic"),
        ("dtype", "float16"),
        ("variant", "d, binarised"),
        ("split", "train"),
        ("n_real", 8),
        ("n_generated", 10),
        ("seed", 1),
        ("settings", {"k": 3}),
    ],
)
def test_any_other_passport_is_refused_by_name(field, value):
    name = "settings.k" if field == "settings" else field
    with pytest.raises(PassportMismatch, match=f"differ in {name}: "):
        check_same(number(1.0), number(1.0, **{field: value}))


def test_other_metrics_are_refused_and_equal_passports_pass():
    with pytest.raises(PassportMismatch, match="different metrics"):
        check_same(number(1.0), number(1.0, name="kid"))
    check_same(number(1.0), number(2.0), number(3.0))


def test_comparison_goes_by_direction_and_interval():
    low, high = number(1.0, (0.9, 1.1)), number(2.0, (1.8, 2.2))
    assert compare_numbers(low, high) == "first"
    assert compare_numbers(high, low) == "second"
    assert compare_numbers(low, number(1.15, (1.05, 1.25))) == "undecided"
    up = [dataclasses.replace(n, higher_is_better=True) for n in (low, high)]
    assert compare_numbers(*up) == "second"
    neither = [dataclasses.replace(n, higher_is_better=None) for n in (low, high)]
    assert compare_numbers(*neither) == "undecided"


def test_numbers_survive_json():
    before = number(1.0, (0.5, 1.5), settings={"k": 3, "kind": "bound"})
    after = Number.from_json(json.loads(json.dumps(before.to_json())))
    assert after == before
    with pytest.raises(RunError, match="damaged"):
        Number.from_json({"name": "fid"})


# -- images ------------------------------------------------------------------------------------


def test_real_images_score_well_and_noise_does_not(digits):
    x = digits.splits["train"].x
    real, same = x[0:1200:2], x[1:1200:2]
    noise = torch.randint(17, same.shape, generator=torch.Generator().manual_seed(0)).byte()
    extractor = get_extractor("digits")
    about = {"data": "digits", "variant": digits.variant, "split": "train", "levels": 17}
    good, bad = (
        {n.name: n for n in evaluate_images(v, real, extractor, **about)} for v in (same, noise)
    )
    assert set(good) == {
        "fid",
        "kid",
        "inception_score",
        "precision",
        "recall",
        "density",
        "coverage",
    }
    assert good["inception_score"].value > 8 and good["coverage"].value > 0.9
    assert good["precision"].value > 0.8 and good["recall"].value > 0.8
    assert bad["fid"].value > 20 * good["fid"].value
    assert bad["precision"].value < 0.2 and bad["coverage"].value < 0.2
    for name in good:
        assert good[name].interval[0] <= good[name].value <= good[name].interval[1]
        assert good[name].passport.sha256 == extractor.sha256
        winner = "undecided" if name in ("recall", "density") else "first"
        if winner == "first":
            assert compare_numbers(good[name], bad[name]) == winner
    again = evaluate_images(same, real, extractor, **about)
    assert again == list(good.values())
    with pytest.raises(DataError, match="4 generated images"):
        evaluate_images(same[:4], real, extractor, **about)


def test_default_extractors_fit_the_images(digits):
    assert default_extractor("digits", digits.spec).name == "digits"
    assert default_extractor("mnist", Grid(channels=1, size=(28, 28))).name == "mnist"
    bits = Grid(channels=1, size=(28, 28), levels=2)
    assert default_extractor("mnist", bits).name == "mnist"
    assert default_extractor("mnist", Grid(channels=1, size=(32, 32))).name == "random"
    assert default_extractor("holiday", Grid(channels=3, size=(32, 32))).name == "random"


def test_levels_are_matched_evenly_or_refused():
    bits = torch.tensor([0, 1], dtype=torch.uint8)
    assert match_levels(bits, 2, 256).tolist() == [0, 255]
    assert match_levels(bits, 2, 256).dtype == torch.uint8
    with pytest.raises(DataError, match="17 levels don't map evenly"):
        match_levels(bits * 16, 17, 256)


# -- likelihood --------------------------------------------------------------------------------


class Uniform:
    """Gives every symbol the same probability."""

    condition = None
    device = torch.device("cpu")

    def __init__(self, symbols, dims):
        self.symbols, self.dims = symbols, dims

    def condition_on(self, x, y, noise):
        return None

    def log_prob(self, x, condition=None, *, samples=1, seed=0):
        nats = torch.full((len(x),), -self.dims * math.log(self.symbols), dtype=torch.float64)
        return LogProb(nats=nats, kind="exact", measure="discrete", dims=self.dims)


def text_set(text):
    codec = TextCodec.learn("characters", text)
    tokens = codec.encode(text)
    splits = {"train": TextSplit(tokens), "test": TextSplit(tokens)}
    return DataSet("toy", "toy", codec.spec, None, codec, splits)


def test_uniform_image_model_has_log_levels_bits(digits):
    model = Uniform(17, 64)
    view = Tokens(vocabulary=17, length=64)
    nll, bits = evaluate_likelihood(model, view, digits, split="test", rows=50)
    assert nll.value == pytest.approx(64 * math.log(17))
    assert bits.value == pytest.approx(math.log2(17))
    assert bits.passport.n_real == 50 and bits.passport.settings["kind"] == "exact"
    bound = dataclasses.replace(
        bits, passport=dataclasses.replace(bits.passport, settings={"kind": "bound"})
    )
    with pytest.raises(PassportMismatch, match=r"settings\.kind: 'exact' and 'bound'"):
        check_same(bits, bound)


# -- text --------------------------------------------------------------------------------------


def test_repetition_and_novelty_by_hand():
    assert repetition(["a b c d"], n=2).value == 0
    assert repetition(["a b a b a"], n=2).value == pytest.approx(0.5)  # ab, ba, ab, ba
    assert novelty(["a b c"], ["x a b y"], n=2).value == pytest.approx(0.5)
    assert novelty(["a b c"], ["a b c d"], n=2).value == 0
    with pytest.raises(DataError, match="none of 1 texts has 4 words"):
        repetition(["a b"])


# -- the protocol over a run -------------------------------------------------------------------


class Copier:
    """A stand-in for a trained run: its samples are the rows of a tensor, in order."""

    def __init__(self, data, rows):
        self.data, self.rows = data, rows
        self.name, self.model_hash, self.step = "copier", "0" * 64, 7
        self.model = Uniform(17, 64)
        self.model.spec = Tokens(vocabulary=17, length=64)

    def open_data(self):
        return self.data

    def sample_native(self, n, *, seed=0, condition=None, batch_size=64, first=0, progress=None):
        if progress is not None:
            progress(n)
        return self.rows[:n]


@pytest.fixture
def run_of(monkeypatch, tmp_path):
    def make(stand_in):
        (tmp_path / "config.yaml").write_text("name: copier\n")
        stand_in.run = Run(tmp_path)
        monkeypatch.setattr("poiesis.models.trained.load", lambda run, **options: stand_in)
        return tmp_path

    return make


def test_a_run_is_judged_saved_and_read_back(digits, run_of):
    run = run_of(Copier(digits, digits.splits["train"].x.flip(0)))
    calls = []
    config = EvaluationConfig(samples=200, likelihood_rows=20)
    result = evaluate(run, config, progress=lambda *call: calls.append(call))
    assert result["fid"].value < 2
    assert result["fid"].passport.extractor == "digits"
    assert result["fid"].passport.split == "train"  # test has 180 images only
    assert result["fid"].passport.n_real == result["fid"].passport.n_generated == 200
    assert result["bits_per_dim"].value == pytest.approx(math.log2(17))
    assert result["bits_per_dim"].passport.split == "test"
    assert result["sampling_speed"].value > 0
    assert {what for what, _, _ in calls} == {"samples", "features"}
    assert sum(n for what, n, _ in calls if what == "features") == 400
    assert load_evaluation(run) == result
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    console.file.close()
    assert "bits per dim" in console.export_text()
    with pytest.raises(RunError, match="did you mean 'recall'"):
        result["recal"]


def test_wrong_options_of_an_evaluation(digits, run_of):
    run = run_of(Copier(digits, digits.splits["train"].x))
    small = dataclasses.replace(digits, splits={"train": TensorSplit(digits.splits["train"].x)})
    assert load_evaluation(run) is None
    with pytest.raises(ConfigError, match="samples = 0"):
        EvaluationConfig(samples=0)
    run = run_of(Copier(small, digits.splits["train"].x))
    with pytest.raises(ConfigError, match="no split 'test'"):
        evaluate(run, EvaluationConfig(split="test"))
    with pytest.raises(RunError, match="damaged"):
        Evaluation.from_json({"numbers": 3})


class Parrot(Copier):
    """A stand-in for a trained text model: it repeats one training phrase."""

    def __init__(self, data, symbols):
        super().__init__(data, None)
        self.model = Uniform(symbols, 8)
        self.model.spec = Tokens(vocabulary=symbols, length=8, stream=True)

    def sample(self, n, *, seed=0, batch_size=64, first=0, progress=None):
        return ["one two three four five"] * n


def test_a_text_run_is_judged(run_of):
    text = "one two three four five six seven eight nine ten " * 3
    data = text_set(text)
    symbols = data.spec.vocabulary
    result = evaluate(run_of(Parrot(data, symbols)), EvaluationConfig(samples=3))
    assert result["novelty"].value == 0 and result["repetition"].value == 0
    assert result["perplexity"].value == pytest.approx(symbols)
    assert result["bits_per_char"].value == pytest.approx(math.log2(symbols))
    assert result["nll_per_token"].value == pytest.approx(math.log(symbols))
    assert np.isfinite(result["sampling_speed"].value)
