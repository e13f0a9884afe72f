"""Pictures as a condition: what they say is kept, what they do not say is left open."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from poiesis import config as configs
from poiesis.data import open_data
from poiesis.data.augment import AUGMENTATIONS
from poiesis.data.config import DataConfig
from poiesis.data.loader import Loader
from poiesis.errors import ConfigError, DataError, SpecError
from poiesis.models.base import Batch
from poiesis.models.diffusion.consistency import Consistency
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.gans.cgan import CGAN
from poiesis.models.image_condition import Colourise, Holes, Pairs, Upscale
from poiesis.models.pictures import show
from poiesis.models.trained import build
from poiesis.rng import Draws, Noise
from poiesis.spec import Classes, Grid, Picture, Vector, from_json, to_json

RGB = Grid(channels=3, size=(16, 16), domain="signed")


def images(n: int = 8, spec: Grid = RGB) -> torch.Tensor:
    """Smooth random images whose levels are whole, as those of files."""
    x = torch.randn(n, spec.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(x, spec.size, mode="bicubic").clamp(-1, 1)
    return ((x + 1) * 127.5).round() / 127.5 - 1


def levels(x: torch.Tensor) -> np.ndarray:
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def noise(n: int = 8) -> Noise:
    return Noise(1, range(n))


# -- what pictures are made of images --------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4])
def test_small_pictures_are_those_of_pillows_box_filter(factor):
    x = images()
    small = levels(Upscale(RGB, factor).given(x, None, noise(), False))
    for own, whole in zip(small, levels(x), strict=True):
        wanted = Image.fromarray(whole).resize((16 // factor,) * 2, Image.Resampling.BOX)
        assert np.abs(own.astype(int) - np.asarray(wanted)).max() <= 1


def test_enlarged_pictures_are_pillows_bicubic_ones():
    task = Upscale(RGB, 2)
    small = task.given(images(), None, noise(), False)
    large = levels(task.plain(task.lift(small)))
    for own, part in zip(large, levels(small), strict=True):
        for channel in range(3):  # as floats, which Pillow does not clip between its two passes
            one = Image.fromarray(part[..., channel].astype(np.float32))
            wanted = np.asarray(one.resize((16, 16), Image.Resampling.BICUBIC)).clip(0, 255)
            assert np.abs(own[..., channel] - wanted).max() <= 1


def test_grey_pictures_are_pillows():
    grey = levels(Colourise(RGB).given(images(), None, noise(), False))
    for own, whole in zip(grey, levels(images()), strict=True):
        wanted = np.asarray(Image.fromarray(whole).convert("L"), int)
        assert np.abs(own[..., 0].astype(int) - wanted).max() <= 1


def test_holes_are_rectangles_and_strokes_each_of_its_own_draw():
    task, n = Holes(RGB), 300
    known = task.given(torch.ones(n, 3, 16, 16), None, noise(n), False)[:, -1]
    hole = 1 - known
    share = hole.mean((1, 2))
    assert float(share.min()) > 0 and 0.15 < float(share.mean()) < 0.5
    rows, columns = hole.amax(2).sum(1), hole.amax(1).sum(1)
    rectangles = float((hole.sum((1, 2)) == rows * columns).float().mean())
    assert 0.4 < rectangles < 0.62  # half of them, and the odd straight stroke
    again = task.given(torch.ones(5, 3, 16, 16), None, Noise(1, range(3, 8)), False)[:, -1]
    assert torch.equal(again, known[3:8])


def test_training_adds_noise_to_small_pictures_alone():
    task, x = Upscale(RGB, 2), images()
    clean = task.given(x, None, noise(), False)
    off = (task.given(x, None, noise(), True) - clean).flatten(1).std(1)
    assert float(off.max()) < 0.13 and float(off.max() / off.min()) > 1.5
    assert torch.equal(Colourise(RGB).given(x, None, noise(), True), task_grey(x))


def task_grey(x: torch.Tensor) -> torch.Tensor:
    return Colourise(RGB).given(x, None, noise(), False)


# -- what they say is kept ------------------------------------------------------------


@pytest.mark.parametrize("task", [Upscale(RGB, 2), Upscale(RGB, 4), Colourise(RGB), Holes(RGB)])
def test_what_is_known_is_kept_and_nothing_moves_away_from_the_truth(task):
    truth = images()
    condition = task.lift(task.given(truth, None, noise(), False))
    guess = (
        truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    ).clamp(-1, 1)
    kept = task.agree(guess, condition)
    # An orthogonal projection: idempotent, and by Pythagoras never farther from what obeys already.
    torch.testing.assert_close(task.agree(kept, condition), kept, atol=1e-5, rtol=0)
    before, after = ((x - truth).flatten(1).norm(dim=1) for x in (guess, kept))
    assert bool((after < before).all())
    said = task.lift(task.given(kept, None, noise(), False))
    # Up to half a level of rounding.
    torch.testing.assert_close(said, condition, atol=1.01 / 127.5, rtol=0)
    # No picture: nothing to keep.
    nothing = torch.zeros_like(condition)
    torch.testing.assert_close(task.agree(guess, nothing), guess)


# -- the model ------------------------------------------------------------


def model(spec: Grid | None = None, condition=None, **options) -> FlowMatching:
    torch.manual_seed(0)
    spec = Grid(channels=3, size=(16, 16)) if spec is None else spec
    sizes = {"channels": 8, "multipliers": (1, 1), "attention": (8,), **options}
    config = FlowMatching.Config(**sizes)
    made = build(FlowMatching, config, spec, condition).eval()
    with torch.no_grad():
        # As if trained: its last layer starts at zero, where it hears nothing.
        made.unet.conv_out.weight.normal_(std=0.05)
    assert isinstance(made, FlowMatching)
    return made


@torch.no_grad()
def test_guidance_mixes_with_and_without_the_picture():
    net = model(task="upscale-2")
    x_t, t = torch.randn(4, 3, 16, 16), torch.full((4,), 0.5)
    condition = net.condition_on(images(4), torch.zeros(4), noise(4))
    with_, without = net.denoiser(x_t, t, condition), net.denoiser(x_t, t)
    assert float((with_ - without).abs().mean()) > 1e-3
    torch.testing.assert_close(net.denoiser(x_t, t, torch.zeros_like(condition)), without)
    guided = net.guided(x_t, t, condition, net.Sampling(guidance=3.0))
    torch.testing.assert_close(guided, without + 3 * (with_ - without), atol=1e-4, rtol=1e-4)


def test_pictures_are_dropped_by_sample():
    net = model(task="inpaint", label_dropout=0.5)
    draws = Draws(("drop",), total=64)
    x = images(64)
    condition = net.condition_on(x, None, draws)
    batch = Batch(x=x, condition=condition, index=torch.arange(64), draws=draws, size=64)
    dropped = net._dropped(batch)
    gone = dropped.flatten(1).abs().amax(1) == 0
    assert 16 < int(gone.sum()) < 48
    assert torch.equal(dropped[~gone], condition[~gone])


def test_classes_give_way_to_a_task_and_a_plain_model_is_what_it_was():
    net = model(condition=Classes(count=5), task="colourise")
    assert net.condition == Picture(channels=1, size=(16, 16))
    assert net.unet.class_embedding is None
    assert net.source == Grid(channels=1, size=(16, 16), domain="signed")
    plain = model(condition=Classes(count=5))
    assert plain.unet.conv_in.in_channels == 3 and plain.source is None
    assert not any("example" in name for name in plain.state_dict())
    assert net.unet.conv_in.in_channels == 3 + 1 + 1


@torch.no_grad()
def test_kept_examples_are_what_is_sampled_and_shown():
    net = model(task="upscale-2")
    x = images(5)
    net.keep_examples(lambda n: (x[:n], None))
    drawn = net.sample(7, seed=0, options=net.Sampling(steps=2), precision="fp32")
    wanted = torch.nn.functional.avg_pool2d(x[torch.arange(7) % 5], 2)
    off = (torch.nn.functional.avg_pool2d(drawn, 2) - wanted).abs()
    # Half a level of rounding; where wild pixels saturate, more.
    assert float(off.median()) < 0.6 / 127.5 and float(off.mean()) < 0.03
    from poiesis.data.codecs import ImageCodec

    codec = ImageCodec(channels=3, size=(16, 16))
    raws = [Image.new("RGB", (16, 16), (10 * i, 0, 0)) for i in range(7)]
    sheet = np.asarray(show(net, codec, raws))
    side, factor, gap = 16, 3, 6
    at = gap + side * factor // 2
    cell = side * factor + gap
    assert sheet.shape == (3 * cell + gap, 7 * cell + gap, 3)
    assert [tuple(sheet[at + cell, at + i * cell]) for i in range(7)] == [
        (10 * i, 0, 0) for i in range(7)
    ]
    real = levels(x)
    assert tuple(sheet[at + 2 * cell, at + 6 * cell]) == tuple(real[1, 8, 8])


@torch.no_grad()
def test_a_model_that_learned_holes_fills_them_in_as_it_samples():
    net = model(task="inpaint")
    x, mask = images(3), torch.zeros(1, 16, 16)
    mask[:, 4:9, 5:] = 1
    filled = net.inpaint(x, mask, noise(3), options=net.Sampling(steps=2))
    assert torch.equal(filled[..., mask[0] == 0], x[..., mask[0] == 0])
    assert float((filled - x)[..., mask[0] > 0].abs().mean()) > 0.05
    known = net.task.known(x, 1 - mask)
    drawn = net.draw(noise(3), known, net.Sampling(steps=2))
    torch.testing.assert_close(filled, drawn)


@pytest.mark.parametrize(
    ("task", "spec", "words"),
    [
        ("colourise", Grid(channels=1, size=(16, 16)), "needs images of 3 channels, not 1"),
        ("upscale-4", Grid(channels=1, size=(28, 28)), "in steps of 4 px, not 28 in 32"),
        ("upscale-2", Grid(channels=1, size=(15, 16)), "in steps of 2 px, not 15 in 16"),
        ("inpaint", Vector(features=2), "is for images"),
    ],
)
def test_data_that_do_not_suit_a_task_are_refused(task, spec, words):
    network = {"network": "mlp"} if isinstance(spec, Vector) else {"multipliers": (1, 1, 1, 1)}
    with pytest.raises(SpecError, match=words):
        FlowMatching.view(FlowMatching.Config(task=task, attention=(), **network), spec)


def test_padding_keeps_squares_whole():
    net = model(
        Grid(channels=1, size=(12, 12)), task="upscale-2", multipliers=(1, 1, 1, 1), attention=(2,)
    )
    assert net.spec.size == (16, 16) and net.source.size == (8, 8)


# -- pairs ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Pairs side by side: left a square of red at the left border, right one of blue."""
    for i in range(20):
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, 0, 0] = 10 + i
        pixels[:, 8, 2] = 100 + i
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def pairs(folder, **options):
    return open_data(str(folder), configs.from_dict(DataConfig, options))


@pytest.mark.parametrize("memory", [4.0, 0.0])
@pytest.mark.parametrize("way", ["left-to-right", "right-to-left"])
def test_pairs_are_cut_in_two(folder, way, memory):
    data = pairs(folder, pairs=way, memory=memory)
    assert data.spec == Grid(channels=3, size=(8, 8))
    assert data.condition == Picture(channels=3, size=(8, 8))
    assert from_json(to_json(data.condition)) == data.condition
    assert way.replace("-", " ") in data.variant
    x, y = data.splits["train"].fetch(torch.arange(len(data.splits["train"])))
    left, right = (x, y) if way == "right-to-left" else (y, x)
    assert bool((left[:, 0, :, 0] >= 10).all()) and int(left[:, 2].max()) == 0
    assert torch.equal(right[:, 2, :, 0].int() - 90, left[:, 0, :, 0].int())


def test_pairs_change_together(folder, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "flip", lambda x, draws: x.flip(3))
    data = pairs(folder, pairs="left-to-right")
    view = dataclasses.replace(data.spec, domain="signed")
    for names, place in (((), 0), (("flip",), 7)):
        loader = Loader(data.splits["train"], data.spec, view, batch_size=4, augment=names)
        x, y, _ = loader.batch(0)
        assert y is not None and y.dtype == torch.float32
        assert bool((x[:, 2, :, place] > -0.3).all()) and bool((y[:, 0, :, place] > -1).all())
        assert float(x[:, :, :, 7 - place].max()) == float(y[:, :, :, 7 - place].max()) == -1


def test_pairs_are_refused_where_they_make_no_sense(folder):
    with pytest.raises(ConfigError, match=r"data.binarize is not for pairs"):
        pairs(folder, pairs="left-to-right", binarize="once")
    with pytest.raises(ConfigError, match="two pictures; digits has none"):
        open_data("digits", DataConfig(pairs="left-to-right"))
    data = pairs(folder, pairs="left-to-right")
    config = CGAN.preset("default", data.spec)
    with pytest.raises(ConfigError, match=r"does not learn from pictures.*leave --data.pairs out"):
        build(CGAN, dataclasses.replace(config, conditional=True), data.spec, data.condition)
    Image.new("RGB", (15, 8)).save(folder / "odd.png")
    with pytest.raises(DataError, match=r"odd.png: is 15 px wide"):
        pairs(folder, pairs="left-to-right")


def test_pairs_are_resized_each(folder):
    data = pairs(folder, pairs="left-to-right", resize=4)
    assert data.spec == Grid(channels=3, size=(4, 4))
    assert isinstance(model(data.spec, data.condition, attention=(4,)).task, Pairs)


# -- in one or two calls -----------------------------------------------------------------------


@pytest.mark.parametrize("taught", [True, False])
def test_consistency_models_take_pictures_as_their_teachers_do(taught):
    teacher = model(task="upscale-2")
    config = Consistency.Config(
        task="none" if taught else "upscale-2", channels=8, multipliers=(1, 1), attention=(8,)
    )
    parts = {"teacher": teacher} if taught else None
    net = Consistency(config, teacher.spec, parts=parts)
    assert net.source == teacher.source and net.condition == teacher.condition
    x, draws = images(4), Draws(("loss",), total=4)
    batch = Batch(
        x=x,
        condition=net.condition_on(x, None, draws, training=True),
        index=torch.arange(4),
        draws=draws,
        size=4,
    )
    assert bool(torch.isfinite(net.loss(batch, 0)[0]).all())
    with torch.no_grad():
        large = net.translate(net.given(x), noise(4), net.Sampling(steps=2))
    off = torch.nn.functional.avg_pool2d(large, 2) - net.given(x)
    assert float(off.abs().median()) < 0.6 / 127.5
