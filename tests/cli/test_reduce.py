"""`poiesis reduce`: tables of codes in three formats, from data sets and files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest

import poiesis
from poiesis.data import open_data


def table(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_codes_as_csv_npz_and_parquet(poiesis, vae_run, tmp_path):
    paths = {suffix: tmp_path / f"codes{suffix}" for suffix in (".csv", ".npz", ".parquet")}
    for path in paths.values():
        code, out, err = poiesis("reduce", vae_run, "--limit", 150, "-o", path, "--quiet")
        assert code == 0, err
        assert "150 samples (digits, test)" in out and str(path) in out and "linear_probe" in out
    rows = table(paths[".csv"])
    arrays = np.load(paths[".npz"])
    columns = pyarrow.parquet.read_table(paths[".parquet"])
    assert rows[0][:3] == ["name", "class", "z0"] and len(rows) == 151
    assert arrays["z"].shape == (150, len(rows[0]) - 2)
    assert [row[0] for row in rows[1:]] == arrays["name"].tolist()
    assert [row[1] for row in rows[1:]] == arrays["class"].tolist()
    values = np.array([[float(v) for v in row[2:]] for row in rows[1:]])
    np.testing.assert_allclose(values, arrays["z"], rtol=1e-5, atol=1e-6)
    assert columns.column_names == rows[0]
    np.testing.assert_allclose(columns["z0"].to_numpy(), arrays["z"][:, 0])


def test_codes_of_pictures_are_those_of_the_data(poiesis, vae_run, tmp_path):
    data = open_data("digits")
    pictures = [data.codec.decode(row) for row in data.splits["test"].x[:6]]
    labels = data.splits["test"].y[:6].tolist()
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        folder = tmp_path / "in" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        data.codec.write(picture, folder / f"{number}.png")
    assert poiesis("reduce", vae_run, tmp_path / "in", "-o", tmp_path / "a.csv", "--quiet")[0] == 0
    code, out, _ = poiesis(
        "reduce", vae_run, "digits", "-o", tmp_path / "b.csv", "--json", "--quiet"
    )
    assert code == 0 and json.loads(out)["samples"] == len(data.splits["test"])
    files, whole = table(tmp_path / "a.csv"), table(tmp_path / "b.csv")
    for row in files[1:]:
        number = int(row[0].split("/")[1].removesuffix(".png"))
        assert row[1] == str(labels[number])
        assert [float(v) for v in row[2:]] == pytest.approx(
            [float(v) for v in whole[1 + number][2:]], abs=1e-5
        )


def test_from_python(vae_run):
    found = poiesis.reduce(vae_run, limit=30)
    assert found.codes.shape[0] == 30 and found.path is None
    assert 0 <= found.numbers["hoyer_sparsity"] <= 1


def test_mistakes(refused, vae_run, text_run, tmp_path):
    assert "ends in none of .csv, .npz, .parquet" in refused("reduce", vae_run, "-o", "codes.txt")
    assert "models that can: " in refused("reduce", text_run, "--quiet")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused("reduce", vae_run, tmp_path / "empty", "--quiet")
    assert "but the run learned" in refused("reduce", vae_run, "python-stdlib", "--quiet")
    assert not (tmp_path / "codes.csv").exists()
