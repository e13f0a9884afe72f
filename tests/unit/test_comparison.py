"""Comparisons train and judge alike, go on where they stopped, and rank only what may be ranked."""

import dataclasses
import json

import pytest

from poiesis import comparison
from poiesis.comparison import Comparison, Row, compare
from poiesis.errors import ConfigError, RunError
from poiesis.evaluation.passport import Number, Passport, PassportMismatch

TINY = {"steps": 3, "grids": 1, "validations": 0, "samples": 20, "quiet": True}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pair"
    return compare(["vae", "gan"], "digits", out=out, **TINY)


def test_models_are_trained_and_judged_alike(two):
    assert set(two.runs) == {"vae", "gan"}
    assert [row.failure for row in two.rows] == ["", ""]
    for row in two.rows:
        assert row.steps == 3 and row.seconds > 0
        assert row.number("fid").passport == two.rows[0].number("fid").passport
        assert row.number("fid").passport.n_generated == 20
        assert row.peak_memory is None or row.peak_memory > 4 * row.parameters
    fids = [row.number("fid").value for row in two.rows]
    assert fids == sorted(fids)
    stored = json.loads((two.path / "comparison.json").read_text())
    assert [r["model"] for r in stored["rows"]] == [r.model for r in two.rows]
    html = two.report.read_text()
    assert "vae" in html and "gan" in html and "Leaderboard" in html and "http" not in html


def test_the_table_has_a_column_per_model(two):
    table = two.table()
    assert [c.header for c in table.columns] == ["", *(row.model for row in two.rows)]
    first = list(table.columns[0].cells)
    assert "FID ↓" in first and "coverage ↑" in first and "parameters" in first


def test_what_is_finished_is_kept_and_models_may_join(two, monkeypatch, capsys):
    trained = []

    def spy(name, *args, **options):
        trained.append(name)
        return comparison_train(name, *args, **options)

    comparison_train = comparison.train
    monkeypatch.setattr(comparison, "train", spy)
    more = compare(["gan", "dcgan"], "digits", out=two.path, **{**TINY, "quiet": False})
    assert trained == ["dcgan"]
    assert "gan: finished before, not trained again" in capsys.readouterr().err
    assert {row.model for row in more.rows} == {"vae", "gan", "dcgan"}


def test_other_settings_are_refused(two):
    with pytest.raises(RunError, match=r"train\.steps = 3, not 4"):
        compare(["vae"], "digits", out=two.path, **{**TINY, "steps": 4})


def test_a_failure_stands_in_the_table_and_the_others_go_on(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 400)
    tiny = {**TINY, "samples": 2, "batch_size": 2}
    result = compare(["vae", "transformer:default"], str(path), out=tmp_path / "out", **tiny)
    failed = {row.model: row.failure for row in result.rows}
    assert failed["transformer:default"] == "" and "VAE learns images" in failed["vae"]
    assert result.rows[-1].model == "vae"
    assert failed["vae"].split()[0] in result.report.read_text()
    assert "vae failed" in str(result.table().caption)


def test_unknown_models_are_refused_before_anything_is_done(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'vae'"):
        compare(["vaee"], "digits", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="twice"):
        compare(["vae", "vae"], "digits", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def row(model, value, interval, **passport):
    about = Passport(
        data="d", variant="d", split="test", n_real=9, n_generated=9, seed=0, **passport
    )
    number = Number(
        name="bits_per_dim", value=value, interval=interval, higher_is_better=False, passport=about
    )
    return Row(model=model, numbers=(number,))


def outcome(tmp_path, *rows):
    settings = {"data": {"source": "d"}, "train": {"steps": 1}, "seed": 0}
    return Comparison(path=tmp_path, report=tmp_path, settings=settings, rows=rows)


def test_best_are_those_that_none_beats_beyond_doubt(tmp_path):
    rows = (row("a", 1.0, (0.9, 1.1)), row("b", 1.05, (1.0, 1.2)), row("c", 2.0, (1.9, 2.1)))
    assert outcome(tmp_path, *rows).best("bits_per_dim") == {"a", "b"}


def test_a_bound_is_not_ranked_with_an_exact_value(tmp_path):
    bound = row("a", 1.0, (0.9, 1.1), settings={"kind": "bound"})
    exact = row("b", 2.0, (1.9, 2.1), settings={"kind": "exact"})
    result = outcome(tmp_path, exact, bound)
    with pytest.raises(PassportMismatch, match=r"settings\.kind"):
        result.best("bits_per_dim")
    assert "not ranked" in str(result.table().caption)
    assert "bold" not in str([list(c.cells) for c in result.table().columns])


def test_rows_survive_the_file():
    first = row("a", 1.0, (0.9, 1.1), settings={"k": 3})
    assert Row.from_json(json.loads(json.dumps(dataclasses.asdict(first)))) == first
    with pytest.raises(RunError, match="damaged"):
        Row.from_json({"model": "a"})
