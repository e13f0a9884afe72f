"""DiffAugment and ADA: each change against an outside reference, and what training needs of it."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from poiesis.errors import ConfigError
from poiesis.models.base import Batch, Phase
from poiesis.models.gans import augmentation
from poiesis.models.gans.augmentation import (
    Adaptation,
    ada,
    blit,
    cut,
    diffaugment,
    hue,
    recolour,
    shift,
    warp,
)
from poiesis.models.gans.dcgan import DCGAN
from poiesis.models.gans.gan import GAN
from poiesis.rng import Draws
from poiesis.spec import Grid, Vector

SHAPES = [(4, 1, 8, 8), (4, 3, 16, 16), (3, 4, 9, 14), (2, 3, 64, 64), (1, 1, 128, 128)]


def images(shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def smooth(size, channels=1):
    """Images without detail, on which any good resampling agrees: sums of slow waves."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    waves = [torch.sin(0.11 * (k + 1) * x + 0.13 * y + k) for k in range(channels)]
    return torch.stack(waves)[None].float()


def moves(*rows):
    return torch.tensor(rows, dtype=torch.float32)[None]


def draws(shape, key="a"):
    return Draws((key,), total=shape[0])


class Fixed:
    """Draws of chosen numbers: uniform ones by place, all others at the middle."""

    def __init__(self, b, uniform):
        self.b, self.uniform = b, uniform

    def rand(self, n):
        u = torch.full((self.b, n), 0.5)
        for place, value in self.uniform.items():
            u[:, place] = value
        return u

    def randn(self, *shape):
        return torch.zeros(self.b, *shape)


# -- DiffAugment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [(0, 0), (2, -3), (-1, 5), (8, 8)])
def test_shift_moves_pixels_and_fills_with_zero(by):
    x = images((1, 3, 9, 11))
    expected = ndimage.shift(x[0].numpy(), (0, *by), order=0, mode="constant", cval=0)
    np.testing.assert_array_equal(shift(x, torch.tensor([by]))[0], expected)


def test_cut_sets_a_rectangle_to_zero():
    x = images((2, 3, 8, 8)) + 3
    y = cut(x, torch.tensor([[2, -1], [6, 5]]), (3, 4))
    expected = x.clone()
    expected[0, :, 2:5, :3] = 0
    expected[1, :, 6:, 5:] = 0
    assert torch.equal(y, expected)


def test_diffaugment_brightness_saturation_and_contrast_are_their_formulas():
    x = images((2, 3, 8, 8))
    # Places 3 and 4 at the middle: no shift. The hole's centre beyond the corner: a quarter hole.
    y = diffaugment(x.shape, Fixed(2, {0: 0.9, 1: 0.3, 2: 0.2, 5: 0.0, 6: 0.0}))(x)
    expected = x + 0.4
    grey = expected.mean(1, keepdim=True)
    expected = grey + 0.6 * (expected - grey)
    mean = expected.mean((1, 2, 3), keepdim=True)
    expected = mean + 0.7 * (expected - mean)
    expected[:, :, :2, :2] = 0
    torch.testing.assert_close(y, expected)


def test_diffaugment_draws_every_shift_and_hole():
    b, size = 4000, 16
    at = torch.zeros(b, 1, size, size)
    at[:, :, 8, 8] = 1000.0
    seen = diffaugment(at.shape, draws(at.shape))(at).flatten(1).abs().argmax(1)
    rows, counts = (seen // size).unique(return_counts=True)
    assert {6, 7, 8, 9, 10} <= set(rows.tolist())
    hit = {int(r): int(c) / b for r, c in zip(rows, counts, strict=True)}
    # Five equal shifts; a hole of half the size covers the middle by about a quarter.
    assert all(0.1 < hit[row] < 0.21 for row in (6, 7, 9, 10))
    ones = torch.ones(b, 1, size, size)
    holes = (diffaugment(ones.shape, draws(ones.shape))(ones) == 0).float().mean((0, 1))
    # Of 17 centres along an axis 8 reach the middle.
    assert float(holes[8, 8]) == pytest.approx((8 / 17) ** 2, abs=0.03)


# -- ADA's changes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (([-1, 0, 0], [0, 1, 0]), lambda x: x.flip(3)),
        (([0, -1, 0], [1, 0, 0]), lambda x: torch.rot90(x, 1, (2, 3))),
        (([-1, 0, 0], [0, -1, 0]), lambda x: x.flip(2).flip(3)),
        # Three to the right and one up: where content ends, its mirror image goes on.
        (
            ([1, 0, -3], [0, 1, 1]),
            lambda x: torch.from_numpy(
                np.pad(x.numpy(), ((0, 0), (0, 0), (0, 1), (3, 0)), mode="symmetric")
            )[:, :, 1:, : x.shape[3]],
        ),
    ],
)
@pytest.mark.parametrize("size", [8, 9, 64])
def test_blits_move_pixels_exactly(rows, expected, size):
    x = images((1, 3, size, size))
    assert torch.equal(blit(x, moves(*rows)), expected(x))


@pytest.mark.parametrize("angle", [0.0, 0.3, 2.0, -1.2])
@pytest.mark.parametrize("scale", [1.0, 0.8, 1.3])
@pytest.mark.parametrize("size", [32, 33])
def test_warp_is_an_affine_transformation(angle, scale, size):
    x = smooth(size, 2)
    linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear, by = linear @ np.diag((scale, 1 / scale)), np.array((1.5, -0.75))
    y = warp(x, torch.tensor(np.column_stack((linear, by)), dtype=torch.float32)[None])
    # scipy's axes are (y, x), its origin is the first pixel.
    swapped, middle = linear[::-1, ::-1], np.full(2, (size - 1) / 2)
    offset = middle - swapped @ middle + by[::-1]
    inside = slice(size // 4, -(size // 4))
    for found, channel in zip(y[0], x[0], strict=True):
        expected = ndimage.affine_transform(channel.numpy(), swapped, offset, order=3)
        there = ndimage.affine_transform(np.ones((size, size)), swapped, offset, order=1, cval=0)
        off = np.abs(found.numpy() - expected)[inside, inside] * (there[inside, inside] > 0.999)
        assert off.max() < 0.02


def test_warp_that_moves_nothing_gives_the_image_back():
    x = images((1, 3, 32, 32))
    y = warp(x, moves([1, 0, 0], [0, 1, 0]))
    # The wavelet is orthogonal, so what was magnified comes back; at the border its mirror image.
    torch.testing.assert_close(y[..., 6:-6, 6:-6], x[..., 6:-6, 6:-6], atol=1e-5, rtol=0)


def test_warp_shrinks_without_aliasing():
    """Stripes of two pixels, halved: Pillow averages them, plain lookups would alternate."""
    x = torch.ones(1, 1, 64, 64)
    x[..., 1::2] = -1
    y = warp(x, moves([2, 0, 0], [0, 2, 0]))[0, 0, 26:38, 26:38]
    half = Image.fromarray(x[0, 0].numpy()).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(np.asarray(half)).max() < 1e-6
    assert y.abs().max() < 0.2


def test_hue_turns_colours_as_colorsys_does_by_thirds():
    third = torch.tensor([2 * math.pi / 3])
    for colour in ((0.9, 0.2, 0.4), (0.1, 0.5, 0.3)):
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected = colorsys.hsv_to_rgb((h + 1 / 3) % 1, s, v)
        turned = hue(third, 3)[0] @ torch.tensor(colour)
        torch.testing.assert_close(turned, torch.tensor(expected))
    turn = hue(torch.tensor([0.7]), 3)[0]
    torch.testing.assert_close(turn @ turn.T, torch.eye(3))
    torch.testing.assert_close(turn @ torch.ones(3), torch.ones(3))
    assert torch.linalg.det(turn) == pytest.approx(1)
    assert torch.equal(hue(third, 1), torch.ones(1, 1, 1))


def test_recolour_is_a_matrix_and_an_offset():
    x, g = images((2, 3, 5, 7)), torch.Generator().manual_seed(1)
    matrix, offset = torch.randn(2, 3, 3, generator=g), torch.randn(2, 3, generator=g)
    expected = torch.einsum("bij,bjhw->bihw", matrix, x) + offset[:, :, None, None]
    torch.testing.assert_close(recolour(x, matrix, offset), expected)


def test_luma_flip_of_grey_is_its_negative():
    """Only the gate of the flip open, and the flip drawn (its number at 0.9)."""
    x = images((2, 1, 8, 8))
    gates = dict.fromkeys(range(24), 0.999) | {16: 0.9, 17: 0.0}
    found = ada(x.shape, 0.5, Fixed(2, gates))(x)
    torch.testing.assert_close(found, -x)


# -- ADA as a whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_happens_at_probability_zero(shape):
    x = images(shape)

    class Never:
        def rand(self, *shape):
            raise AssertionError("drew for nothing")

        randn = rand

    assert ada(shape, 0.0, Never())(x) is x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["diffaugment", "ada"])
def test_any_size_in_float32_and_the_same_again(shape, kind):
    x = images(shape)

    def once(key):
        if kind == "diffaugment":
            return diffaugment(shape, draws(shape, key))
        return ada(shape, 1.0, draws(shape, key), cutout=0.5)

    change = once("a")
    y = change(x)
    assert y.shape == x.shape and y.dtype == torch.float32 and y.isfinite().all()
    assert torch.equal(change(x), y) and torch.equal(once("a")(x), y)
    assert not torch.equal(once("b")(x), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(change(x), y)
        assert change(x.bfloat16()).dtype == torch.float32


def test_a_slice_of_the_batch_is_changed_as_within_it():
    """Gradient accumulation and several processes change nothing."""
    x = images((8, 3, 16, 16))
    whole = ada(x.shape, 0.7, Draws(("a",), total=8))(x)
    part = ada((3, 3, 16, 16), 0.7, Draws(("a",), total=8, start=4, size=3))(x[4:7])
    torch.testing.assert_close(part, whole[4:7])


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_each_change_comes_with_its_probability(p):
    """The shares of many images that blits, geometry and colour change."""
    b = 4000
    x = images((1, 3, 8, 8)).expand(b, -1, -1, -1)
    seen = {}

    def spy(name):
        inner = getattr(augmentation, name)

        def noted(x, *rest, **more):
            seen[name] = len(x) / b
            return inner(x, *rest, **more)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("blit", "warp", "recolour"):
            patch.setattr(augmentation, name, spy(name))
        ada(x.shape, p, draws(x.shape))(x)
    # A mirroring is drawn half of the time, a turn three quarters; a shift rounds to 0 in a half.
    blits = 1 - (1 - p / 2) * (1 - 3 * p / 4) * (1 - p * (1 - 1 / 4))
    assert seen["blit"] == pytest.approx(blits, abs=0.03)
    assert seen["warp"] == pytest.approx(1 - (1 - p) ** 4, abs=0.03)
    colours = 1 - (1 - p) ** 4 * (1 - p / 2)
    assert seen["recolour"] == pytest.approx(colours, abs=0.03)


@pytest.mark.parametrize("kind", ["diffaugment", "ada"])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_pass_twice(kind, channels):
    shape = (2, channels, 8, 8)
    x = images(shape).double().requires_grad_()
    if kind == "diffaugment":
        change = diffaugment(shape, draws(shape))
    else:
        change = ada(shape, 1.0, draws(shape), cutout=1.0)
    assert torch.autograd.gradcheck(change, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: change(x).pow(3), (x,), fast_mode=True)


@pytest.mark.parametrize("kind", ["diffaugment", "ada"])
def test_changes_are_affine_and_shares_scale_their_constants(kind):
    shape = (5, 3, 8, 8)
    x, y = images(shape), images(shape, 1)
    if kind == "diffaugment":
        change = diffaugment(shape, draws(shape))
    else:
        change = ada(shape, 0.9, draws(shape), cutout=0.5)
    change = augmentation.noised(change, images(shape, 2))
    share = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0])
    a = share[:, None, None, None]
    linear = change(y, torch.zeros(5))
    torch.testing.assert_close(change(x) + linear, change(x + y), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a * change(x) + linear, change(a * x + y, share), atol=1e-5, rtol=0)


# -- adaptation ------------------------------------------------------------------------------------


def test_probability_moves_every_fourth_batch_towards_the_target():
    state = Adaptation(target=0.6, images=1000)
    sure, unsure = torch.tensor([1.0, 2.0, 0.3, 4.0, 0.1]), torch.tensor([1.0, -1, 1, -1, 1])
    for step in range(3):
        state.note(sure)
        state.after_batch(step)
        assert state.p == 0
    state.note(sure)
    state.after_batch(3)
    # 4 batches of 5 images, at 1 / 1000 an image; r_t = 1 > 0.6.
    assert float(state.p) == pytest.approx(0.02) and state.r_t == 1
    for step in range(4, 8):
        state.note(unsure)
        state.after_batch(step)
    assert float(state.r_t) == pytest.approx(0.2) and float(state.p) == pytest.approx(0)
    state.note(unsure)
    state.after_batch(11)
    assert state.p == 0  # not below
    state.p.fill_(0.9999)
    state.note(sure)
    state.after_batch(15)
    assert state.p == 1


def make(cls, spec, **changes):
    torch.manual_seed(0)
    config = cls.Config(**{"augment": "ada", **changes})
    return cls(config, cls.view(config, spec))


def make_batch(x):
    b = len(x)
    draws = Draws(("test",), total=b)
    return Batch(x=x, condition=None, index=torch.arange(b), draws=draws, size=b)


@pytest.mark.parametrize("loss", ["hinge", "wasserstein"])
def test_a_gan_adapts_by_its_discriminator(loss):
    spec = Grid(channels=1, size=(8, 8))
    model = make(GAN, spec, loss=loss, augment_images=100)
    x = images((10, 1, 8, 8))
    # A discriminator that tells by brightness, perfectly; its line is not at 0.
    model.discriminator.forward = lambda x, label: x.mean((1, 2, 3)) + (5 if loss[0] == "w" else 0)
    model.generator.forward = lambda z, label: torch.full((len(z), 1, 8, 8), -0.9)
    for step in range(8):
        model.adaptation.p.zero_() if step < 4 else None
        _, logs = model.discriminator_loss(make_batch(x.abs() + 0.1), step)
        model.after_step(Phase(name="generator", loss=None, step=("generator",)), step)
        if step == 3:
            assert model.adaptation.r_t == 1 and float(model.adaptation.p) == pytest.approx(0.4)
    assert {"augment", "r_t"} <= set(logs)


@pytest.mark.parametrize("penalty", ["none", "zero-centred", "gradient"])
@pytest.mark.parametrize("augment", ["diffaugment", "ada"])
def test_penalties_go_through_augmentation(penalty, augment):
    spec = Grid(channels=3, size=(8, 8))
    model = make(DCGAN, spec, widths=(8,), penalty=penalty, augment=augment)
    if model.adaptation is not None:
        model.adaptation.p.fill_(0.8)
    for phase in model.stages()[0].phases:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = phase.loss(make_batch(images((4, 3, 8, 8))), 0)
        assert loss.shape == (4,) and loss.isfinite().all()
        loss.mean().backward()
        network = model.get_submodule(phase.name)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_only_images_are_augmented():
    with pytest.raises(ConfigError, match="augment = ada changes images, not"):
        make(GAN, Vector(features=2))


def test_a_loss_without_a_line_between_single_samples_needs_both_kinds_at_once():
    model = make(DCGAN, Grid(channels=1, size=(8, 8)), widths=(8,), loss="hinge")
    assert model.stages()
    changes = {"widths": (8,), "loss": "wasserstein", "separate_steps": True}
    with pytest.raises(ConfigError, match="use augment = diffaugment"):
        make(DCGAN, Grid(channels=1, size=(8, 8)), **changes).stages()
