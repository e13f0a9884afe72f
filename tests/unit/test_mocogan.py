"""MoCoGAN: its parts by the paper, content apart from motion."""

from __future__ import annotations

import pytest
import torch

from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch
from poiesis.models.gans.losses import resolve
from poiesis.models.gans.mocogan import ClipDiscriminator, MoCoGAN
from poiesis.models.gans.penalties import gradient_penalty, squared_gradient
from poiesis.rng import Draws, Noise
from poiesis.spec import Classes, Grid

SPEC = Grid(channels=3, size=(6, 8, 8), domain="signed")


def small(spec=SPEC, condition=None, **options):
    torch.manual_seed(0)
    options = {"widths": (8,), "latent_dim": 5, "motion_dim": 3, **options}
    return MoCoGAN(MoCoGAN.Config(**options), spec, condition).eval()


def batch_of(model, n=4, condition=None):
    x = torch.rand(n, *model.spec.shape) * 2 - 1
    draws = Draws(("test",), total=n)
    return Batch(x=x, condition=condition, index=torch.arange(n), draws=draws, size=n)


def test_content_stays_while_motion_changes():
    model = small()
    z = model.draw_latent(Noise(0, range(4)))
    assert z.shape == (4, 5 + 3 + 6 * 3) == (4, model.latent_size)
    seen = []
    model.generator.frame.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = model.decode(z)
    assert x.shape == (4, 3, 6, 8, 8)
    assert float(x.min()) >= -1 and float(x.max()) <= 1
    other = z.clone()
    other[:, 5:] = model.draw_latent(Noise(1, range(4)))[:, 5:]
    y = model.decode(other)
    first, second = (latent.unflatten(0, (4, 6)) for latent in seen)
    assert torch.equal(first[..., :5], second[..., :5])
    assert torch.equal(first[..., :5], z[:, None, :5].expand(-1, 6, -1))
    assert not torch.equal(first[..., 5:], second[..., 5:]) and not torch.equal(x, y)
    # The noise of a frame moves that frame and those after it.
    late = z.clone()
    late[:, 5 + 3 + 4 * 3 :] += 1
    moved = (model.decode(late) - x).abs().amax((0, 1, 3, 4))
    assert (moved[:4] == 0).all() and (moved[4:] > 0).all()


def test_a_frame_is_what_the_image_generator_makes_of_content_and_motion():
    model = small()
    z = model.draw_latent(Noise(0, range(2)))
    state, frames = z[:, 5:8], []
    for t in range(6):
        state = model.generator.motion(z[:, 8 + 3 * t : 11 + 3 * t], state)
        frames.append(model.generator.frame(torch.cat((z[:, :5], state), 1), None))
    torch.testing.assert_close(model.decode(z), torch.stack(frames, 2))


def test_networks_of_the_paper():
    spec = Grid(channels=3, size=(16, 64, 64))
    config = MoCoGAN.preset("paper", spec)
    assert config.widths == (512, 256, 128, 64) and (config.latent_dim, config.motion_dim) == (
        50,
        10,
    )
    assert (config.beta1, config.generator_lr, config.batch_size) == (0.5, 2e-4, 32)
    with torch.device("meta"):
        model = MoCoGAN(config, MoCoGAN.view(config, spec))
    kernels = [p.shape[2:] for p in model.discriminator.clip.parameters() if p.dim() == 5]
    assert kernels == [(4, 4, 4)] * 5
    # 16 frames less three in each of five layers: one logit of all of the clip, as in figure 2.
    count = sum(p.numel() for p in model.discriminator.clip.parameters() if p.dim() == 5)
    assert count == 64 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)


@pytest.mark.parametrize("frames", [2, 4, 5, 16, 33])
@pytest.mark.parametrize(("widths", "side"), [((8,), 8), ((8, 4), 8), ((8, 4), 16)])
def test_clips_of_any_length_are_judged(frames, widths, side):
    spec = Grid(channels=1, size=(frames, side, side))
    judge = ClipDiscriminator(widths, spec, classes=3)
    x = torch.rand(2, *spec.shape)
    assert judge(x, torch.tensor([0, 2])).shape == (2,)
    if frames > 2:
        assert not torch.equal(
            judge(x.flip(2), torch.tensor([0, 2])), judge(x, torch.tensor([0, 2]))
        )


def test_losses_of_both_discriminators_add_up():
    model = small()
    batch = batch_of(model)
    values, logs = model.discriminator_loss(batch, 0)
    draws = Draws(("test",), total=4)
    fake = model.generator(draws.randn(model.latent_size), None)
    loss, expected, rows = resolve("non-saturating"), 0, torch.arange(4)
    for x, real in ((batch.x, True), (fake, False)):
        frame = x[rows, :, draws.randint(6)]
        for score in (model.discriminator.frame(frame, None), model.discriminator.clip(x, None)):
            expected = expected + loss.discriminator(*((score, None) if real else (None, score)))
    torch.testing.assert_close(values, expected)
    assert logs["real_score"].shape == (4,)
    assert model.generator_loss(batch_of(model), 0)[0].shape == (4,)


def test_penalties_of_several_logits_add_up():
    x = torch.randn(3, 5, requires_grad=True)
    a, b = torch.randn(5), torch.randn(5)
    both = torch.stack((x @ a, x @ b), 1)
    expected = a.square().sum() + b.square().sum()
    torch.testing.assert_close(squared_gradient(both, x), expected.expand(3))
    penalty = gradient_penalty(
        lambda y: torch.stack((y @ a, y @ b), 1), x, x.detach() + 1, torch.rand(3)
    )
    expected = (a.norm() - 1) ** 2 + (b.norm() - 1) ** 2
    torch.testing.assert_close(penalty, expected.expand(3))


@pytest.mark.parametrize("options", [{}, {"auxiliary_weight": 1.0}])
def test_classes_reach_both_networks(options):
    condition = Classes(count=3)
    model = small(condition=condition, conditional=True, **options)
    z = model.draw_latent(Noise(0, range(2)))
    first, second = (model.decode(z, torch.full((2,), k)) for k in (0, 1))
    assert not torch.equal(first, second)
    values, _ = model.discriminator_loss(batch_of(model, 4, torch.tensor([0, 1, 2, 0])), 0)
    assert values.shape == (4,)
    told = [model.discriminate(first, torch.full((2,), k)) for k in (0, 1)]
    assert torch.equal(*told) == bool(options)
    with pytest.raises(ConfigError, match="give the class of each sample"):
        model.decode(z)


def test_what_it_refuses():
    config = MoCoGAN.Config(widths=(8,))
    for spec, match in (
        (Grid(channels=1, size=(8, 8)), "learns video, grey or RGB, not grid 1x8x8"),
        (Grid(channels=4, size=(4, 8, 8)), "learns video, grey or RGB, not grid 4x4x8x8"),
        (Grid(channels=1, size=(4, 512, 512)), "up to 256 px"),
    ):
        with pytest.raises(SpecError, match=match):
            MoCoGAN.view(config, spec)
    with pytest.raises(ConfigError, match="images of 32 px need 3 or 4"):
        MoCoGAN.view(config, Grid(channels=1, size=(4, 32, 32)))
    with pytest.raises(ConfigError, match="augment = diffaugment changes images"):
        small(augment="diffaugment")
    view = MoCoGAN.view(config, Grid(channels=1, size=(5, 7, 6)))
    assert view == Grid(channels=1, size=(5, 8, 8), domain="signed")
