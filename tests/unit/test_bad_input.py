"""Bad data sets: one line that names the file and the way out; or skipped, counted and listed."""

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.errors import DataError

SKIP = DataConfig(skip_bad=True)


def save(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def pictures(tmp_path):
    """A good folder of two classes of six."""
    for seed in range(12):
        save(tmp_path / "set" / "ab"[seed % 2] / f"{seed:02}.jpg", seed)
    return tmp_path / "set"


def refused(match, source, config=None):
    with pytest.raises(DataError, match=match) as error:
        open_data(str(source), config)
    assert "\n" not in str(error.value)
    return str(error.value)


def total(data):
    return sum(data.notes["counts"].values())


def huge_png():
    good = io.BytesIO()
    Image.new("L", (1, 1)).save(good, "PNG")
    data = bytearray(good.getvalue())
    data[16:24] = struct.pack(">II", 100_000, 1_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


BAD = {
    "empty": lambda good: b"",
    "text": lambda good: b"hello",
    "truncated": lambda good: good[:-60],
    "huge": lambda good: huge_png(),
}


@pytest.mark.parametrize("memory", [4.0, 0.0])
@pytest.mark.parametrize("kind", BAD)
def test_bad_image_is_named_or_skipped(pictures, kind, memory):
    bad = pictures / "a" / "04.jpg"
    bad.write_bytes(BAD[kind](bad.read_bytes()))
    if kind != "truncated" or memory:
        assert "--skip-bad" in refused(r"a/04\.jpg", pictures, DataConfig(memory=memory))
    data = open_data(str(pictures), DataConfig(skip_bad=True, memory=memory))
    assert total(data) == 11
    assert data.notes["skipped"] == len(data.skipped) == 1
    assert "a/04.jpg" in data.skipped[0]


def test_bad_image_in_a_streamed_set_shows_when_read(pictures):
    bad = pictures / "a" / "04.jpg"
    bad.write_bytes(BAD["truncated"](bad.read_bytes()))
    data = open_data(str(pictures), DataConfig(memory=0))
    with pytest.raises(DataError, match=r"a/04\.jpg"):
        for split in data.splits.values():
            for row in range(len(split)):
                split.fetch(torch.tensor([row]))


def test_no_image_can_be_read(pictures):
    for path in pictures.rglob("*.jpg"):
        path.write_bytes(b"?")
    refused("no image can be read, the first because: .*jpg", pictures, SKIP)


def test_empty_folders(tmp_path, pictures):
    (tmp_path / "empty").mkdir()
    refused("empty.*it is empty", tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    refused("holds no images", tmp_path / "empty.zip")
    refused("no file, folder or data set", tmp_path / "none")
    refused("no file, folder or data set", "")
    refused("no file, folder or data set|name too long", "x" * 5000)


def test_class_with_one_file(pictures):
    save(pictures / "lonely" / "x.jpg")
    assert "--skip-bad" in refused("class 'lonely' has 1 image, fewer than 2", pictures)
    data = open_data(str(pictures), SKIP)
    assert data.condition.names == ("a", "b")
    assert total(data) == 12
    assert "lonely" in data.skipped[0]
    labels = torch.cat([split.y for split in data.splits.values()])
    assert torch.bincount(labels).tolist() == [6, 6]


def test_set_of_one_image(tmp_path):
    save(tmp_path / "set" / "x.png")
    refused("the set has 1 image", tmp_path / "set")
    refused("the set has 1 image", tmp_path / "set", SKIP)
    refused("single image", tmp_path / "set" / "x.png")


def test_unclear_layouts(pictures):
    save(pictures / "stray.jpg")
    refused("stray.jpg lies beside the folders", pictures)
    (pictures / "stray.jpg").unlink()
    for seed in range(4):
        save(pictures / "train" / "a" / f"{seed}.jpg", seed)
    refused("lies beside train/", pictures)


def test_parts_with_other_classes(tmp_path):
    for name in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/c/0"):
        save(tmp_path / f"{name}.png")
    refused("test has the class 'c'", tmp_path)


def test_zip_traversal_bomb_and_truncation(tmp_path, pictures):
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w") as archive:
        for path in sorted(pictures.rglob("*.jpg")):
            archive.write(path, path.relative_to(pictures))
    (tmp_path / "good.zip").write_bytes(good.getvalue())
    assert total(open_data(str(tmp_path / "good.zip"))) == 12
    (tmp_path / "cut.zip").write_bytes(good.getvalue()[:-40])
    refused("cut.zip", tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../x.jpg", b"x")
    refused("evil.zip.*points outside", tmp_path / "evil.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", b"\0" * (32 << 20))
    refused("bomb.zip.*bomb", tmp_path / "bomb.zip")


def test_broken_zip_member_is_skipped(tmp_path, pictures):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for image in sorted(pictures.rglob("*.jpg")):
            archive.write(image, image.relative_to(pictures))
        offset = archive.getinfo("a/00.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 200] ^= 0xFF
    path.write_bytes(data)
    refused("set.zip:a/00.jpg: is a broken zip member", path)
    assert total(open_data(str(path), SKIP)) == 11


def test_invalid_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n" * 10 + b"b\xe9d")
    (tmp_path / "b.txt").write_text("fine\n" * 10)
    refused(r"a\.txt: invalid UTF-8 at byte 51 \(line 11\)", tmp_path)
    refused(r"a\.txt: invalid UTF-8", tmp_path / "a.txt")
    data = open_data(str(tmp_path), SKIP)
    assert len(data.skipped) == 1 and data.notes["files"] == 1
    (tmp_path / "b.txt").unlink()
    refused("none of its 1 text files", tmp_path, SKIP)
    (tmp_path / "e.txt").write_text("")
    refused("empty", tmp_path / "e.txt")


def idx_set(root):
    for prefix in ("train", "t10k"):
        for kind, shape in (("images-idx3", (20, 4, 4)), ("labels-idx1", (20,))):
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            body = (np.arange(np.prod(shape)) % 5).astype(np.uint8).tobytes()
            (root / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + body))
    return root


def test_idx_set(tmp_path):
    root = idx_set(tmp_path)
    assert total(open_data(str(root))) == 40
    path = root / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:-5]))
    refused("train-images.*header says 320 bytes", root)
    path.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 19, 4, 4) + whole[32:]))
    refused("don't go with labels", root)
    path.unlink()
    refused("no train-images|has no train-images", root)


def test_cifar_file(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(b"\0" * 3072)
    refused("data_batch_1.bin.*no whole number of records", path)
    path.write_bytes(b"\x0b" * 3073)
    refused("label above 9", path)


@given(
    cut=st.sampled_from([1.0, 1.0, 0.7, 0.2]),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_damaged_zip_sets(tmp_path_factory, cut, flips):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for seed in range(4):
            pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
            member = io.BytesIO()
            Image.fromarray(pixels).save(member, "PNG")
            archive.writestr(f"{seed}.png", member.getvalue())
    data = bytearray(out.getvalue()[: int(len(out.getvalue()) * cut)])
    for place, value in flips:
        data[int(place * (len(data) - 1))] ^= value
    path = tmp_path_factory.mktemp("damaged") / "set.zip"
    path.write_bytes(data)
    for config in (None, SKIP):
        try:
            open_data(str(path), config)
        except DataError as error:
            assert "\n" not in str(error)
