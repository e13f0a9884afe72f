"""U-Nets of one and three dimensions: against the image network, and what time layers do."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poiesis.errors import ConfigError, SpecError
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.trained import build
from poiesis.nn.folded import fold, unfold
from poiesis.nn.unet import Downsample, UNet
from poiesis.nn.video_unet import TemporalLayer, VideoUNet
from poiesis.nn.wave_unet import WaveUNet
from poiesis.rng import Draws, active
from poiesis.spec import Classes, Grid, Vector

SIZES = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (False, True), "groups": 4}
FRAMES = 5


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network with no weight at zero, as after some training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def video_unet(**options) -> VideoUNet:
    torch.manual_seed(0)
    return VideoUNet(image_channels=2, frames=FRAMES, **{**SIZES, **options})


@pytest.fixture
def x():
    return torch.randn(3, 2, FRAMES, 8, 12, generator=torch.Generator().manual_seed(1))


T = torch.tensor([3.0, 500.0, 999.0])


def test_a_new_video_network_is_the_image_network_on_each_frame(x):
    captions = (7, 4)
    video = video_unet(captions=captions, text_width=8)
    image = UNet(image_channels=2, captions=captions, text_width=8, **SIZES)
    own = dict(video.named_parameters())
    # All that the image network has is there under the same name, and starts no layer over time.
    with torch.no_grad():
        for name, parameter in stirred(image).named_parameters():
            own.pop(name).copy_(parameter)
    assert own and all(".temporal." in name for name in own)
    condition = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    found = video(x, T, condition)
    assert found.shape == x.shape
    for t in range(FRAMES):
        torch.testing.assert_close(found[:, :, t], image(x[:, :, t], T, condition))


def test_frames_see_each_other_once_trained(x):
    net = stirred(video_unet())
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(net(x, T)[0, :, 0].square().sum(), x)
    assert bool((slope[0].abs().amax(dim=(0, 2, 3)) > 0).all())
    assert not bool(slope[1:].any()), "a video saw another one"


@pytest.mark.parametrize("attend", [False, True])
def test_a_layer_over_time_begins_as_the_identity_and_learns(x, attend):
    layer = TemporalLayer(2, FRAMES, 1, attend=attend)
    rows = x.transpose(1, 2).flatten(0, 1)
    assert torch.equal(layer(rows), rows)
    stirred(layer)(rows).square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in layer.parameters())
    # Memory layout is speed, not meaning.
    torch.testing.assert_close(layer(rows.to(memory_format=torch.channels_last)), layer(rows))


def test_the_convolution_over_time_is_that_of_torch(x):
    layer = stirred(TemporalLayer(2, FRAMES, 1, attend=False))
    rows = x.transpose(1, 2).flatten(0, 1)
    inner = F.silu(layer.norm(rows)).unflatten(0, (-1, FRAMES)).transpose(1, 2)
    wanted = F.conv3d(inner, layer.conv.weight[..., None], layer.conv.bias, padding=(1, 0, 0))
    found = (layer(rows) - rows).unflatten(0, (-1, FRAMES)).transpose(1, 2)
    torch.testing.assert_close(found, wanted)


def test_places_attend_over_time_alone_and_know_the_order_of_frames(x):
    layer = stirred(TemporalLayer(4, FRAMES, 2, attend=True))
    nn.init.zeros_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    rows = x.repeat(1, 2, 1, 1, 1).transpose(1, 2).flatten(0, 1)
    moved = layer(rows.flip(3)).flip(3)
    torch.testing.assert_close(moved, layer(rows))  # the same at each place
    backwards = rows.unflatten(0, (-1, FRAMES)).flip(1).flatten(0, 1)
    again = layer(backwards).unflatten(0, (-1, FRAMES)).flip(1).flatten(0, 1)
    assert float((again - layer(rows)).detach().abs().max()) > 1e-3


def test_dropout_is_drawn_by_video(x):
    net = stirred(video_unet(dropout=0.5)).train()
    with active(Draws(("drop",), total=3)):
        whole = net(x, T)
    with active(Draws(("drop",), total=3, start=1, size=1)):
        part = net(x[1:2], T[1:2])
    torch.testing.assert_close(part, whole[1:2])


def test_one_dimension_is_an_image_one_pixel_high():
    torch.manual_seed(0)
    wave = stirred(WaveUNet(signal_channels=2, classes=3, **SIZES))
    x = torch.randn(2, 2, 16)
    found = wave(x, T[:2], torch.tensor([0, 2]))
    assert found.shape == x.shape
    # The layers are torch's one-dimensional ones.
    first = F.conv1d(x, wave.conv_in.weight[:, :, 0], wave.conv_in.bias, padding=1)
    torch.testing.assert_close(wave.conv_in(x[:, :, None])[:, :, 0], first)
    down = wave.down_blocks[0].resample
    halved = F.conv1d(F.pad(first, (0, 1)), down.conv.weight[:, :, 0], down.conv.bias, stride=2)
    torch.testing.assert_close(down(first[:, :, None])[:, :, 0], halved)
    assert wave.up_blocks[0].resample(torch.zeros(1, 16, 1, 8)).shape == (1, 16, 1, 16)


@pytest.mark.parametrize(("shape", "axes"), [((3, 24), 1), ((3, 8, 12), 2), ((3, 5, 8, 12), 2)])
def test_a_fold_puts_neighbours_into_channels(shape, axes):
    x = torch.randn(2, *shape)
    found = fold(x, 4, axes)
    last = [side // 4 for side in shape[-axes:]]
    assert found.shape == (2, 3 * 4**axes, *shape[1:-axes], *last)
    assert torch.equal(unfold(found, 4, axes), x)
    assert torch.equal(found[:, 0], x[(..., *[slice(None, None, 4)] * axes)][:, 0])
    if len(shape) == 3:
        assert torch.equal(found, F.pixel_unshuffle(x, 4))


def test_a_folded_image_is_learned_as_a_smaller_one():
    spec = Grid(channels=1, size=(64, 60))
    config = FlowMatching.preset("fast", spec)
    view = FlowMatching.view(config, spec)
    assert config.fold == 2 and view.size == (64, 64)
    model = build(FlowMatching, config, spec, None)
    assert model.unet.network.conv_in.in_channels == 4
    assert model.unet(torch.randn(1, 1, 64, 64), T[:1]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("spec", "size", "domain"),
    [
        (Grid(channels=1, size=(8001,), domain="real"), (8064,), "real"),
        (Grid(channels=1, size=(50,), domain="real"), (50,), "real"),
        (Grid(channels=1, size=(16, 28, 28)), (16, 28, 28), "signed"),
        (Grid(channels=3, size=(7, 50, 62)), (7, 56, 64), "signed"),
        (Grid(channels=1, size=(3, 9, 8), levels=17), (3, 10, 8), "signed"),
    ],
)
def test_the_preset_pads_as_far_as_halving_needs(spec, size, domain):
    config = DDPM.preset("default", spec)
    view = DDPM.view(config, spec)
    assert view.size == size and view.domain == domain and view.channels == spec.channels
    with torch.device("meta"):
        model = DDPM(config, view, Classes(count=2))
        out = model.unet(torch.zeros(2, *view.shape), torch.zeros(2), torch.zeros(2).long())
    assert out.shape == (2, *view.shape)


def test_a_video_model_trains_and_samples():
    spec = Grid(channels=1, size=(3, 6, 6), levels=17)
    options = {"channels": 8, "multipliers": (1, 2), "attention": (), "groups": 4}
    model = build(DDPM, DDPM.Config(**options), spec, Classes(count=2))
    x = model.sample(2, options=model.Sampling(steps=2))
    assert x.shape == (2, 1, 3, 6, 6) and float(x.abs().max()) <= 1
    found = model.log_prob(x, torch.tensor([0, 1]), samples=3)
    assert found.measure == "discrete" and bool(torch.isfinite(found.nats).all())


def test_what_does_not_fit_is_one_line():
    audio = Grid(channels=1, size=(64,), domain="real")
    with pytest.raises(ConfigError, match=r"attention = 9 is not a resolution .*; it has 16"):
        config = DDPM.Config(channels=8, multipliers=(1, 1), attention=(9,), fold=4)
        build(DDPM, config, audio, None)
    with pytest.raises(SpecError, match="network 'mlp' learns vectors; use unet for a grid 1x64"):
        DDPM.view(DDPM.Config(network="mlp"), audio)
    with pytest.raises(SpecError, match="network 'unet' needs images; use mlp"):
        DDPM.view(DDPM.Config(), Vector(features=3))
    with pytest.raises(SpecError, match="ddpm's preset paper learns images"):
        DDPM.preset("paper", audio)


@pytest.mark.parametrize("padding", ["end", "both"])
@pytest.mark.parametrize("width", [2, 4])
def test_tall_and_narrow_maps_are_halved_alike_in_both_precisions(width: int, padding: str) -> None:
    torch.manual_seed(0)
    down, x = Downsample(8, padding), torch.randn(2, 8, 32, width)
    with torch.no_grad():
        exact = down(x)
        for _ in range(5):
            freed = [torch.full((2**k,), math.nan) for k in range(8, 18)]
            del freed  # What memory held before must not matter.
            with torch.autocast("cpu", torch.bfloat16):
                found = down(x.bfloat16())
            assert (found.float() - exact).abs().max() < 0.05 * exact.abs().max()
