"""Tables: what is read, how it is cut and standardised, and what is refused in one line."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poiesis.data import open_data
from poiesis.data.codecs import VectorCodec, codec_from_json
from poiesis.data.config import DataConfig
from poiesis.data.provenance import read_recipe
from poiesis.errors import ConfigError, DataError
from poiesis.files import read_table
from poiesis.spec import Classes, Vector

quick = settings(max_examples=60, deadline=None)


def rows(n=40):
    rng = np.random.default_rng(0)
    size = rng.normal(170, 10, n).round(2)
    count = rng.integers(0, 90, n)
    return size, count, np.array(["red", "blue"])[count % 2]


@pytest.fixture
def table(tmp_path):
    """A csv of two columns of numbers and one of words, as people write them."""
    size, count, colour = rows()
    path = tmp_path / "things.csv"
    lines = [f"{a},{b},{c}" for a, b, c in zip(size, count, colour, strict=True)]
    path.write_text("\n".join(["size,count,colour", *lines]) + "\n")
    return path


def written(tmp_path, text, name="x.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def refused(path, match, **options):
    with pytest.raises(DataError, match=match) as raised:
        open_data(str(path), DataConfig(**options))
    assert "\n" not in str(raised.value)


# -- reading --------------------------------------------------------------------------------------


def test_the_parts_hold_the_rows_of_the_file(table):
    size, count, colour = rows()
    data = open_data(str(table), DataConfig(label="colour"))
    assert data.spec == Vector(features=2) and data.name == "things"
    assert data.condition == Classes(count=2, names=("blue", "red"))
    assert data.notes["counts"] == {"train": 32, "validation": 4, "test": 4}
    found = {
        (*data.codec.decode(x).tolist(), data.condition.names[int(y)])
        for split in data.splits.values()
        for x, y in zip(split.x, split.y, strict=True)
    }
    assert found == set(zip(size.tolist(), count.tolist(), colour.tolist(), strict=True))


def test_columns_are_standardised_by_the_training_part_alone(table):
    data = open_data(str(table), DataConfig(label="colour"))
    train = data.splits["train"].x.double()
    torch.testing.assert_close(train.mean(0), torch.zeros(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(2).double())
    raw = np.stack([data.codec.decode(x) for x in data.splits["train"].x])
    np.testing.assert_allclose(data.codec.mean, raw.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.codec.std, raw.std(0), rtol=1e-6)


def test_all_formats_give_the_same_rows(table, tmp_path):
    size, count, colour = rows()
    (tmp_path / "z.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    (tmp_path / "semi.csv").write_text(table.read_text().replace(",", ";"))
    (tmp_path / "tabs.tsv").write_text("\ufeff" + table.read_text().replace(",", "\t"))
    np.savez(tmp_path / "a.npz", size=size, count=count, colour=colour)
    pyarrow.parquet.write_table(
        pyarrow.table({"size": size, "count": count, "colour": pyarrow.array(colour.tolist())}),
        tmp_path / "p.parquet",
    )
    np.save(tmp_path / "x.npy", np.stack([size, count], 1))
    wanted = open_data(str(table), DataConfig(label="colour"))
    for name in ("z.csv.gz", "semi.csv", "tabs.tsv", "a.npz", "p.parquet", "x.npy"):
        label = None if name == "x.npy" else "colour"
        data = open_data(str(tmp_path / name), DataConfig(label=label))
        assert data.codec.columns == (("x0", "x1") if label is None else ("size", "count"))
        assert data.notes["content"] == wanted.notes["content"]
        if label:
            assert torch.equal(data.splits["test"].x, wanted.splits["test"].x)
            assert data.condition == wanted.condition


def test_columns_of_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.arange(60.0).reshape(20, 3), kind=np.arange(20) % 3)
    data = open_data(str(tmp_path / "a.npz"), DataConfig(label="kind"))
    assert data.codec.columns == ("z0", "z1", "z2")
    assert data.condition.names == ("0", "1", "2")


def test_class_names_are_sorted_as_numbers_where_they_are(tmp_path):
    lines = [f"{k},{k % 11}" for k in range(44)]
    path = written(tmp_path, "x,y\n" + "\n".join(lines))
    names = open_data(str(path), DataConfig(label="y")).condition.names
    assert names == tuple(map(str, range(11)))


def test_options_of_tables_are_for_tables():
    with pytest.raises(ConfigError, match=r"data\.label is for a table and audio; digits"):
        open_data("digits", DataConfig(label="x"))


def test_options_of_images_are_not_for_tables(table):
    with pytest.raises(ConfigError, match=r"data\.resize is for images and video; things"):
        open_data(str(table), DataConfig(label="colour", resize=8))


# -- what is wrong --------------------------------------------------------------------------------


def test_columns_of_words_are_named_with_the_way_out(table):
    refused(table, r"things\.csv: the column colour holds words.*--data\.drop colour \(--data\.lab")
    data = open_data(str(table), DataConfig(drop="colour"))
    assert data.condition is None and data.variant == "things, 2 of 3 columns"
    assert len(data.splits["train"]) == 32


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("", "is empty"),
        ("NA", "is empty"),
        ("?", "is empty"),
        ("1,5 kg", "is '1,5 kg', which is no number"),
        ("inf", "is inf"),
    ],
)
def test_a_bad_cell_is_named_by_row_and_column(tmp_path, cell, what):
    lines = [f"{k},{k * k}" for k in range(20)]
    lines[6] = f'6,"{cell}"'  # the header is row 1, so this is row 8
    path = written(tmp_path, "a,b\n" + "\n".join(lines))
    refused(path, rf"row 8, column 'b' {what}.*--skip-bad.*--data\.drop b")
    data = open_data(str(path), DataConfig(skip_bad=True))
    assert sum(map(len, data.splits.values())) == 19
    assert len(data.skipped) == 1 and "row 8, column 'b'" in data.skipped[0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no header"),
        ("1,2\n3,4\n", r"row 1 holds numbers \(1,2\)"),
        (",a\n0,1\n", "column 1 has no name"),
        ("a,a\n0,1\n", "two columns are called 'a'"),
        ("a,b\n0,1\n2\n", "row 3 has 1 cells, the header 2"),
        ("a,b\n0,1\n\n2,3\n", "row 3 is empty"),
        ("a,b\n0,1\n2,3\n", "has 2 rows to learn from, fewer than 10"),
        ("a\n", "has 0 rows"),
        ("a,b\n" + "1e200,1\n-1e200,2\n" * 9, "numbers of column 'a' are too large"),
    ],
)
def test_bad_tables(tmp_path, text, match):
    refused(written(tmp_path, text), match)


def test_bad_options(table):
    refused(table, r"has no column 'color' \(did you mean 'colour'\?\)", label="color")
    refused(table, "has no column 'x'; it has: size, count, colour", drop="x")
    refused(table, "no column is left", drop="size,count,colour")


def test_bad_arrays(tmp_path):
    np.save(tmp_path / "cube.npy", np.zeros((3, 3, 3)))
    refused(tmp_path / "cube.npy", "shape .3, 3, 3., which is no table")
    np.savez(tmp_path / "a.npz", x=np.zeros(12), y=np.zeros(11))
    refused(tmp_path / "a.npz", "its columns differ in length .x 12, y 11.")
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "o.npy", "holds pickled objects")
    values = np.arange(24.0).reshape(12, 2)
    values[3, 1] = np.nan
    np.save(tmp_path / "nan.npy", values)
    refused(tmp_path / "nan.npy", "row 3, column 'x1' is empty")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 not really PAR1")
    refused(tmp_path / "p.parquet", "is no whole parquet file")


def test_long_files_keep_count_of_rows(tmp_path):
    lines = ["1,2"] * 9000
    lines[8500] = "1,oops"
    path = written(tmp_path, "a,b\n" + "\n".join(lines) + "\n\n")
    found = read_table(path)
    assert len(found) == 9000 and found.words["b"].row == 8502
    assert np.isnan(found.columns["b"]).sum() == 1 and np.isnan(found.columns["b"][8500])


# -- the codec ------------------------------------------------------------------------------------

number = st.floats(-1e6, 1e6, allow_nan=False)


def stored(codec):
    return codec_from_json(json.loads(json.dumps(codec.to_json())))


@given(values=st.lists(st.tuples(number, number), min_size=2, max_size=20))
@quick
def test_rows_come_back_to_float_precision(values):
    x = np.array(values)
    codec = stored(VectorCodec.fit(("a", "b"), x))
    encoded = codec.encode(x)
    assert encoded.dtype == torch.float32 and encoded.shape == x.shape
    # float32 holds 24 bits of the distance from the mean; 6 digits behind the spread's first are
    # written.
    allowed = 2e-7 * np.abs(x - codec.mean) + 1e-6 * np.array(codec.std) + 1e-9 * np.abs(x)
    assert (np.abs(codec.decode(encoded) - x) <= allowed).all()


@given(values=st.lists(st.integers(-10_000, 10_000), min_size=2, max_size=20))
@quick
def test_whole_numbers_come_back_exactly_and_samples_are_whole(values):
    x = np.array(values, float)[:, None]
    codec = stored(VectorCodec.fit(("n",), x))
    assert (codec.decode(codec.encode(x)) == x).all()
    between = codec.decode(torch.tensor([[0.1234], [-2.7]]))
    assert (between == np.rint(between)).all()


def test_written_table_is_read_again(tmp_path):
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(1.6e9, 30, 50), rng.normal(0, 1e-9, 50), rng.integers(0, 5, 50)], 1)
    codec = VectorCodec.fit(("time", "tiny", "n"), x, "kind")
    raws = [codec.decode(row) for row in codec.encode(x)]
    path = tmp_path / f"x{codec.suffix}"
    codec.write_table(raws, path, {"seed": 1}, classes=["a", "b"] * 25)
    assert path.read_text().splitlines()[0] == "time,tiny,n,kind"
    assert path.read_text().splitlines()[1].split(",")[2] in "01234"
    assert read_recipe(path) == {"seed": 1}
    found = read_table(path, as_words="kind")
    assert found.kept == ["a", "b"] * 25
    for column, name in enumerate(("time", "tiny", "n")):
        error = np.abs(found.columns[name] - x[:, column])
        assert error.max() <= 1e-6 * codec.std[column]


def test_samples_have_the_digits_of_the_data():
    prices = np.array([[0.99], [12.5], [3.25], [100.0]])
    codec = VectorCodec.fit(("price",), prices)
    assert codec.decimals == (2,)
    assert codec.decode(torch.tensor([[0.123456]])).tolist() == [[34.26]]
    assert (codec.decode(codec.encode(prices)) == prices).all()


def test_constant_columns_stay_what_they_are():
    codec = VectorCodec.fit(("c",), np.full((9, 1), 0.1))
    assert codec.std == (1.0,)
    assert codec.decode(codec.encode(np.array([0.1]))) == pytest.approx(0.1)


def test_preview_shows_rows_and_those_behind():
    rng = np.random.default_rng(0)
    for d in (1, 2, 3, 9):
        codec = VectorCodec.fit([f"c{k}" for k in range(d)], rng.normal(size=(50, d)))
        raws = list(rng.normal(size=(20, d)))
        alone, both = codec.preview(raws), codec.preview(raws, behind=list(rng.normal(size=(9, d))))
        for picture in (alone, both):
            assert picture.mode == "RGB" and len(picture.getcolors(1 << 20)) > 10
        assert alone.tobytes() != both.tobytes()
        assert alone.tobytes() == codec.preview(raws).tobytes()


def test_damaged_codecs():
    good = VectorCodec.fit(("a", "b"), np.eye(2)).to_json()
    for change in ({"mean": [0.0]}, {"std": [1.0, 0.0]}, {"mean": [0.0, float("nan")]}):
        with pytest.raises(DataError, match="damaged"):
            codec_from_json({**good, **change})
    with pytest.raises(DataError, match="2 finite numbers"):
        codec_from_json(good).encode(np.zeros(3))
