"""Specs and views: what goes into a model comes back unchanged."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poiesis.data.views import View
from poiesis.errors import SpecError
from poiesis.spec import Classes, Grid, Tokens, Vector, from_json, to_json


def rows(source: Grid, n: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(source.levels, (n, *source.shape), generator=generator).to(torch.uint8)


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    levels=st.integers(2, 256),
    domain=st.sampled_from(["levels", "unit", "signed"]),
)
def test_padded_views_invert_exactly(channels, height, width, extra, levels, domain):
    source = Grid(channels=channels, size=(height, width), levels=levels)
    size = (height + extra[0], width + extra[1])
    view = View(source, Grid(channels=channels, size=size, domain=domain, levels=levels))
    x = rows(source)
    assert torch.equal(view.invert(view.apply(x)), x)


def test_28_pixels_are_padded_to_32_by_the_lowest_level():
    source = Grid(channels=1, size=(28, 28))
    target = Grid(channels=1, size=(32, 32), domain="signed")
    x = rows(source)
    padded = View(source, target).apply(x)
    assert padded.shape == (5, 1, 32, 32)
    torch.testing.assert_close(padded[..., 2:30, 2:30], x.float() / 127.5 - 1)
    border = padded.clone()
    border[..., 2:30, 2:30] = -1
    assert torch.equal(border, torch.full_like(border, -1))


def test_17_levels_fill_the_range():
    source = Grid(channels=1, size=(1, 17), levels=17)
    x = torch.arange(17, dtype=torch.uint8).reshape(1, 1, 1, 17)
    for domain, low in (("unit", 0), ("signed", -1)):
        view = View(source, Grid(channels=1, size=(1, 17), domain=domain, levels=17))
        torch.testing.assert_close(view.apply(x).flatten(), torch.linspace(low, 1, 17))
    far = torch.tensor([-9.0, 9.0, torch.nan, *[0.0] * 14]).reshape(1, 1, 1, 17)
    assert view.invert(far).flatten().tolist() == [0, 16, 0, *[8] * 14]


def test_pixels_as_tokens_run_by_rows_with_channels_side_by_side():
    source = Grid(channels=3, size=(2, 4))
    view = View(source, Tokens(vocabulary=256, length=24))
    x = rows(source)
    tokens = view.apply(x)
    assert tokens.dtype == torch.int64 and tokens.shape == (5, 24)
    for row, column, channel in ((0, 0, 0), (0, 0, 2), (1, 3, 1)):
        where = (row * 4 + column) * 3 + channel
        assert torch.equal(tokens[:, where], x[:, channel, row, column].long())
    assert torch.equal(view.invert(tokens), x)


def test_bits_are_drawn_by_brightness_and_fixed_without_a_source():
    source = Grid(channels=1, size=(64, 64), levels=5)
    x = torch.arange(5, dtype=torch.uint8).repeat_interleave(1).reshape(5, 1, 1, 1)
    x = x.expand(5, 1, 64, 64)
    view = View(source, Grid(channels=1, size=(64, 64), domain="bits", levels=5))
    bits = view.apply(x)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    # 4096 draws: the standard error of a share is at most 0.008.
    torch.testing.assert_close(bits.mean((1, 2, 3)), torch.linspace(0, 1, 5), atol=0.04, rtol=0)
    assert torch.equal(bits, view.apply(x))
    draws = torch.Generator().manual_seed(1)
    other = view.apply(x, lambda *shape: torch.rand(5, *shape, generator=draws))
    assert not torch.equal(bits, other)
    binary = Grid(channels=1, size=(64, 64), levels=2)
    two = View(binary, Grid(channels=1, size=(64, 64), domain="bits", levels=2))
    assert torch.equal(two.apply(rows(binary)), rows(binary).float())
    assert torch.equal(two.invert(two.apply(rows(binary))), rows(binary))


def test_views_that_make_no_sense_are_refused():
    image = Grid(channels=1, size=(28, 28))
    text = Tokens(vocabulary=50, length=0, stream=True)
    pairs = [
        (image, Grid(channels=3, size=(28, 28))),
        (image, Grid(channels=1, size=(27, 27))),
        (image, Tokens(vocabulary=256, length=99)),
        (image, Tokens(vocabulary=255, length=784)),
        (image, Vector(features=784)),
        (text, Tokens(vocabulary=49, length=8, stream=True)),
        (text, Tokens(vocabulary=50, length=8)),
        (text, image),
        (Vector(features=2), Vector(features=3)),
        (Grid(channels=1, size=(9,), domain="real"), Grid(channels=1, size=(9,), domain="signed")),
        (Grid(channels=1, size=(9,), domain="real"), Tokens(vocabulary=256, length=9)),
    ]
    for source, target in pairs:
        with pytest.raises(SpecError, match="can't be viewed as"):
            View(source, target)
    View(image, Grid(channels=1, size=(14, 14)))
    View(text, Tokens(vocabulary=64, length=8, stream=True))


@pytest.mark.parametrize(
    "spec", [Vector(features=3), Grid(channels=1, size=(9,), domain="real")], ids=str
)
def test_standardised_values_are_seen_as_they_are(spec):
    x = torch.randn(4, *spec.shape) * 100
    view = View(spec, spec)
    assert torch.equal(view.apply(x), x) and torch.equal(view.invert(x), x)
    assert view.invert(x.double()).dtype == torch.float32


def test_specs_survive_json():
    specs = [
        Grid(channels=3, size=(32, 16), domain="signed", levels=17),
        Tokens(vocabulary=9, length=4),
        Tokens(vocabulary=9, length=4, stream=True),
        Vector(features=2, domain="bits"),
        Classes(count=2, names=("a", "b")),
        None,
    ]
    for spec in specs:
        assert from_json(json.loads(json.dumps(to_json(spec)))) == spec
    with pytest.raises(SpecError, match="unknown spec kind 'sound'"):
        from_json({"kind": "sound"})


def test_shapes_and_dims():
    assert Grid(channels=3, size=(4, 5)).shape == (3, 4, 5)
    assert Grid(channels=3, size=(4, 5)).dims == 60
    # A window of a stream predicts one token less than it holds.
    assert Tokens(vocabulary=9, length=4, stream=True).shape == (5,)
    assert Tokens(vocabulary=9, length=4, stream=True).dims == 4
    assert Tokens(vocabulary=9, length=4).shape == (4,)


def test_classes_by_name_or_number():
    classes = Classes(count=3, names=("cat", "dog", "7"))
    assert [classes.index(name) for name in ("dog", "0", "7")] == [1, 0, 2]
    for bad in ("bird", "3", "-1"):
        with pytest.raises(SpecError, match="the classes are: cat, dog, 7"):
            classes.index(bad)


def test_audio_is_padded_with_silence_and_cut_again():
    native = Grid(channels=1, size=(50,), domain="real")
    view = View(native, Grid(channels=1, size=(56,), domain="real"))
    x = torch.randn(3, 1, 50)
    padded = view.apply(x)
    assert padded.shape == (3, 1, 56) and torch.equal(padded[..., 3:53], x)
    assert not padded[..., :3].any() and not padded[..., 53:].any()
    assert torch.equal(view.invert(padded), x)
    for other in (
        Grid(channels=1, size=(48,), domain="real"),
        Grid(channels=2, size=(56,), domain="real"),
        Grid(channels=1, size=(56,), domain="signed"),
        Grid(channels=1, size=(56, 1), domain="real"),
    ):
        with pytest.raises(SpecError, match="can't be viewed as"):
            View(native, other)


def test_videos_are_padded_in_each_frame():
    native = Grid(channels=1, size=(2, 3, 5), levels=256)
    view = View(native, Grid(channels=1, size=(2, 4, 8), domain="signed"))
    x = torch.randint(0, 256, (2, 1, 2, 3, 5), dtype=torch.uint8)
    found = view.apply(x)
    assert found.shape == (2, 1, 2, 4, 8) and float(found.amin()) >= -1
    assert bool((found[:, :, :, 3] == -1).all()) and torch.equal(view.invert(found), x)
