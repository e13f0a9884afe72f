"""`poiesis detect`: decisions that keep their rate, files, the truth where it is known."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import poiesis
from poiesis.cli.main import main
from poiesis.data import open_data


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """A VAE trained for some seconds on the digits 0 to 4."""
    path = tmp_path_factory.mktemp("low") / "run"
    arguments = ["--data", "digits", "--data.classes", "0,1,2,3,4", "--train.steps", "300"]
    arguments += ["--train.threads", "1", "--train.grids", "0", "--quiet"]
    assert main(["train", "vae", *arguments, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty test pictures each of normal and other digits, in folders good and bad."""
    root, data = tmp_path_factory.mktemp("pictures"), open_data("digits")
    split = data.splits["test"]
    for name, chosen in (("good", split.y < 5), ("bad", split.y >= 5)):
        (root / name).mkdir()
        for number, row in enumerate(split.x[chosen][:20]):
            data.codec.write(data.codec.decode(row), root / name / f"{number:02d}.png")
    return root


def test_the_runs_own_data_with_the_classes_left_out(poiesis, low, tmp_path):
    out = tmp_path / "found"
    code, text, err = poiesis("detect", low, "-o", out, "--quiet")
    assert code == 0, err
    assert "180 samples (digits, test)" in text and f"written: {out}" in text
    report = json.loads((out / "report.json").read_text())
    labels = open_data("digits").splits["test"].y
    assert report["normal_classes"] == ["0", "1", "2", "3", "4"]
    assert report["anomalies"] == int((labels >= 5).sum())
    combined = report["scores"]["combined"]
    # Trained for seconds: far above what knows nothing, and false alarms near what was asked for.
    assert combined["auroc"] > 0.9
    assert combined["flagged_normal"] < 0.2 < 0.4 < combined["flagged_anomalies"]
    assert {"pca", "one-class-svm", "knn", "isolation-forest"} <= set(report["baselines"])
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["class"]) for row in rows] == labels.tolist()
    flagged = [row["decision"] == "anomaly" for row in rows]
    assert flagged == [float(row["p_value"]) <= 0.05 for row in rows]
    assert flagged == [float(row["score"]) > report["threshold"] for row in rows]
    page = (out / "report.md").read_text()
    assert f"| **combined** | {combined['auroc']:.4f} |" in page and "| knn (baseline) |" in page
    with Image.open(out / "heatmaps.png") as sheet:
        colours = np.asarray(sheet.convert("RGB")).astype(int)
    assert (np.abs(colours[..., 0] - colours[..., 2]) > 60).mean() > 0.01  # not grey alone


def test_folders_maps_and_what_is_normal_there(poiesis, low, pictures, tmp_path):
    out = tmp_path / "found"
    given = ["detect", low, pictures, "--normal", "good", "--maps", "--skip-baselines", "--quiet"]
    code, text, err = poiesis(*given, "-o", out, "--json")
    assert code == 0, err
    report = json.loads(text)
    assert report["anomalies"] == 20 and report["baselines"] == {}
    assert report["scores"]["combined"]["auroc"] > 0.9
    maps = {path.relative_to(out / "maps").as_posix() for path in (out / "maps").rglob("*.png")}
    assert maps == {f"{name}/{i:02d}.png" for name in ("good", "bad") for i in range(20)}
    shades = {}
    for name in ("good", "bad"):
        shades[name] = 0.0
        for path in (out / "maps" / name).glob("*.png"):
            with Image.open(path) as heat:
                assert min(heat.size) >= 128
                shades[name] += np.asarray(heat.convert("L")).mean() / 20
    assert shades["bad"] > 1.3 * shades["good"]
    # Without --normal the folders are called by no class of the run: the truth is not known.
    code, text, _ = poiesis("detect", low, pictures, "--json", "--quiet")
    unknown = json.loads(text)
    assert code == 0 and unknown["anomalies"] is None and unknown["scores"]["combined"] == {}
    assert unknown["flagged"] == report["flagged"]


def test_from_python_and_another_score(low):
    found = poiesis.detect(low, score="reconstruction", fpr=0.1, limit=50, baselines=False)
    assert found.score == "reconstruction" and len(found.flagged) == 50
    assert (found.flagged == (found.p_values["reconstruction"] <= 0.1)).all()
    again = poiesis.detect(low, score="reconstruction", fpr=0.1, limit=50, baselines=False)
    for name, values in found.scores.items():
        np.testing.assert_array_equal(values, again.scores[name])


def test_mistakes(refused, low, text_run, pictures, tmp_path):
    line = refused("detect", low, "--fpr", 0.001, "--quiet")
    assert "held-out normal samples" in line and "hold out 999 or more" in line
    assert "fpr = 0.0" in refused("detect", low, "--fpr", 0, "--quiet")
    assert "did you mean 'reconstruction" in refused("detect", low, "--score", "reconstructon")
    assert "not images" in refused("detect", text_run, "--quiet")
    assert "has no class 'god' (did you mean 'good'?)" in refused(
        "detect", low, pictures, "--normal", "god", "--quiet"
    )
    assert "say where to with --out" in refused("detect", low, "--maps", "--quiet")
    (tmp_path / "flat").mkdir()
    shutil.copy(pictures / "good" / "00.png", tmp_path / "flat" / "0.png")
    normal = ["--normal", "good", "-o", tmp_path / "out", "--quiet"]
    assert "has no classes" in refused("detect", low, tmp_path / "flat", *normal)
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_calibrated_or_asked(poiesis, refused, tmp_path):
    quick = ["--data", "digits", "--train.steps", 2, "--train.grids", 0, "--train.threads", 1]
    bare = [*quick, "--data.validation", 0, "--quiet"]
    assert poiesis("train", "vae", *bare, "--out", tmp_path / "bare")[0] == 0
    assert "train it with --data.validation" in refused("detect", tmp_path / "bare", "--quiet")
    classes = [*quick, "--model.conditional", "true", "--quiet"]
    assert poiesis("train", "vae", *classes, "--out", tmp_path / "cvae")[0] == 0
    assert "--model.conditional false" in refused("detect", tmp_path / "cvae", "--quiet")


@pytest.mark.parametrize(
    ("model", "scores"),
    [
        ("dcgan", {"features", "discriminator"}),
        ("transformer", {"features", "likelihood", "complexity"}),
        ("vdvae", {"features", "reconstruction-code", "latent-neighbours", "complexity"}),
    ],
)
def test_models_with_other_capabilities(poiesis, tmp_path, model, scores):
    size = {
        "transformer": ["--model.width", 16, "--model.heads", 2, "--model.layers", 1],
        "dcgan": ["--model.widths", "16,8"],
        "vdvae": [],
    }[model]
    quick = ["--data", "digits", "--train.steps", 2, "--train.grids", 0, "--train.threads", 1]
    code, _, err = poiesis("train", model, *quick, *size, "--quiet", "--out", tmp_path / "run")
    assert code == 0, err
    given = ["--limit", 30, "--fit-rows", 60, "-o", tmp_path / "out", "--json", "--quiet"]
    code, text, err = poiesis("detect", tmp_path / "run", *given)
    assert code == 0, err
    found = json.loads(text)
    assert scores | {"combined"} <= set(found["scores"])
    assert (tmp_path / "out" / "heatmaps.png").exists() == (model == "vdvae")
