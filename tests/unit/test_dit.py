"""The diffusion transformer: against diffusers on equal weights, the paper's sizes, properties."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.diffusion.latent_diffusion import LatentDiffusion
from poiesis.nn.dit import DiT, DiTOptions, places
from poiesis.nn.folded import Folded, fold
from poiesis.rng import Draws, active
from poiesis.spec import Captions, Classes, Condition, Grid, Vector

SMALL = DiTOptions(patch=2, width=32, depth=2, heads=4)
DIGIT = Grid(channels=1, size=(8, 8), levels=17)
T = torch.tensor([0.0, 1.0, 500.0, 999.0])


def stirred(net: nn.Module, seed: int = 0) -> Any:
    """Return the network with no weight at zero, as after some training."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net


def network(size=(4, 6), **options) -> DiT:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_channels": 3, "out_channels": 5, "options": SMALL}
    return DiT(size=size, **{**sizes, **options})


def build(cls: Any = FlowMatching, spec=DIGIT, condition: Condition | None = None, **options):
    config = cls.Config(**{"network": "dit", "dit": SMALL, **options})
    torch.manual_seed(0)
    return cls(config, cls.view(config, spec), condition)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_outputs_are_those_of_diffusers_on_equal_weights():
    pytest.importorskip("diffusers", reason="pip install 'poiesis[dev]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    peer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    stirred(peer)
    own = network((4, 4), in_channels=12, out_channels=24, classes=10)
    its = dict(peer.named_parameters())

    def take(ours: str, theirs: str, rows: torch.Tensor | None = None) -> None:
        for part in ("weight", "bias"):
            value = its[f"{theirs}.{part}"]
            value = value if rows is None else value[rows]
            names[f"{ours}.{part}"] = value.flatten(1) if value.ndim > 1 else value

    names: dict[str, torch.Tensor] = {}
    embedders = "transformer_blocks.0.norm1.emb."
    take("inlet", "pos_embed.proj")
    take("time_embedding.0", f"{embedders}timestep_embedder.linear_1")
    take("time_embedding.2", f"{embedders}timestep_embedder.linear_2")
    names["class_embedding.weight"] = its[f"{embedders}class_embedder.embedding_table.weight"]
    for i in range(2):
        block = f"transformer_blocks.{i}"
        for part in ("weight", "bias"):
            heads = [its[f"{block}.attn1.to_{which}.{part}"] for which in "qkv"]
            names[f"blocks.{i}.qkv.{part}"] = torch.cat(heads)
        take(f"blocks.{i}.project", f"{block}.attn1.to_out.0")
        take(f"blocks.{i}.up", f"{block}.ff.net.0.proj")
        take(f"blocks.{i}.down", f"{block}.ff.net.2")
        take(f"blocks.{i}.modulation", f"{block}.norm1.linear")
    take("modulation", "proj_out_1")
    # There a patch's values are (height, width, channel), here (channel, height, width).
    take("outlet", "proj_out_2", torch.arange(24).view(2, 2, 6).permute(2, 0, 1).flatten())
    own.load_state_dict(names)
    for module in peer.transformer_blocks:
        # One embedding serves all blocks in the paper, and its frequencies end a step before 1e-4.
        module.norm1.emb = peer.transformer_blocks[0].norm1.emb
        module.norm1.emb.time_proj.downscale_freq_shift = 0
    x = torch.randn(4, 3, 8, 8)
    y = torch.tensor([0, 9, 3, 10])
    with torch.no_grad():
        wanted = peer(x, timestep=T, class_labels=y).sample
        found = Folded(own, 2, 2)(x, T, y)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "millions"), [("s", 33), ("b", 130), ("l", 458), ("xl", 675)])
def test_sizes_are_those_of_the_paper(size, millions):
    # Table 4 and appendix A: latents of 32 x 32 x 4, 1000 classes, learned variances, patches of 2.
    latents = Grid(channels=4, size=(32, 32), domain="real")
    config = DDPM.preset(f"dit-{size}", latents)
    with torch.device("meta"):
        model = DDPM(config, DDPM.view(config, latents), Classes(count=1000))
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6) == millions
    assert model.network_name == "dit" and model.networks().keys() == {"dit"}


def test_a_new_network_says_nothing_and_every_block_is_the_identity():
    net = network(classes=3)
    x = torch.randn(4, 3, 4, 6)
    assert torch.equal(net(x, T, torch.tensor([0, 1, 2, 3])), torch.zeros(4, 5, 4, 6))
    tokens = torch.randn(4, 24, 32)
    assert all(torch.equal(block(tokens, torch.randn(4, 32)), tokens) for block in net.blocks)


def test_positions_are_waves_of_each_axis_the_last_first():
    table = places((3, 5), 16).view(3, 5, 16)
    # Columns change the first half of the width alone, rows the second.
    assert torch.equal(table[0, :, :8], table[2, :, :8])
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])
    frequencies = 10_000 ** -(torch.arange(4) / 4)
    waves = torch.cat([(4 * frequencies).sin(), (4 * frequencies).cos()])
    torch.testing.assert_close(table[1, 4, :8], waves)
    # Every place is another, in any number of dimensions; what can't be shared out is filled.
    for size, width in (((64,), 10), ((7, 9), 10), ((3, 4, 5), 32)):
        rows = places(size, width)
        assert rows.shape == (torch.Size(size).numel(), width)
        assert len(rows.unique(dim=0)) == len(rows)


def test_without_its_positions_it_would_not_know_where_things_are():
    net = stirred(network())
    x = torch.randn(4, 3, 4, 6)
    moved = net(x.flip(3), T).flip(3)
    assert float((moved - net(x, T)).detach().abs().max()) > 1e-2
    net.positions.zero_()
    torch.testing.assert_close(net(x.flip(3), T).flip(3), net(x, T))


def test_levels_and_classes_change_what_it_says_and_none_is_the_last_class():
    net = stirred(network(classes=3)).eval()
    x = torch.randn(1, 3, 4, 6).expand(4, -1, -1, -1)
    out = net(x, torch.full((4,), 7.0), torch.arange(4)).detach()
    assert all(float((out[i] - out[j]).abs().max()) > 1e-3 for i in range(4) for j in range(i))
    torch.testing.assert_close(net(x[:1], torch.tensor([7.0])), out[3:])
    assert float((net(x, T)[0] - net(x, T)[1]).detach().abs().max()) > 1e-3
    # Classes are rows of a table: exchanged with their rows they say the same.
    with torch.no_grad():
        net.class_embedding.weight.copy_(net.class_embedding.weight[[1, 2, 0, 3]])
    torch.testing.assert_close(net(x, torch.full((4,), 7.0), torch.tensor([2, 0, 1, 3])), out)


def test_captions_are_read():
    net = stirred(network(captions=(7, 4), text_width=8)).eval()
    x = torch.randn(1, 3, 4, 6).expand(3, -1, -1, -1)
    captions = torch.tensor([[1, 2, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0]])
    out = net(x, T[:3], captions).detach()
    assert float((out[0] - out[1]).abs().max()) > 1e-3
    torch.testing.assert_close(net(x[:1], T[2:3]), out[2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputing_gives_the_same_gradients(dropout):
    found = []
    for recompute in (False, True):
        net = stirred(network(dropout=dropout, recompute=recompute)).train()
        g = torch.Generator().manual_seed(3)
        with active(Draws((3,), total=4)):
            net(torch.randn(4, 3, 4, 6, generator=g), T).square().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_a_patch_is_a_place():
    # An image that is new in one patch changes, through untrained attention, nothing elsewhere.
    net = stirred(network((4, 4), in_channels=4, out_channels=4))
    for block in net.blocks:
        nn.init.zeros_(block.project.weight)
    whole = Folded(net, 2, 2)
    x = torch.zeros(1, 1, 8, 8)
    other = x.clone()
    other[0, 0, 5, 2] = 1
    changed = (whole(x, T[:1]) != whole(other, T[:1]))[0, 0]
    assert changed[4:6, 2:4].all() and int(changed.sum()) == 4
    assert fold(other, 2, 2)[0, :, 2, 1].tolist() == [0, 0, 1, 0]


# -- in the models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "view"),
    [
        (Grid(channels=3, size=(8, 9)), (3, 8, 10)),
        (Grid(channels=1, size=(15,), domain="real"), (1, 16)),
        (Grid(channels=1, size=(3, 7, 8)), (1, 3, 8, 8)),
    ],
)
def test_it_learns_grids_of_one_two_and_three_dimensions(spec, view):
    model = build(spec=spec, condition=Classes(count=2))
    assert model.spec.shape == view
    sample = model.sample(2, options=model.Sampling(steps=2, sampler="euler"))
    assert sample.shape == (2, *view)
    model = stirred(model)
    x = torch.rand(2, *view) * 2 - 1
    rows = torch.arange(2)
    batch = Batch(x=x, condition=rows, index=rows, draws=Draws((0,), total=2), size=2)
    model.loss(batch, 0)[0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_pictures_and_learned_variances_are_more_channels():
    model = build(DDPM, task="upscale-2", variance="learned")
    inner = model.dit.network
    assert inner.inlet.in_features == 4 * (1 + 2) and inner.outlet.out_features == 4 * 2
    picture = model.condition_on(torch.zeros(2, 1, 8, 8), None, Draws((0,), total=2))
    assert model.output(torch.zeros(2, 1, 8, 8), T[:2].long(), picture).shape == (2, 2, 8, 8)


def test_latents_are_cut_into_patches():
    sizes = FlowMatching.Config(network="dit", dit=SMALL)
    config = LatentDiffusion.Config(widths=(8,), blocks=1, flow=sizes)
    view = LatentDiffusion.view(config, Grid(channels=1, size=(10, 13)))
    assert view.shape == (1, 12, 16)
    model = LatentDiffusion(config, view)
    assert [optim.networks for optim in model.optimizers().values()][-1] == ("flow.dit",)
    assert model.flow.dit.network.size == (3, 4)


def test_a_straightened_flow_keeps_the_transformer_of_its_teacher():
    teacher = stirred(build())
    config = FlowMatching.Config(teacher="a run", channels=8, multipliers=(1,))
    model = FlowMatching(config, teacher.spec, None, parts={"teacher": teacher})
    assert model.optimizers()["adam"].networks == ("dit",) and not hasattr(model, "unet")
    for name, value in teacher.dit.state_dict().items():
        assert torch.equal(model.dit.state_dict()[name], value)


def test_a_preset_cuts_small_images_into_about_64_patches():
    for size, patch in (((8, 8), 1), ((28, 28), 4), ((32, 32), 4), ((64, 64), 8)):
        for name in ("default", "fast"):
            config = FlowMatching.preset(name, Grid(channels=1, size=size))
            assert config.dit.patch == patch


def test_what_does_not_fit_is_said():
    with pytest.raises(ConfigError, match=r"dit.heads = 3 does not divide dit.width = 32"):
        DiTOptions(width=32, heads=3)
    with pytest.raises(ConfigError, match=r"dit.patch = 0 is outside"):
        DiTOptions(patch=0)
    with pytest.raises(SpecError, match="network 'dit' needs images; use mlp for"):
        build(spec=Vector(features=2))
    config = FlowMatching.Config(network="dit", dit=DiTOptions(patch=4, width=8, heads=1))
    latents = Grid(channels=2, size=(8, 6), domain="real")
    with pytest.raises(
        ConfigError, match=r"dit.patch = 4 does not divide a side of 6; take .* 1, 2"
    ):
        FlowMatching(config, latents, Captions(words=("a", "b"), length=2))
