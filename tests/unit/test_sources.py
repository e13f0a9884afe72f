"""Sources: what is opened, how it is cut into parts, and how it is called."""

import gzip
import io
import os
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from poiesis.data import open_data
from poiesis.data.augment import AUGMENTATIONS, augment
from poiesis.data.config import DataConfig
from poiesis.data.sources.splits import bernoulli, stratified
from poiesis.errors import ConfigError, DataError, MissingDependency
from poiesis.rng import Draws
from poiesis.spec import Grid, Tokens

SHARED = Path(os.environ.get("POIESIS_DATA") or Path(__file__).parents[3] / "shared" / "data")


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there")
    return SHARED / name


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without data: the root is an empty folder."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("POIESIS_DATA", str(root))
    monkeypatch.setenv("HOME", str(tmp_path))
    return root


def picture(seed=0, size=(8, 6), mode="RGB"):
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())


def folder(root, layout, **options):
    """Write one picture per name; return the folder."""
    for seed, name in enumerate(layout):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, **options).save(root / name)
    return root


def classes(names, count):
    return [f"{name}/{k}.png" for name in names for k in range(count)]


# -- named sets -----------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    data = open_data("digits")
    assert data.spec == Grid(channels=1, size=(8, 8), levels=17)
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [1437, 180, 180]
    assert data.condition.count == 10
    rows = torch.cat([data.splits[s].x for s in data.splits])
    labels = torch.cat([data.splits[s].y for s in data.splits])
    bunch = load_digits()
    assert rows.sum() == int(bunch["images"].sum())
    ours = sorted((bytes(x.numpy().tobytes()), int(y)) for x, y in zip(rows, labels, strict=True))
    theirs = sorted(
        (bytes(x.astype(np.uint8).tobytes()), int(y))
        for x, y in zip(bunch["images"], bunch["target"], strict=True)
    )
    assert ours == theirs


def test_every_part_has_the_same_mix_of_classes():
    data = open_data("digits")
    whole = np.bincount(load_digits()["target"]) / 1797
    for split in data.splits.values():
        share = torch.bincount(split.y).numpy() / len(split)
        assert np.abs(share - whole).max() < 0.01


def test_splits_depend_on_the_seed_alone():
    first, again = open_data("digits"), open_data("digits")
    other = open_data("digits", DataConfig(split_seed=1))
    assert first.notes["sha256"] == again.notes["sha256"] != other.notes["sha256"]
    assert torch.equal(first.splits["test"].x, again.splits["test"].x)
    assert other.variant == "digits, split with seed 1"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_and_fashion_mnist(name, monkeypatch):
    monkeypatch.setenv("POIESIS_DATA", str(shared(name).parent))
    data = open_data(name)
    assert data.notes["counts"] == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert data.spec == Grid(channels=1, size=(28, 28))
    train = torch.cat([data.splits["train"].y, data.splits["validation"].y])
    if name == "mnist":
        # Class counts as published with the set.
        published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert torch.bincount(train).tolist() == published
        assert data.splits["test"].y[:5].tolist() == [7, 2, 1, 0, 4]
        mean = 0.1307
    else:
        assert torch.bincount(train).tolist() == [6000] * 10
        mean = 0.2860
    pixels = [data.splits[s].x.to(torch.int64).sum().item() for s in ("train", "validation")]
    assert sum(pixels) / (60_000 * 784 * 255) == pytest.approx(mean, abs=1e-4)


def test_cifar10_partial_and_jpeg_agree(monkeypatch):
    monkeypatch.setenv("POIESIS_DATA", str(shared("cifar10-partial").parent))
    data = open_data("cifar10-partial")
    assert data.notes["counts"] == {"train": 3200, "validation": 400, "test": 400}
    assert data.condition.names[6] == "frog"
    # The published channel means of CIFAR-10, here of a twelfth of it.
    mean = data.splits["train"].x.float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)


@pytest.mark.slow
def test_zipped_image_folder(monkeypatch):
    monkeypatch.setenv("POIESIS_DATA", str(shared("cifar10-jpeg").parent))
    data = open_data("cifar10-jpeg")
    assert data.notes["counts"] == {"train": 22_500, "validation": 2_500, "test": 5_000}
    assert torch.bincount(data.splits["test"].y).tolist() == [500] * 10
    mean = data.splits["train"].x.float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)


def test_tinyshakespeare_ends_with_validation(monkeypatch):
    path = shared("text/tinyshakespeare.txt")
    monkeypatch.setenv("POIESIS_DATA", str(path.parents[1]))
    data = open_data("tinyshakespeare")
    assert data.spec == Tokens(vocabulary=65, length=0, stream=True)
    assert data.notes["counts"] == {"train": 1_003_855, "validation": 111_539}
    parts = [data.codec.decode(data.splits[s].tokens) for s in ("train", "validation")]
    assert "".join(parts) == path.read_text(encoding="utf-8")


def test_python_stdlib_limited():
    data = open_data("python-stdlib", DataConfig(limit=5000, tokenizer="bytes"))
    text = data.codec.decode(data.splits["train"].tokens)
    assert len(text) == 5000
    assert "def " in text and "import " in text
    assert data.notes["files"] > 300
    assert "Python 3." in data.variant


def test_missing_set_says_where_and_how(nowhere):
    with pytest.raises(DataError) as error:
        open_data("mnist")
    text = str(error.value)
    assert str(nowhere) in text and ".cache/poiesis" in text
    assert "hf:ylecun/mnist" in text and "\n" not in text
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        open_data("fashion-minst")


def test_root_is_searched_before_the_cache(nowhere, tmp_path):
    cache = tmp_path / ".cache" / "poiesis" / "text"
    cache.mkdir(parents=True)
    (cache / "names.txt").write_text("anna\n" * 100)
    assert open_data("names").notes["characters"]["train"] == 450
    (nowhere / "names.txt").write_text("bob\n" * 100)
    assert open_data("names").notes["characters"]["train"] == 360
    folder(nowhere / "birds", classes("ab", 4))
    assert open_data("birds").condition.names == ("a", "b")


# -- layouts --------------------------------------------------------------------------------------


def test_flat_folder_has_no_classes(tmp_path):
    data = open_data(str(folder(tmp_path / "set", [f"{k}.png" for k in range(20)])))
    assert data.condition is None
    assert data.notes["counts"] == {"train": 16, "validation": 2, "test": 2}
    assert data.spec == Grid(channels=3, size=(6, 8))
    seen = {x.numpy().tobytes() for s in data.splits.values() for x in s.x}
    want = {np.array(picture(k)).transpose(2, 0, 1).tobytes() for k in range(20)}
    assert seen == want


def test_official_parts_are_kept(tmp_path):
    names = [f"{part}/{name}" for part in ("train", "test") for name in classes("ab", 10)]
    data = open_data(str(folder(tmp_path / "set", names)))
    assert data.notes["counts"] == {"train": 18, "validation": 2, "test": 20}
    data = open_data(str(folder(tmp_path / "set", [f"valid/{n}" for n in classes("ab", 3)])))
    assert data.notes["counts"] == {"train": 20, "validation": 6, "test": 20}


def test_a_lone_train_folder_is_cut_like_a_set_without_parts(tmp_path):
    root = folder(tmp_path / "set", [f"train/{name}" for name in classes("ab", 10)])
    data = open_data(str(root))
    assert data.notes["counts"] == {"train": 16, "validation": 2, "test": 2}
    assert data.condition.names == ("a", "b")


def test_zip_is_read_like_a_folder(tmp_path):
    root = folder(tmp_path / "set", classes("ab", 6))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, Path("outer") / path.relative_to(root))
        archive.writestr("__MACOSX/a/._0.png", b"not an image")
    plain, packed = open_data(str(root)), open_data(str(tmp_path / "set.zip"))
    assert plain.notes["sha256"] == packed.notes["sha256"]
    assert torch.equal(plain.splits["train"].x, packed.splits["train"].x)
    assert torch.equal(plain.splits["train"].y, packed.splits["train"].y)


def test_idx_and_cifar_in_any_folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 40), ("t10k", 10)):
        x, y = rng.integers(0, 256, (n, 5, 5)), np.arange(n) % 4
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            data = gzip.compress(header + array.astype(np.uint8).tobytes())
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(data)
    data = open_data(str(tmp_path))
    assert data.notes["counts"] == {"train": 36, "validation": 4, "test": 10}
    assert torch.equal(data.splits["test"].x[:, 0], torch.from_numpy(x.astype(np.uint8)))

    records = rng.integers(0, 256, (60, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, part in (("data_batch_1.bin", records[:50]), ("test_batch.bin", records[50:])):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = part.nbytes
            archive.addfile(info, io.BytesIO(part.tobytes()))
    data = open_data(str(path))
    assert data.notes["counts"]["test"] == 10
    red = data.splits["test"].x[0, 0]
    assert torch.equal(red.flatten(), torch.from_numpy(records[50, 1:1025].copy()))


def test_text_folder_keeps_every_character(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("ä\n" * 50, encoding="utf-8")
    (tmp_path / "b" / "c.md").write_text("no end", encoding="utf-8")
    (tmp_path / "x.bin2").write_bytes(b"\xff")
    data = open_data(str(tmp_path))
    parts = [data.codec.decode(data.splits[s].tokens) for s in ("train", "validation")]
    assert "".join(parts) == "ä\n" * 50 + "no end\n"
    assert data.notes["ignored"] == 1


# -- options --------------------------------------------------------------------------------------


def test_mixed_sizes_and_colours_name_the_option(tmp_path):
    root = folder(tmp_path / "set", classes("ab", 4))
    picture(size=(5, 6)).save(root / "a/odd.png")
    with pytest.raises(DataError, match=r"8 of 8x6, 1 of 5x6 .*a/odd.png.*--data.resize"):
        open_data(str(root))
    data = open_data(str(root), DataConfig(resize=4))
    assert data.spec == Grid(channels=3, size=(4, 4))
    assert data.variant == "set, shorter side resized to 4, centre crop 4x4"
    (root / "a/odd.png").unlink()
    picture(mode="L").save(root / "b/grey.png")
    with pytest.raises(DataError, match=r"8 of RGB, 1 of L .*b/grey.png.*--data.channels 3"):
        open_data(str(root))
    assert open_data(str(root), DataConfig(channels=1)).spec.channels == 1


@pytest.mark.parametrize("binarize", ["none", "once", "threshold"])
def test_streamed_and_held_sets_are_the_same(tmp_path, binarize):
    root = folder(tmp_path / "set", classes("ab", 10), mode="L")
    options = {"binarize": binarize, "limit": 9}
    held = open_data(str(root), DataConfig(**options))
    streamed = open_data(str(root), DataConfig(memory=0, **options))
    assert streamed.notes["streamed"] and not held.notes["streamed"]
    assert held.variant == streamed.variant and held.spec == streamed.spec
    assert held.notes["counts"] == {"train": 9, "validation": 2, "test": 2}
    positions = torch.tensor([5, 0, 3, 3])
    for part in held.splits:
        where = positions.clamp(max=len(held.splits[part]) - 1)
        for a, b in zip(
            held.splits[part].fetch(where), streamed.splits[part].fetch(where), strict=True
        ):
            assert torch.equal(a, b)


def test_bernoulli_draws_follow_the_grey_value():
    draws = bernoulli("train", torch.arange(2000), 100)
    assert draws.min() >= 0 and draws.max() < 1
    # Mean and variance of a uniform number; five standard errors of 200,000 draws.
    assert draws.mean() == pytest.approx(1 / 2, abs=5 * (1 / 12 / draws.size) ** 0.5)
    assert draws.var() == pytest.approx(1 / 12, abs=5 * (1 / 180 / draws.size) ** 0.5)
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.012
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.012
    assert np.array_equal(draws[7], bernoulli("train", torch.tensor([7]), 100)[0])


def test_binarised_digits():
    grey = open_data("digits")
    bits = open_data("digits", DataConfig(binarize="once"))
    assert bits.variant == "digits, Bernoulli-binarised once with seed 0"
    assert bits.spec.levels == 2
    x, p = bits.splits["train"].x.float(), grey.splits["train"].x / 16
    error = (p * (1 - p)).sum().sqrt() / p.numel()
    assert abs(x.mean() - p.mean()) < 5 * error
    assert (x[p == 0] == 0).all() and (x[p == 1] == 1).all()
    hard = open_data("digits", DataConfig(binarize="threshold")).splits["train"].x
    assert torch.equal(hard, (grey.splits["train"].x >= 8).to(torch.uint8))


def test_chosen_classes_keep_their_parts_of_the_whole_set():
    whole = open_data("digits")
    one = open_data("digits", DataConfig(classes=("7",)))
    two = open_data("digits", DataConfig(classes=("8", "3")))
    assert one.variant == "digits, class 7 only" and one.condition is None
    assert two.variant == "digits, classes 3, 8 only" and two.condition.names == ("3", "8")
    for part in ("train", "validation", "test"):
        x, y = whole.splits[part].x, whole.splits[part].y
        assert torch.equal(one.splits[part].x, x[y == 7]) and one.splits[part].y is None
        kept = (y == 3) | (y == 8)
        assert torch.equal(two.splits[part].x, x[kept])
        assert torch.equal(two.splits[part].y, (y[kept] == 8).long())
    assert one.notes["counts"]["train"] == len(one.splits["train"])
    assert one.notes["sha256"] != whole.notes["sha256"]
    limited = open_data("digits", DataConfig(classes=("7",), limit=20))
    assert len(limited.splits["train"]) == 20
    assert limited.variant == "digits, class 7 only, 20 training images"


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_classes_of_a_folder_held_or_streamed(tmp_path, memory):
    folder(tmp_path, [f"{c}/{i}.png" for c in ("ant", "bee", "cow") for i in range(8)])
    where = str(tmp_path)
    data = open_data(where, DataConfig(classes=("cow", "bee"), memory=memory))
    train = data.splits["train"]
    x, y = train.fetch(torch.arange(len(train)))
    assert data.condition.names == ("bee", "cow") and y.tolist() == sorted(y.tolist())
    everything, labels = (w := open_data(where).splits["train"]).fetch(torch.arange(len(w)))
    assert torch.equal(x, everything[labels > 0]) and torch.equal(y, labels[labels > 0] - 1)


def test_classes_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="digits has no class 'seven'; it has: 0, 1"):
        open_data("digits", DataConfig(classes=("seven",)))
    where = str(folder(tmp_path, [f"{i}.png" for i in range(12)]))
    with pytest.raises(ConfigError, match="has none"):
        open_data(where, DataConfig(classes=("a",)))
    with pytest.raises(ConfigError, match=r"data\.classes is for images"):
        open_data("python-stdlib", DataConfig(classes=("a",), limit=1000))


def test_options_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abc\n" * 20)
    text = str(tmp_path / "a.txt")
    for config in (
        DataConfig(resize=8),
        DataConfig(binarize="once"),
        DataConfig(augment=("flip",)),
    ):
        with pytest.raises(ConfigError, match="is for images"):
            open_data(text, config)
    with pytest.raises(ConfigError, match="did you mean 'flip'"):
        open_data("digits", DataConfig(augment=("flop",)))


def test_stratified_parts_are_disjoint_and_exact():
    y = torch.tensor([0] * 97 + [1] * 2 + [2] * 41)
    rest, first, second = stratified(y, len(y), (0.1, 0.1), seed=3)
    assert sorted(torch.cat([rest, first, second]).tolist()) == list(range(140))
    assert torch.bincount(y[first]).tolist() == [10, 1, 4]
    assert torch.bincount(y[second]).tolist()[0] == 10
    assert torch.bincount(y[rest]).min() >= 1


# -- the hub --------------------------------------------------------------------------------------


def fake_hub(parts, features):
    """A `datasets` module with what open_hub uses of it."""
    hub = types.ModuleType("datasets")

    class Column:
        def __init__(self, rows):
            self.rows, self.features = rows, features

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, key):
            return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

        def cast_column(self, name, feature):
            assert feature.decode is False
            return self

    class Picture:
        def __init__(self, decode=True):
            self.decode = decode

    hub.Image = type("Image", (Picture,), {})
    hub.load_dataset = lambda name, variant: {k: Column(rows) for k, rows in parts.items()}
    return hub


def png(seed):
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def test_hub_images(monkeypatch):
    label = type("ClassLabel", (), {"names": ["cat", "dog"]})()
    rows = [{"img": {"bytes": png(k), "path": None}, "kind": k % 2} for k in range(20)]
    features = {"kind": label}
    hub = fake_hub({"train": rows, "test": rows[:4]}, features)
    features["img"] = hub.Image()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    data = open_data("hf:someone/pets")
    assert data.name == "someone-pets"
    assert data.condition.names == ("cat", "dog")
    assert data.notes["counts"] == {"train": 18, "validation": 2, "test": 4}
    assert data.splits["test"].y.tolist() == [0, 1, 0, 1]
    want = np.array(picture(3)).transpose(2, 0, 1)
    assert np.array_equal(data.splits["test"].x[3].numpy(), want)


def test_hub_text(monkeypatch):
    value = type("Value", (), {"dtype": "string"})
    parts = {"train": [{"id": "1", "text": "one"}, {"id": "2", "text": "two"}]}
    parts["validation"] = [{"id": "3", "text": "net"}]
    monkeypatch.setitem(sys.modules, "datasets", fake_hub(parts, {"id": value(), "text": value()}))
    data = open_data("hf:someone/words")
    assert data.codec.decode(data.splits["train"].tokens) == "one\ntwo"
    assert data.codec.decode(data.splits["validation"].tokens) == "net"


def test_hub_missing_and_misspelt(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'poiesis\[hub\]'"):
        open_data("hf:someone/words")
    with pytest.raises(DataError, match="hf:OWNER/NAME"):
        open_data("hf:words")


# -- augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_keyed_by_row(name):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8))
    whole = augment((name,), x, Draws(("data", 0), total=64))
    part = augment((name,), x[24:40], Draws(("data", 0), total=64, start=24, size=16))
    assert torch.equal(whole[24:40], part)
    assert whole.dtype == torch.uint8 and whole.shape == x.shape
    changed = (whole != x).flatten(1).any(1).float().mean()
    # Share of rows that a fair draw leaves alone: 1/2, 1/2, 1/25, 1/4.
    left = {"flip": 1 / 2, "flip-vertical": 1 / 2, "shift": 1 / 25, "quarter-turn": 1 / 4}[name]
    assert changed.item() == pytest.approx(1 - left, abs=0.2)
    if name != "shift":
        assert torch.equal(whole.flatten(1).sort().values, x.flatten(1).sort().values)


def test_shift_moves_the_whole_picture():
    x = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    x[:, :, 8, 8] = 1
    moved = augment(("shift",), x, Draws(("data", 1), total=200))
    assert (moved.sum((1, 2, 3)) == 1).all()
    places = moved.flatten(1).argmax(1)
    rows, columns = places // 16, places % 16
    assert set(rows.tolist()) == set(columns.tolist()) == {6, 7, 8, 9, 10}
