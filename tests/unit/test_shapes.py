"""The captioned set `shapes`: what is drawn, what is held out, and the checker of pictures."""

import dataclasses
import math

import pytest
import torch

from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.data.sources.shapes import (
    COLOURS,
    KINDS,
    RADII,
    RELATIONS,
    UNSEEN_PAIRS,
    UNSEEN_SHAPES,
    Caption,
    Shape,
    coverage,
    draw,
    invent,
    parse,
)
from poiesis.errors import ConfigError, DataError
from poiesis.metrics.shapes import caption_agreement, read_shapes
from poiesis.rng import generator

ROWS = 600


@pytest.fixture(scope="module")
def shown():
    """Captions, with and without held-out combinations, and their pictures."""
    source = generator("test shapes")
    captions = invent(ROWS // 2, source, held_out=False) + invent(ROWS // 2, source, held_out=True)
    return captions, draw(captions, source)


def test_held_out_combinations_are_in_every_test_caption_and_in_no_other():
    data = open_data("shapes")
    for part, split in data.splits.items():
        for text in map(data.condition.text, split.y.tolist()):
            colours = [colour for colour in COLOURS if colour in text.split()]
            held_out = any(name in text for name in UNSEEN_SHAPES) or any(
                set(pair) == set(colours) for pair in UNSEEN_PAIRS
            )
            assert held_out == (part == "test"), text
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 20_000,
        "validation": 1_000,
        "test": 2_000,
    }
    # Each word that a test caption needs is learned from others.
    seen = data.splits["train"].y.unique().tolist()
    assert seen == list(range(data.condition.vocabulary))
    assert set(data.condition.examples) <= {
        data.condition.text(tokens) for tokens in data.splits["test"].y.tolist()
    }


def test_the_set_is_the_same_each_time():
    few = DataConfig(limit=50)
    a, b = (open_data("shapes", few).splits["train"] for _ in range(2))
    assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_captions_of_the_set_are_read_back_and_others_refused(shown):
    for caption in shown[0]:
        assert parse(str(caption)) == caption
    assert parse(" A  red CIRCLE ").first == Shape(size=None, colour="red", kind="circle")
    for text in ("red circle", "a pink circle", "a red circle near a blue square", ""):
        with pytest.raises(DataError, match="is no caption of shapes"):
            parse(text)


@pytest.mark.parametrize(
    ("kind", "area"),
    # Of radius 1: π; (2 · 0.9)²; half of 2 · 2; two bars of 2 x 0.72 less their crossing.
    [("circle", math.pi), ("square", 3.24), ("triangle", 2.0), ("cross", 2 * 1.44 - 0.72**2)],
)
def test_shapes_have_their_areas(kind, area):
    at = torch.tensor([16.0, 15.3])
    for radius in (4.0, 6.3):
        drawn = coverage(kind, at, at, torch.full((2,), radius)).sum((1, 2))
        assert drawn == pytest.approx([area * radius**2] * 2, rel=0.03)


def test_the_checker_agrees_with_pictures_as_they_are_captioned(shown):
    captions, pictures = shown
    assert caption_agreement(pictures, [str(caption) for caption in captions]).value >= 0.99


def other(word, words):
    return next(w for w in words if w != word)


def wrong(caption: Caption, what: str) -> Caption | None:
    """Return a caption that differs in one thing, or None if this one does not say it."""
    first, opposite = caption.first, {"left of": "right of", "above": "below"}
    opposite |= {b: a for a, b in opposite.items()}
    if what == "relation":
        if caption.relation is None:
            return None
        return dataclasses.replace(caption, relation=opposite[caption.relation])
    if what == "number":
        return Caption(first=first) if caption.second else None
    if what == "size":
        if first.size is None:
            return None
        changed = dataclasses.replace(first, size=other(first.size, RADII))
    elif what == "colour":
        changed = dataclasses.replace(first, colour=other(first.colour, COLOURS))
    else:
        changed = dataclasses.replace(first, kind=other(first.kind, KINDS))
    return dataclasses.replace(caption, first=changed)


@pytest.mark.parametrize("what", ["relation", "number", "size", "colour", "kind"])
def test_the_checker_disagrees_with_one_wrong_word(shown, what):
    pairs = [(wrong(caption, what), picture) for caption, picture in zip(*shown, strict=True)]
    pairs = [(caption, picture) for caption, picture in pairs if caption is not None]
    assert len(pairs) > 200
    texts, pictures = zip(*pairs, strict=True)
    agrees = caption_agreement(torch.stack(pictures), [str(text) for text in texts])
    assert agrees.value <= 0.01


def test_the_checker_sees_places_as_they_were_drawn():
    source = generator("places")
    for relation, (right, down) in RELATIONS.items():
        caption = parse(f"a large red circle {relation} a small blue square")
        for picture in draw([caption] * 20, source):
            found, rest = read_shapes(picture)
            assert rest == 0
            by_colour = {shape.colour: shape for shape in found}
            dx = by_colour["blue"].x - by_colour["red"].x
            dy = by_colour["blue"].y - by_colour["red"].y
            assert dx * right + dy * down >= 2 * abs(dx * down + dy * right) - 1


def test_the_checker_is_not_fooled_by_noise_or_blanks(shown):
    captions, pictures = shown
    texts = [str(caption) for caption in captions]
    noise = torch.randint(256, pictures.shape, dtype=torch.uint8, generator=generator("noise"))
    assert caption_agreement(noise, texts).value == 0
    assert caption_agreement(torch.full_like(pictures, 240), texts).value == 0
    # Half-way between two pictures, each shape is there, but not as a shape of its colour.
    mixed = ((pictures.int() + pictures.flip(0).int()) // 2).to(torch.uint8)
    assert caption_agreement(mixed, texts).value < 0.05
    # But a little noise, as a model leaves it, is not held against a picture.
    rough = pictures + 8 * torch.randn(pictures.shape, generator=generator("rough"))
    rough = rough.round().clamp(0, 255).to(torch.uint8)
    assert caption_agreement(rough, texts).value >= 0.97


def test_the_checker_refuses_other_pictures():
    with pytest.raises(DataError, match="uint8"):
        caption_agreement(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), ["a red circle"])
    with pytest.raises(DataError, match="one for each"):
        caption_agreement(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ["a red circle"])


def test_options_that_need_classes_are_refused():
    with pytest.raises(ConfigError, match="has no"):
        open_data("shapes", DataConfig(classes=("red",)))
