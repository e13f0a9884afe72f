"""From a csv to a csv: training, samples, numbers, report, reduction and cleaning of vectors."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.datasets import make_moons

from poiesis.cli.main import main
from poiesis.evaluation.protocol import EvaluationConfig, evaluate
from poiesis.files import read_table

QUICK = ["--train.grids", "0", "--train.threads", "1", "--quiet"]
MODELS = (
    *("vae", "iwae", "autoencoder", "denoising-autoencoder", "sparse-autoencoder"),
    *("contractive-autoencoder", "vae-gan", "gan"),
)


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """Two moons far from the origin, in units of their own, and a column of words."""
    path = tmp_path_factory.mktemp("moons") / "moons.csv"
    x, y = make_moons(600, noise=0.06, random_state=0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["east", "north", "moon"])
        for (a, b), k in zip(x, y, strict=True):
            table.writerow([1000 + 50 * a, -3 + 0.01 * b, ("upper", "lower")[k]])
    return path


@pytest.fixture(scope="module")
def run(moons):
    """A VAE of moons by class, trained for some seconds."""
    path = moons.parent / "run"
    how = ["--data", str(moons), "--data.label", "moon", "--train.steps", "600", *QUICK]
    how += ["--model.conditional", "true", "--model.weight-decay", "0"]
    assert main(["train", "cvae", *how, "--out", str(path)]) == 0
    return path


def test_data_is_described(poiesis, moons, tmp_path):
    code, out, err = poiesis(
        "data", moons, "--data.label", "moon", "--preview", tmp_path / "p.png", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["shape"] == "vector of 2 features, real"
    assert found["notes"]["columns"] == ["east", "north"]
    assert found["classes"]["train"] == {"lower": 240, "upper": 240}
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_samples_are_one_table_in_the_units_of_the_data(poiesis, run, moons, tmp_path):
    code, out, err = poiesis("sample", run, "-n", 400, "-o", tmp_path / "new.csv", "--quiet")
    assert code == 0 and f"400 samples: {tmp_path / 'new.csv'}" in out, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.csv", "new.csv.json", "new.png"]
    real = read_table(moons, as_words="moon")
    made = read_table(tmp_path / "new.csv", as_words="moon")
    assert list(made.columns) == ["east", "north", "moon"] and len(made) == 400
    assert made.kept == ["lower", "upper"] * 200
    for name in ("east", "north"):
        spread = real.columns[name].std()
        assert abs(made.columns[name].mean() - real.columns[name].mean()) < 0.35 * spread
        assert 0.6 * spread < made.columns[name].std() < 1.4 * spread
    # Each class has its own moon: the upper one lies 0.5 higher, 1 to the left.
    heights = {
        kind: np.mean([h for h, k in zip(t.columns["north"], t.kept, strict=True) if k == kind])
        for t in (made,)
        for kind in ("upper", "lower")
    }
    assert heights["upper"] > heights["lower"] + 0.003
    code, out, _ = poiesis("reproduce", tmp_path / "new.csv")
    assert code == 0 and "identical" in out
    code, out, _ = poiesis("inspect", tmp_path / "new.csv")
    assert code == 0 and "batch: [0, 400]" in out


def test_samples_in_a_folder_and_in_shards(poiesis, run, tmp_path):
    where = ["--class", "upper", "--quiet", "-o"]
    code, out, _ = poiesis("sample", run, "-n", 30, *where, tmp_path / "one")
    assert code == 0 and "samples.csv" in out
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "grid.png",
        "samples.csv",
        "samples.csv.json",
    ]
    command = ["sample", run, "-n", 30, "--shard-size", 20, "--batch-size", 10, *where]
    code, out, _ = poiesis(*command, tmp_path / "many")
    assert code == 0 and "30 samples in 2 shards" in out
    parts = [(tmp_path / "many" / f"shard-{k:05d}.csv").read_text().splitlines() for k in (0, 1)]
    assert [len(part) for part in parts] == [21, 11] and parts[0][0] == parts[1][0]
    single = read_table(tmp_path / "one" / "samples.csv", as_words="moon")
    shard = read_table(tmp_path / "many" / "shard-00001.csv", as_words="moon")
    assert set(single.kept) == {"upper"} and shard.kept == ["upper"] * 10
    np.testing.assert_allclose(shard.columns["east"], single.columns["east"][20:], rtol=1e-5)


def test_numbers_and_report(poiesis, run):
    code, out, err = poiesis("evaluate", run, "--json", "--quiet")
    assert code == 0, err
    numbers = {n["name"]: n for n in json.loads(out)["numbers"]}
    distance = numbers["frechet_distance"]
    assert distance["passport"]["extractor"] == "standardised columns"
    assert 0 <= distance["value"] < 0.5
    assert {"precision", "recall", "density", "coverage", "nll", "sampling_speed"} <= set(numbers)
    assert 0.3 < numbers["precision"]["value"] <= 1 and numbers["recall"]["value"] > 0.3
    code, out, err = poiesis("report", run)
    assert code == 0, err
    page = (run / "report.html").read_text()
    assert "Fréchet distance" in page and "standardised columns" in page
    assert page.count("data:image/png;base64,") == 1


def test_rows_are_reduced_and_cleaned(poiesis, run, moons, tmp_path):
    code, out, err = poiesis("reduce", run, moons, "-o", tmp_path / "z.csv", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["samples"] == 600
    with (tmp_path / "z.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[1][:2] == ["row-000002", "upper"] or rows[1][:2] == ["row-000002", "lower"]
    options = ["--add", "gaussian", "--level", 0.8, "-o", tmp_path / "clean", "--quiet"]
    code, out, err = poiesis("denoise", run, moons, *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    # The power of noise of standard deviation 0.8 beside that of a standardised column.
    assert found["snr_before"] == pytest.approx(-20 * np.log10(0.8), abs=0.3)
    assert found["snr"] > found["snr_before"] + 1
    cleaned = read_table(tmp_path / "clean" / "cleaned.csv", as_words="moon")
    assert len(cleaned) == 600 and set(cleaned.kept) == {"upper", "lower"}
    assert (tmp_path / "clean" / "before-after.png").exists()
    again = ["denoise", run, tmp_path / "clean" / "cleaned.csv", "--clean", moons, "--json"]
    code, out, err = poiesis(*again, "--quiet")
    assert code == 0, err
    assert json.loads(out)["snr_before"] == pytest.approx(found["snr"], abs=0.05)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_vectors_trains_samples_and_resumes(poiesis, moons, tmp_path, model):
    how = ["--data", moons, "--data.label", "moon", *QUICK]
    code, _, err = poiesis("train", model, *how, "--train.steps", 6, "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = poiesis("train", "--resume", tmp_path / "run", "--train.steps", 9, *QUICK[2:])
    assert code == 0, err
    code, _, err = poiesis("sample", tmp_path / "run", "-n", 12, "--quiet")
    assert code == 0, err
    path = tmp_path / "run" / "samples" / "seed-0" / "samples.csv"
    assert len(read_table(path)) == 12
    found = evaluate(tmp_path / "run", EvaluationConfig(samples=50))
    assert found["frechet_distance"].value > 0


def test_dry_run_and_comparison(poiesis, moons, tmp_path):
    how = ["--data", moons, "--data.drop", "moon"]
    code, out, err = poiesis("train", "vae", *how, "--train.steps", 10, "--dry-run")
    assert code == 0 and "vector of 2 features" in out, err
    options = ["--train.steps", 5, "--samples", 50, "--out", tmp_path / "c", "--quiet"]
    code, out, err = poiesis("compare", "vae", "gan", *how, *options)
    assert code == 0, err
    assert "Fréchet distance" in out
    assert (tmp_path / "c" / "report.html").exists()


def test_a_changed_table_is_noticed(poiesis, refused, moons, tmp_path):
    path = tmp_path / "own.csv"
    lines = moons.read_text().splitlines()
    path.write_text("\n".join(lines))
    how = ["--data", path, "--data.drop", "moon", "--train.steps", 2, *QUICK]
    code, _, err = poiesis("train", "vae", *how, "--out", tmp_path / "run")
    assert code == 0, err
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    line = refused("train", "--resume", tmp_path / "run")
    assert "differ from those this run was trained on" in line


def test_mistakes(refused, run, vae_run, moons, tmp_path):
    assert "--data.drop moon" in refused("train", "vae", "--data", moons, "--train.steps", 2)
    assert "learns images" in refused("train", "dcgan", "--data", moons, "--data.drop", "moon")
    (tmp_path / "other.csv").write_text("east,south\n1,2\n")
    line = refused("reduce", run, tmp_path / "other.csv", "--quiet")
    assert "has no column 'north'" in line
    line = refused("denoise", run, tmp_path / "other.csv", "-o", tmp_path / "out", "--quiet")
    assert "has no column 'north'" in line and not (tmp_path / "out").exists()
    assert "is no table" in refused("reduce", run, tmp_path, "--quiet")
    line = refused("evaluate", run, "--extractor", "random", "--quiet")
    assert "is for images" in line
