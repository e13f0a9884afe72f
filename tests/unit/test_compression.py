"""Compression: what goes in comes out, at the rate that theory says, and nothing else passes."""

import dataclasses
import math
import struct
import zlib

import numpy as np
import pytest
import torch

from poiesis.apply.compress import container
from poiesis.apply.compress.autoregressive import AutoregressiveCoder
from poiesis.apply.compress.coder import RADIUS, STEPS, Stack, integer_table, random_words
from poiesis.apply.compress.container import Chunk, Header, pack_names, read, to_bytes
from poiesis.apply.compress.lossless import BitsBackCoder
from poiesis.apply.compress.lossy import LatentCoder
from poiesis.data.views import View
from poiesis.errors import CapabilityError, DataError
from poiesis.models.autoencoders.mixture import (
    log_logistic,
    log_mixture,
    logistic_cdf,
    mixture_cdf,
    values_per_pixel,
)
from poiesis.models.autoencoders.vae import VAE
from poiesis.models.autoencoders.vdvae import VDVAE
from poiesis.models.autoregressive.transformer import Transformer
from poiesis.spec import Classes, Grid


def coder_of(cls, spec, batch_size=8, classes=None, seed=0, **changes):
    """Return a coder by a tiny untrained model."""
    torch.manual_seed(seed)
    preset = "mlp" if cls is VAE else "default"
    config = dataclasses.replace(cls.preset(preset, spec), **changes)
    model = cls(config, cls.view(config, spec), classes).eval()
    kind = AutoregressiveCoder if cls is Transformer else BitsBackCoder
    return kind(model, View(spec, model.spec), batch_size)


TINY = {"latent_dim": 3, "widths": (16,), "likelihood": "logistic"}
VERY_DEEP = {"patch": 4, "sizes": (2, 1), "encoder": (1, 1), "decoder": (1, 1), "widths": (8, 8)}
VERY_DEEP |= {"latent_channels": 2, "likelihood": "logistic", "dynamic": False}
SMALL = {"width": 16, "heads": 2, "layers": 1}


def gray(height, width, levels=256, channels=1):
    return Grid(channels=channels, size=(height, width), levels=levels)


CODERS = {
    "28x28": lambda: coder_of(VAE, gray(28, 28), **TINY, mixtures=3),
    "5x9, logistic": lambda: coder_of(VAE, gray(5, 9), **TINY),
    "7x4 of 17 levels": lambda: coder_of(VAE, gray(7, 4, 17), **TINY, mixtures=2),
    "4x4 of 33 levels": lambda: coder_of(VAE, gray(4, 4, 33), **TINY),
    "6x11 bits": lambda: coder_of(VAE, gray(6, 11, 2), **{**TINY, "likelihood": "bernoulli"}),
    "9x4 in colour": lambda: coder_of(VAE, gray(9, 4, channels=3), 5, **TINY, mixtures=2),
    "4x13 with alpha": lambda: coder_of(VAE, gray(4, 13, channels=4), 1, **TINY, mixtures=2),
    "vdvae 8x8": lambda: coder_of(VDVAE, gray(8, 8), **VERY_DEEP, mixtures=2),
    "vdvae 8x9 in colour": lambda: coder_of(
        VDVAE, gray(8, 9, channels=3), 4, **{**VERY_DEEP, "sizes": (3, 1)}, mixtures=2
    ),
    "transformer 4x5": lambda: coder_of(Transformer, gray(4, 5, 17), **SMALL),
}


def rows_of(spec, n, rng):
    """Return rows of some kind: noise, one level, few levels, or ramps."""
    shape, kind = (n, *spec.shape), rng.integers(4)
    if kind == 0:
        rows = rng.integers(0, spec.levels, shape)
    elif kind == 1:
        rows = np.full(shape, rng.integers(0, spec.levels))
    elif kind == 2:
        rows = rng.choice([0, spec.levels - 1], shape)
    else:
        rows = np.linspace(0, spec.levels - 1, math.prod(shape)).reshape(shape)
    return torch.from_numpy(rows.astype(np.uint8))


@pytest.mark.parametrize("name", CODERS)
def test_what_is_decoded_is_what_was_encoded(name):
    # Ten coders, a hundred inputs each.
    coder = CODERS[name]()
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows = rows_of(coder.spec, int(rng.integers(1, 12)), rng)
        words, sizes = coder.encode(rows)
        assert sum(sizes) == len(rows)
        assert torch.equal(coder.decode(words, sizes), rows)


def test_classes_are_part_of_the_code():
    spec = gray(5, 5)
    coder = coder_of(VAE, spec, classes=Classes(count=3), conditional=True, **TINY)
    torch.nn.init.normal_(coder.model.decoder.label.weight, std=3)
    rows = rows_of(spec, 11, np.random.default_rng(1))
    labels = torch.arange(11) % 3
    words, sizes = coder.encode(rows, labels)
    assert torch.equal(coder.decode(words, sizes, labels), rows)
    assert not torch.equal(coder.decode(words, sizes, (labels + 1) % 3), rows)


# -- rates -----------------------------------------------------------------------------------------


def test_the_stack_takes_the_entropy():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(16, 0.3))
    symbols = rng.choice(16, 200_000, p=p)
    stack = Stack()
    stack.push(symbols, np.repeat(integer_table(torch.from_numpy(p)[None]), len(symbols), 0))
    assert stack.bits == pytest.approx(-np.log2(p[symbols]).sum(), rel=1e-3)


def test_popping_from_a_normal_draws_from_it_and_pushing_gives_the_bits_back():
    stack = Stack(random_words(40_000))
    before = stack.bits
    mean, sigma = np.full(50_000, 0.3 * STEPS), np.full(50_000, 0.25 * STEPS)
    steps = stack.pop_normal(mean, sigma)
    z = steps / STEPS
    assert z.mean() == pytest.approx(0.3, abs=0.005)
    assert z.std() == pytest.approx(0.25, rel=0.02)
    entropy = 0.5 * math.log2(math.tau * math.e * (0.25 * STEPS) ** 2)
    assert (before - stack.bits) / len(steps) == pytest.approx(entropy, rel=1e-3)
    stack.push_normal(steps, mean, sigma)
    assert stack.bits == before and np.array_equal(stack.words(), random_words(40_000))


def test_bits_back_takes_the_bound():
    # Of rows drawn from the model: no value is so rare that a table's smallest entry counts.
    spec = gray(8, 8)
    coder = coder_of(VAE, spec, batch_size=256, **{**TINY, "latent_dim": 4}, mixtures=2)
    drawn = coder.model.sample(2048, options=VAE.Sampling(mean=False))
    rows = coder.view.invert(drawn)
    words, _ = coder.encode(rows)
    x = coder.view.apply(rows)
    elbo = torch.stack([coder.model.log_prob(x, seed=seed).nats for seed in range(8)]).mean(0)
    bits = -float(elbo.sum()) / math.log(2)
    # The first words, and the mean over one z of each image instead of all.
    assert 32 * len(words) == pytest.approx(bits, rel=2e-3)


def test_an_autoregressive_code_takes_the_exact_likelihood():
    coder = coder_of(Transformer, gray(4, 5, 17), **SMALL)
    rows = torch.randint(0, 17, (200, 1, 4, 5), dtype=torch.uint8)
    words, _ = coder.encode(rows)
    tokens = coder.view.apply(rows)
    # Of the vocabulary the levels alone get a share.
    log_p = coder.model.conditionals(tokens)[..., :17].log_softmax(-1)
    nats = log_p.gather(2, tokens[..., None]).sum()
    assert 32 * len(words) == pytest.approx(-float(nats) / math.log(2), rel=1e-3, abs=64)


def test_tables_that_adapt_come_near_the_entropy():
    rng = np.random.default_rng(0)
    sigma = np.array([0.3, 1.0, 4.0])
    numbers = np.rint(rng.normal([0, 5, -9], sigma, (5000, 3))).astype(np.int32)
    coder = LatentCoder(3, int(numbers.min()), int(numbers.max()))
    words = coder.encode(numbers)
    assert np.array_equal(coder.decode(words, len(numbers)), numbers)
    entropy = 0.0
    for column in numbers.T:
        p = np.unique(column, return_counts=True)[1] / len(column)
        entropy -= len(column) * float((p * np.log2(p)).sum())
    assert entropy < 32 * len(words) < 1.04 * entropy


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (50, 1), (129, 2)])
def test_latents_of_any_size(shape):
    numbers = np.random.default_rng(3).integers(-2047, 2048, shape).astype(np.int32)
    coder = LatentCoder(shape[1], -2047, 2047)
    assert np.array_equal(coder.decode(coder.encode(numbers), len(numbers)), numbers)
    same = np.full(shape, 7, np.int32)
    coder = LatentCoder(shape[1], 7, 7)
    assert np.array_equal(coder.decode(coder.encode(same), len(same)), same)


# -- probabilities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_distribution_function_is_the_sum_of_the_probabilities(levels):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    mean, log_scale = torch.tensor([-1.2, 0.1, 0.9]).double(), torch.tensor([-8.0, -2.0, 1.0])
    p = log_logistic(x[:, None], mean, log_scale.double(), levels).exp()
    edges = torch.arange(levels + 1)
    cdf = logistic_cdf(edges[:, None], mean, log_scale.double(), levels)
    torch.testing.assert_close(cdf.diff(dim=0), p, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_mixture_gives_each_channel_given_those_before(channel):
    # Exact: p(channel | before) = p(channels up to it) / p(channels before), by sums over levels.
    levels, mixtures = 5, 3
    generator = torch.Generator().manual_seed(0)
    k = values_per_pixel(3, mixtures)
    values = torch.randn(1, k, 1, 1, generator=generator, dtype=torch.float64)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    every = torch.cartesian_prod(grid, grid, grid)
    joint = log_mixture(every[:, :, None, None], values.expand(125, -1, 1, 1), mixtures, levels)
    joint = joint.exp().reshape(levels, levels, levels)
    assert joint.sum() == pytest.approx(1)
    chosen = (3, 1)[:channel]
    for level in chosen:
        joint = joint[level]
    expected = joint.reshape(levels, -1).sum(1)
    before = grid[list(chosen)].reshape(1, channel, 1, 1)
    edges = torch.arange(levels + 1)
    cdf = mixture_cdf(before, edges, values, 3, mixtures, levels)[0, 0, 0]
    torch.testing.assert_close(cdf.diff(), expected / expected.sum())


def test_tables_are_whole_numbers_whatever_the_model_says():
    p = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [math.nan, 0.5, 0.5], [math.inf, 1, 1]])
    table = integer_table(p)
    assert (table >= 1).all() and (table == np.rint(table)).all()
    assert table.sum(1).max() < 1 << 24
    stack = Stack()
    stack.push(np.array([2, 1, 0, 2]), table)
    assert stack.pop(table).tolist() == [2, 1, 0, 2]


def test_latents_far_out_stay_on_the_grid():
    stack = Stack(random_words(10))
    steps = stack.pop_normal(np.array([-RADIUS, RADIUS, 0.0]), np.array([0.25, 0.25, 2.0 * RADIUS]))
    assert np.abs(steps).max() <= RADIUS


def test_a_model_that_gives_levels_no_probabilities_is_told_so():
    spec = gray(28, 28)
    coder = coder_of(VAE, spec, latent_dim=2, widths=(8,))
    with pytest.raises(CapabilityError, match="--preset compress"):
        coder.encode(torch.zeros(1, *spec.shape, dtype=torch.uint8))


# -- the container ---------------------------------------------------------------------------------


def header(**changes):
    fields = {"model": "vae", "model_hash": "ab" * 32, "step": 3, "run": "runs/x"}
    fields |= {"machine": {"threads": 2}, "shape": (1, 4, 4), "levels": 256, "rows": 3}
    fields |= {"names": pack_names(["a-08.png", "a-09.png", "a-10.png"]), "batch_size": 8}
    return Header(**{**fields, **changes})


def chunk(rows, data):
    return Chunk(method="deflate", rows=rows, size=len(data), crc=zlib.crc32(data), content=1), data


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "x.psis"
    path.write_bytes(to_bytes(header(), [chunk(1, b"one"), chunk(2, b"three")]))
    return path


def test_a_container_holds_what_was_put_in(packed):
    found = read(packed)
    assert found.header == header()
    assert [data for _, data in found.chunks] == [b"one", b"three"]
    assert found.names == ["a-08.png", "a-09.png", "a-10.png"]
    assert found.header.names == {"before": "a-", "first": 8, "digits": 2, "after": ".png"}


@pytest.mark.parametrize(
    "names", [["x"], ["7"], ["a", "b"], ["1", "3"], ["9", "10"], ["a/1.png", "a/2.png"], ["ü 1"]]
)
def test_names_of_all_kinds(names, tmp_path):
    path = tmp_path / "x.psis"
    data = to_bytes(header(rows=len(names), names=pack_names(names)), [chunk(len(names), b"x")])
    path.write_bytes(data)
    assert read(path).names == names


def test_every_truncation_and_every_flipped_byte_is_one_clear_line(packed):
    whole = packed.read_bytes()
    for cut in range(len(whole)):
        packed.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut off|is no \.psis file"):
            read(packed)
    for at in range(len(whole)):
        packed.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"cut off|is no \.psis file|damaged|update poiesis"):
            read(packed)
    packed.write_bytes(whole + b"more")
    with pytest.raises(DataError, match="4 bytes after its end"):
        read(packed)


def test_a_newer_format_says_so(packed):
    whole = packed.read_bytes()
    packed.write_bytes(whole[:8] + struct.pack("<H", container.VERSION + 1) + whole[10:])
    with pytest.raises(DataError, match="format 2, this poiesis reads up to 1; update"):
        read(packed)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 10**9},
        {"rows": -1},
        {"shape": [1, 10**6, 10**6]},
        {"levels": 1},
        {"batch_size": 10**9},
        {"labels": [1]},
        {"names": {"list": ["../x", "b", "c"]}},
        {"names": {"list": ["/etc/x", "b", "c"]}},
        {"names": {"list": ["a", "a", "b"]}},
        {"names": {"before": "x" * 10**6, "first": 0, "digits": 10**9, "after": ""}},
        {"names": {}},
        {"shape": None},
        {"chunks": []},
        {"chunks": 7},
        {"unknown": 1},
    ],
    ids=str,
)
def test_headers_that_lie_are_refused_before_memory_is_taken(changes, packed):
    import json

    whole = packed.read_bytes()
    length = struct.unpack_from("<I", whole, 10)[0]
    fields = json.loads(zlib.decompress(whole[18 : 18 + length])) | changes
    lied = zlib.compress(json.dumps(fields).encode())
    prefix = whole[:10] + struct.pack("<II", len(lied), zlib.crc32(lied))
    packed.write_bytes(prefix + lied + whole[18 + length :])
    with pytest.raises(DataError, match=r"damaged \(its header\)|bytes after its end"):
        read(packed)


def test_a_header_that_inflates_without_end_is_refused(packed, monkeypatch):
    monkeypatch.setattr(container, "_MAX_HEADER", 1 << 16)
    bomb = zlib.compress(b" " * (1 << 20))
    prefix = packed.read_bytes()[:10] + struct.pack("<II", len(bomb), zlib.crc32(bomb))
    packed.write_bytes(prefix + bomb)
    with pytest.raises(DataError, match="damaged"):
        read(packed)
