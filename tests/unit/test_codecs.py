"""Codecs: raw to tensor and back without loss, and through the run's JSON."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from poiesis.data.codecs import ImageCodec, TextCodec, codec_from_json
from poiesis.data.codecs.image import convert, fit
from poiesis.data.provenance import read_recipe
from poiesis.errors import ConfigError, DataError
from poiesis.spec import Grid, Tokens

quick = settings(max_examples=50, deadline=None)


def stored(codec):
    return codec_from_json(json.loads(json.dumps(codec.to_json())))


# -- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_levels_come_back_from_the_file(tmp_path, channels, levels):
    codec = stored(ImageCodec(channels=channels, size=(5, 9), levels=levels))
    assert codec.spec == Grid(channels=channels, size=(5, 9), levels=levels)
    x = torch.from_numpy(
        np.random.default_rng(0).integers(0, levels, (channels, 5, 9), dtype=np.uint8)
    )
    x[0, 0, 0], x[0, 0, 1] = 0, levels - 1
    raw = codec.decode(x)
    assert raw.size == (9, 5)
    assert torch.equal(codec.encode(raw), x)
    path = tmp_path / f"x{codec.suffix}"
    codec.write(raw, path, {"seed": 1})
    with Image.open(path) as image:
        assert np.array(image).max() == 255
        assert torch.equal(codec.encode(image), x)
    assert read_recipe(path) == {"seed": 1}


def test_seventeen_levels_spread_over_the_bytes():
    codec = ImageCodec(channels=1, size=(1, 17), levels=17)
    pixels = np.array(codec.decode(torch.arange(17, dtype=torch.uint8)[None, None]))[0]
    assert pixels.tolist() == [round(255 * k / 16) for k in range(17)]


def test_encode_repeats_resize_crop_and_colours():
    codec = stored(ImageCodec(channels=1, size=(4, 4), resize=4))
    x = codec.encode(Image.new("RGBA", (24, 16), (200, 200, 200, 255)))
    assert x.shape == (1, 4, 4) and (x == 200).all()
    with pytest.raises(DataError, match="24 x 16 pixels, not 4 x 4"):
        ImageCodec(channels=3, size=(4, 4)).encode(Image.new("RGB", (24, 16)))


def test_shrinking_averages_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 18), dtype=np.uint8)
    small = np.array(fit(Image.fromarray(pixels), 4, None))
    blocks = pixels.reshape(4, 3, 6, 3).mean((1, 3))
    assert small.shape == (4, 4)
    assert np.abs(small - blocks[:, 1:5]).max() <= 1


def test_crop_is_central_and_never_pads():
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    assert np.array_equal(np.array(fit(Image.fromarray(pixels), None, 3)), pixels[1:4, 1:4])
    with pytest.raises(DataError, match="fewer than the crop of 8"):
        fit(Image.fromarray(pixels), None, 8)


def test_colours_without_loss():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert list(convert(palette, None).tobytes()) == [10, 20, 30, 40, 50, 60]
    assert convert(Image.new("1", (1, 1), 1), None).tobytes() == b"\xff"
    clear = Image.new("RGBA", (1, 1), (9, 9, 9, 0))
    assert convert(clear, 3).tobytes() == b"\xff\xff\xff"
    assert convert(Image.new("L", (1, 1), 7), 4).tobytes() == b"\x07\x07\x07\xff"
    with pytest.raises(DataError, match="CMYK"):
        convert(Image.new("CMYK", (1, 1)), None)


def test_image_preview_holds_every_picture():
    codec = ImageCodec(channels=1, size=(8, 8))
    raws = [Image.new("L", (8, 8), 40 + 20 * k) for k in range(5)]
    sheet = np.array(codec.preview(raws))
    assert {40 + 20 * k for k in range(5)} <= set(sheet[..., 0].ravel().tolist())
    assert sheet.ndim == 3


def test_codec_bounds():
    with pytest.raises(ConfigError, match=r"codec\.channels = 5"):
        ImageCodec(channels=5, size=(4, 4))
    with pytest.raises(DataError, match="unknown codec"):
        codec_from_json({"kind": "smell"})
    with pytest.raises(DataError, match="damaged"):
        codec_from_json({"kind": "image", "channels": 1})
    with pytest.raises(DataError, match="damaged"):
        codec_from_json({"kind": "text", "tokens": "runes", "model": ""})


# -- text -----------------------------------------------------------------------------------------

SAMPLE = "The cat sat on the mat.\nThe dog sat on the log, naïvely. 😀\n" * 40
CODECS = {
    "characters": TextCodec.learn("characters", SAMPLE),
    "bytes": stored(TextCodec.learn("bytes", SAMPLE)),
    "bpe": stored(TextCodec.learn("bpe", SAMPLE, 300)),
}


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=st.text(max_size=200))
@quick
def test_bytes_and_bpe_express_any_text(kind, text):
    codec = CODECS[kind]
    tokens = codec.encode(text)
    assert codec.decode(tokens) == text
    assert tokens.dtype == torch.int64 and tokens.ndim == 1
    if len(tokens):
        assert tokens.min() >= 0 and tokens.max() < codec.vocabulary


@given(text=st.text(alphabet=sorted(set(SAMPLE)), max_size=200))
@quick
def test_characters_come_back(text):
    codec = stored(CODECS["characters"])
    assert codec.decode(codec.encode(text)) == text
    assert len(codec.encode(text)) == len(text)


def test_vocabularies():
    alphabet = sorted(set(SAMPLE))
    codec = CODECS["characters"]
    assert codec.spec == Tokens(vocabulary=len(alphabet), length=0, stream=True)
    assert codec.encode("".join(alphabet)).tolist() == list(range(len(alphabet)))
    assert CODECS["bytes"].encode("é").tolist() == [0xC3, 0xA9]
    assert CODECS["bytes"].vocabulary == 256
    bpe = CODECS["bpe"]
    assert 256 < bpe.vocabulary <= 300
    # The text repeats itself: byte pairs must compress it well below its bytes.
    assert len(bpe.encode(SAMPLE)) < 0.55 * len(SAMPLE.encode())


def test_bpe_is_learned_the_same_way_twice():
    again = TextCodec.learn("bpe", SAMPLE, 300)
    assert again.to_json() == CODECS["bpe"].to_json()


def test_text_longer_than_a_piece():
    text = ("line of words\n" * 20_000) + "x" * 100_000
    assert CODECS["bpe"].decode(CODECS["bpe"].encode(text)) == text


def test_strange_characters_are_named():
    with pytest.raises(DataError, match=r"'Ω' at 4 .*'ΩΨ'|'Ω' at 4 .*'ΨΩ'"):
        CODECS["characters"].encode("The ΩΨ")
    with pytest.raises(DataError, match="empty"):
        TextCodec.learn("characters", "")


def test_bytes_of_no_character_are_shown():
    assert CODECS["bytes"].decode(torch.tensor([65, 0xFF, 66])) == "A\ufffdB"


def test_text_file_and_sidecar(tmp_path):
    codec = CODECS["characters"]
    path = tmp_path / f"x{codec.suffix}"
    codec.write("naïve\r\n😀", path, {"seed": 3})
    assert path.read_bytes() == "naïve\r\n😀".encode()
    assert read_recipe(path) == {"seed": 3}
    codec.write("plain", tmp_path / "y.txt")
    assert not (tmp_path / "y.txt.json").exists()


def test_text_preview_is_ink_on_paper():
    picture = CODECS["bytes"].preview(["hello\nworld", "a" * 5000, "", "漢字\x00"])
    pixels = np.array(picture.convert("L"))
    assert pixels.max() == 255 and pixels.min() < 100
    assert 0.001 < (pixels < 128).mean() < 0.5
