"""Attributes, several of which a sample may have: from tables and folders to samples."""

import numpy as np
import pytest
import torch
from PIL import Image

from poiesis import config as configs
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.errors import CapabilityError, ConfigError, DataError, SpecError
from poiesis.models.gans.adversarial import telling
from poiesis.models.samples import sample
from poiesis.models.trained import build, load
from poiesis.registry import model_class
from poiesis.spec import Attributes, from_json, to_json
from poiesis.training import verb

BOTH = Attributes(names=("tall", "bright"))


def opened(path, **options):
    return open_data(str(path), configs.from_dict(DataConfig, {"source": str(path), **options}))


@pytest.fixture
def table(tmp_path):
    """Rows whose first number is 2 where tall, whose second is -1 where bright; else 0."""
    rng = np.random.default_rng(0)
    rows = ["a,b,tall,bright"]
    for k in range(400):
        tall, bright = k % 2, (k // 2) % 2
        a, b = 2 * tall + 0.1 * rng.normal(), -bright + 0.1 * rng.normal()
        rows.append(f"{a:.4f},{b:.4f},{tall},{bright if k % 4 else -1}")
    (tmp_path / "points.csv").write_text("\n".join(rows))
    return tmp_path / "points.csv"


@pytest.fixture
def folder(tmp_path):
    """Pictures that are bright or dark, and have a bar or none."""
    (tmp_path / "pictures").mkdir()
    rows = ["file,bright,bar"]
    for k in range(24):
        bright, bar = k % 2, k // 2 % 2
        pixels = np.full((8, 8), 200 * bright, np.uint8)
        if bar:
            pixels[:, 3] = 255 - pixels[0, 0]
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{k}.png")
        rows.append(f"{k}.png,{bright},{bar}")
    (tmp_path / "about.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]))
    return tmp_path / "pictures"


def test_a_table_gives_them_beside_its_rows(table):
    data = opened(table, attributes="tall, bright")
    assert data.condition == BOTH
    assert data.codec.columns == ("a", "b")
    for split in data.splits.values():
        assert split.y.dtype == torch.float32 and split.y.shape == (len(split), 2)
        raws = np.stack([np.asarray(data.codec.decode(row), dtype=float) for row in split.x])
        assert np.array_equal(raws[:, 0] > 1, split.y[:, 0].numpy() > 0)
        assert np.array_equal(raws[:, 1] < -0.5, split.y[:, 1].numpy() > 0)
    assert from_json(to_json(data.condition)) == data.condition


def test_a_folder_finds_them_by_file(folder):
    data = opened(folder, attributes=str(folder.parent / "about.csv"))
    assert data.condition == Attributes(names=("bright", "bar"))
    seen = 0
    for split in data.splits.values():
        x, y = split.fetch(torch.arange(len(split)))
        seen += len(split)
        assert torch.equal(x[:, 0, 0, 0] == 200, y[:, 0] == 1)
        assert torch.equal(x[:, 0, 0, 3] != x[:, 0, 0, 0], y[:, 1] == 1)
    assert seen == 24


@pytest.mark.parametrize(
    ("table_text", "text"),
    [
        ("file,bright\n0.png,1\n", "says nothing of the file '1.png'"),
        ("file\n0.png\n", "has no column beside 'file'"),
        ("file,bright\n0.png,1\n1.png,0.5\n", "row 3, column 'bright' is no attribute"),
        ("file,bright\n0.png,1\n1.png,yes\n", "row 3, column 'bright' is no attribute"),
    ],
)
def test_a_wrong_table_says_where(folder, tmp_path, table_text, text):
    (tmp_path / "wrong.csv").write_text(table_text)
    with pytest.raises(DataError, match=text):
        opened(folder, attributes=str(tmp_path / "wrong.csv"))


def test_wrong_columns_say_so(table):
    with pytest.raises(DataError, match=r"no column 'tal' .did you mean 'tall'"):
        opened(table, attributes="tal")
    with pytest.raises(DataError, match="column 'a' is no attribute"):
        opened(table, attributes="a")
    with pytest.raises(DataError, match=r"data.label or data.attributes"):
        opened(table, attributes="tall", label="bright")


def test_they_are_named_in_words():
    assert BOTH.values("bright") == [0, 1]
    assert BOTH.values("bright, tall") == [1, 1]
    assert BOTH.values("none") == BOTH.values("") == [0, 0]
    assert BOTH.describe([1, 0]) == "tall" and BOTH.describe([0, 0]) == "none"
    with pytest.raises(SpecError, match=r"no attribute 'brigth' .did you mean 'bright'"):
        BOTH.values("tall,brigth")


def test_an_auxiliary_classifier_tells_each_attribute():
    logits = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    share = logits.sigmoid()
    expected = -(label * share.log() + (1 - label) * (1 - share).log()).sum(1)
    torch.testing.assert_close(telling(logits, label), expected)


def test_models_of_classes_refuse_them(table):
    data = opened(table, attributes="tall,bright")
    cls = model_class("vae")
    config = configs.override(cls.preset("default", data.spec), {"conditional": True})
    with pytest.raises(ConfigError, match="VAE learns by class, not by attribute; use a GAN"):
        build(cls, config, data.spec, data.condition)


def test_a_gan_learns_them_and_makes_what_is_asked_for(table, tmp_path):
    run = verb.train(
        "cgan",
        str(table),
        config={
            "data": {"attributes": "tall,bright"},
            "model": {"dropout": 0.0, "latent_dim": 4, "projection": True},
        },
        steps=250,
        threads=1,
        grids=0,
        validations=0,
        out=tmp_path / "run",
        quiet=True,
    )
    trained = load(run.path, device="cpu")
    for asked, a, b in (("none", 0, 0), ("tall", 2, 0), ("bright", 0, -1), ("tall,bright", 2, -1)):
        rows = np.asarray(trained.sample(100, label=asked), dtype=float)
        assert np.abs(rows.mean(0) - [a, b]).max() < 0.4, (asked, rows.mean(0))
    assert trained.class_names(4) == ["none", "tall", "bright", "none"]
    (path,) = sample(run.path, 5, label="tall", out=tmp_path / "samples.csv")
    assert path.read_text().count("\n") >= 5
    with pytest.raises(SpecError, match="no attribute"):
        trained.sample(1, label="small")
    with pytest.raises(CapabilityError, match="learned attributes, not classes: tall, bright"):
        trained.class_number("tall")
