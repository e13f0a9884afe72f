"""Captions as a condition: words, tables of them, the encoder, models that learn them."""

import dataclasses

import pytest
import torch
from PIL import Image

from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError, DataError, SpecError
from poiesis.models.autoencoders.vae import VAE
from poiesis.models.base import Batch
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.flow_matching import FlowMatching, matched
from poiesis.models.trained import build
from poiesis.nn.text_encoder import TextEncoder
from poiesis.nn.unet import UNet
from poiesis.rng import Draws
from poiesis.spec import Captions, Grid, from_json, to_json

WORDS = Captions(words=("a", "blue", "circle", "red"), length=5, examples=("a red circle",))
IMAGE = Grid(channels=3, size=(8, 8))
TINY = {"channels": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4, "text_width": 16}


# -- the words ------------------------------------------------------------------------------------


def test_captions_become_tokens_and_words_again():
    assert WORDS.index("A red, RED circle!") == (1, 4, 4, 3, 0)
    assert WORDS.text(WORDS.index("a blue circle")) == "a blue circle"
    assert WORDS.index("") == (0,) * 5
    assert from_json(to_json(WORDS)) == WORDS
    assert WORDS.in_turn(3, 2) == [WORDS.index("a red circle")] * 2


def test_unknown_words_and_long_captions_are_refused():
    with pytest.raises(SpecError, match=r"'circel' \(did you mean 'circle'\?\)"):
        WORDS.index("a red circel")
    with pytest.raises(SpecError, match="'xyz'; the words are: a, blue, circle, red"):
        WORDS.index("xyz")
    with pytest.raises(SpecError, match="has 6 words; this model takes 5"):
        WORDS.index("a a a a a a")


# -- from files -----------------------------------------------------------------------------------


def folder_of(path, table, *, name="metadata.csv", count=20):
    for i in range(count):
        Image.new("RGB", (8, 8), (12 * i, 0, 0)).save(path / f"{i:02d}.png")
    (path / name).write_text(table)
    return str(path)


def test_a_table_beside_images_gives_their_captions(tmp_path):
    rows = [f'{i:02d}.png,"A dark, red picture {i % 2}"' for i in range(20)]
    source = folder_of(tmp_path, "\n".join(["file_name,text", *rows, "00.png,another"]))
    data = open_data(source)
    found = data.condition
    assert isinstance(found, Captions)
    assert found.words == ("0", "1", "a", "dark", "picture", "red") and found.length == 5
    for split in data.splits.values():
        x, y = split.fetch(torch.arange(len(split)))
        for picture, tokens in zip(x, y.tolist(), strict=True):
            number = int(picture[0, 0, 0]) // 12
            assert found.text(tokens) == f"a dark red picture {number % 2}"
    assert set(found.examples) <= {"a dark red picture 0", "a dark red picture 1"}
    streamed = open_data(source, DataConfig(memory=0))
    for name, split in streamed.splits.items():
        assert torch.equal(split.fetch(torch.arange(len(split)))[1], data.splits[name].y)


def test_words_that_only_held_out_captions_have_are_left_out_and_counted(tmp_path):
    for part, word in (("train", "red"), ("test", "crimson")):
        (tmp_path / part).mkdir()
        rows = "\n".join(["image,caption", *(f"{i:02d}.png,a {word} one" for i in range(20))])
        folder_of(tmp_path / part, rows, name="captions.txt")
    data = open_data(str(tmp_path))
    assert data.condition.words == ("a", "one", "red")
    assert data.condition.text(data.splits["test"].y[0].tolist()) == "a one"
    assert data.notes["words left out"] == 20


def test_bad_tables_are_one_line(tmp_path):
    source = folder_of(tmp_path, "file_name,text\n00.png,red\n")
    with pytest.raises(DataError, match=r"01\.png: has no caption in metadata\.csv"):
        open_data(source)
    folder_of(tmp_path, "\n".join(["file_name,text", *(f"{i:02d}.png," for i in range(20))]))
    with pytest.raises(DataError, match="hold no words"):
        open_data(source)
    # A table of something else is none of captions.
    folder_of(tmp_path, "file_name,width\n00.png,8\n")
    assert open_data(source).condition is None


def test_class_names_become_captions():
    plain, captioned = open_data("digits"), open_data("digits", DataConfig(captions=True))
    assert captioned.condition.words == tuple("0123456789") and captioned.condition.length == 1
    for part, split in captioned.splits.items():
        assert torch.equal(split.y[:, 0] - 1, plain.splits[part].y)
        assert torch.equal(split.x, plain.splits[part].x)
    assert "class names as captions" in captioned.variant
    with pytest.raises(ConfigError, match="has no classes"):
        open_data("digits", DataConfig(captions=True, classes=("3",)))


# -- the encoder ----------------------------------------------------------------------------------


def encoder(**options):
    torch.manual_seed(0)
    sizes = {"vocabulary": 9, "length": 6, "width": 16, "layers": 2, "out": 8} | options
    made = TextEncoder(**sizes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_the_encoder_does_not_see_what_fills_up():
    made = encoder()
    tokens = torch.tensor([[3, 1, 4, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
    whole = made(tokens)
    short = made(tokens[:, :3])
    assert torch.equal(whole.mask[:, :4], short.mask) and not whole.mask[:, 4:].any()
    assert torch.allclose(whole.whole, short.whole, atol=1e-6)
    assert torch.allclose(whole.tokens[0, :4], short.tokens[0, :4], atol=1e-6)
    with torch.no_grad():
        made.words.weight[0] += 1  # the token of nothing
        made.positions[4:] += 1
    assert torch.allclose(made(tokens).whole, whole.whole, atol=1e-6)
    # What is there counts, and so does its order.
    for changed in ([3, 1, 5, 0, 0, 0], [1, 3, 4, 0, 0, 0]):
        other = made(torch.tensor([changed]))
        assert (other.whole - whole.whole[:1]).abs().max() > 1e-3


def test_an_empty_caption_is_finite_and_alike_at_any_length():
    made = encoder()
    empty = made(torch.zeros(2, 6, dtype=torch.long))
    assert empty.whole.isfinite().all() and empty.tokens[:, 0].isfinite().all()
    none = made(torch.zeros(2, 0, dtype=torch.long))
    assert torch.allclose(empty.whole, none.whole, atol=1e-6)


def test_the_network_reads_captions_at_each_attention_and_ignores_what_fills_up():
    torch.manual_seed(0)
    unet = UNet(
        image_channels=3,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(False, True),
        groups=4,
        captions=(9, 4),
        text_width=16,
    ).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([500])
    one = unet(x, t, torch.tensor([[3, 1, 0, 0]]))
    assert torch.allclose(one, unet(x, t, torch.tensor([[3, 1]])), atol=1e-5)
    assert (one - unet(x, t, torch.tensor([[1, 3, 0, 0]]))).abs().max() > 1e-3
    empty = unet(x, t, torch.zeros(1, 4, dtype=torch.long))
    assert torch.allclose(empty, unet(x, t), atol=1e-5)
    # Without the vector of the whole, the tokens still tell through attention.
    torch.nn.init.zeros_(unet.text_encoder.pool.weight)
    by_tokens = unet(x, t, torch.tensor([[3, 1, 0, 0]])) - unet(x, t, torch.tensor([[1, 3, 0, 0]]))
    assert by_tokens.abs().max() > 1e-3


# -- the models -----------------------------------------------------------------------------------


def model(cls=FlowMatching, **options):
    config = cls.Config(**{**TINY, **options})
    torch.manual_seed(0)
    return cls(config, cls.view(config, IMAGE), WORDS)


def batch_of(n, condition=None):
    x = torch.rand(n, 3, 8, 8) * 2 - 1
    draws = Draws((1,), total=n)
    return Batch(x=x, condition=condition, index=torch.arange(n), draws=draws, size=n)


@pytest.mark.parametrize("cls", [DDPM, FlowMatching])
def test_captions_are_dropped_by_sample_and_guidance_follows_them(cls):
    net = model(cls, label_dropout=0.5).eval()
    captions = torch.tensor([WORDS.index("a red circle")] * 400)
    seen = net._dropped(batch_of(400, captions))
    gone = (seen == 0).all(1)
    assert torch.equal(seen[~gone], captions[~gone])
    assert 0.4 < gone.float().mean() < 0.6
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    options = net.Sampling(steps=3)
    red, blue = (torch.tensor([WORDS.index(f"a {c} circle")] * 2) for c in ("red", "blue"))

    def drawn(condition, guidance):
        how = dataclasses.replace(options, guidance=guidance)
        return net.sample(2, condition=condition, options=how, precision="fp32")

    assert not torch.allclose(drawn(red, 1.0), drawn(blue, 1.0), atol=1e-3)
    assert torch.equal(drawn(red, 0.0), drawn(blue, 0.0))
    nothing = torch.zeros_like(red)
    assert torch.allclose(drawn(nothing, 1.0), drawn(red, 0.0), atol=1e-4)
    # u + s (c − u): with an empty caption c is u, whatever the strength.
    assert torch.allclose(drawn(nothing, 3.0), drawn(nothing, 1.0), atol=1e-4)


def test_a_coupling_exchanges_noise_within_a_caption_alone():
    x, eps = torch.randn(6, 3), torch.randn(6, 3)
    captions = torch.tensor([[1, 2], [1, 0], [1, 2], [1, 0], [2, 1], [1, 2]])
    order = matched(x, eps, captions)
    assert torch.equal(captions[order], captions)
    assert sorted(order.tolist()) == list(range(6))


def test_models_that_know_classes_alone_refuse_captions():
    config = VAE.Config(conditional=True, widths=(8,), latent_dim=2)
    with pytest.raises(ConfigError, match="VAE learns by class, not by caption"):
        build(VAE, config, IMAGE, WORDS)


def test_bad_sizes_of_the_encoder_are_refused():
    with pytest.raises(ConfigError, match="text_width = 18 is not a multiple of 4"):
        DDPM.Config(text_width=18)
    with pytest.raises(ConfigError, match="text_layers"):
        DDPM.Config(text_layers=0)
