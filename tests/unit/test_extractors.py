"""Extractors: facts of the architecture, resizing by hand, features that tell real from faulty."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from poiesis.errors import CapabilityError, ConfigError, DataError
from poiesis.metrics import fid, inception_score, precision_recall
from poiesis.metrics.extractors import CLASSIFIERS, get_extractor, names
from poiesis.metrics.extractors.classifier import ClassifierExtractor
from poiesis.metrics.extractors.inception import (
    LAYERS,
    WEIGHTS_FILE,
    FIDInception,
    InceptionExtractor,
    resize_tf1,
)


@pytest.fixture(scope="module")
def inception():
    torch.manual_seed(0)
    return FIDInception()


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.images).byte()[:, None], torch.tensor(data.target)


# -- the FID network ---------------------------------------------------------------------------


def test_inception_has_the_keys_and_parameters_of_the_official_file(inception):
    keys = inception.state_dict()
    assert len(keys) == 472
    units = {k.removesuffix(".conv.weight") for k in keys if k.endswith(".conv.weight")}
    assert len(units) == 94
    for unit in units:
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert f"{unit}.bn.{name}" in keys
    assert keys["Mixed_7b.branch3x3dbl_3a.conv.weight"].shape == (384, 384, 1, 3)
    assert keys["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert keys["fc.weight"].shape == (1008, 2048)
    # Inception v3 with 1,000 classes and no auxiliary head has 23,834,568; 8 classes more.
    assert sum(p.numel() for p in inception.parameters()) == 23_834_568 + 8 * 2049


@pytest.mark.parametrize("layer", LAYERS)
def test_inception_layers(inception, layer):
    extractor = InceptionExtractor(inception, "0" * 64, layer=layer)
    features = extractor.features(torch.randint(256, (1, 3, 20, 30), dtype=torch.uint8))
    assert features.shape == (1, layer) == (1, extractor.dims)
    assert features.isfinite().all()


def test_inception_repeats_grey_and_scales_levels(inception):
    extractor = InceptionExtractor(inception, "", layer=64)
    grey = torch.randint(2, (1, 1, 16, 16), dtype=torch.uint8)
    expected = extractor.features(grey.expand(-1, 3, -1, -1) * 255)
    bits = InceptionExtractor(inception, "", layer=64, levels=2)
    torch.testing.assert_close(bits.features(grey), expected)
    with pytest.raises(DataError, match="4 channels"):
        extractor.features(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_pools_leave_padding_out_and_the_last_block_takes_the_max(inception):
    # On a constant image an average without padding stays constant up to the border.
    x = torch.ones(1, 2048, 8, 8)
    for block, channels in ((inception.Mixed_5b, 192), (inception.Mixed_7b, 1280)):
        part = block.eval()(x[:, :channels])[:, -block.branch_pool.conv.out_channels :]
        assert torch.allclose(part, part[..., :1, :1].expand_as(part), atol=1e-6)
    spike = torch.zeros(1, 2048, 8, 8)
    spike[..., 4, 4] = 1
    part = inception.Mixed_7c.eval()(spike)[0, -192:]
    torch.testing.assert_close(part[:, 4, 4], part[:, 3, 5])  # a max spreads the spike unchanged
    assert part[:, 4, 4].any()


def test_logits_are_without_bias(inception):
    extractor = InceptionExtractor(inception, "")
    assert extractor.head(torch.zeros(2, 2048)).abs().max() == 0
    with pytest.raises(ConfigError, match="has no logits"):
        InceptionExtractor(inception, "", layer=64).head(torch.zeros(2, 64))


def test_tf1_resize_by_hand():
    # 2 to 4: sources 0, 0.5, 1, 1.5; the last row is repeated, nothing is shifted.
    x = torch.tensor([[0.0, 10.0], [20.0, 30.0]]).view(1, 1, 2, 2)
    expected = torch.tensor([[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]])
    torch.testing.assert_close(resize_tf1(x, 4)[0, 0], expected.float())
    # 6 to 4: sources 0, 1.5, 3, 4.5; no antialiasing.
    ramp = torch.arange(6.0).pow(2).view(1, 1, 1, 6).expand(1, 1, 6, 6)
    row = torch.tensor([0.0, 2.5, 9.0, 20.5])
    torch.testing.assert_close(resize_tf1(ramp, 4)[0, 0, 0], row)


def test_missing_and_wrong_inception_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("POIESIS_INCEPTION", raising=False)
    with pytest.raises(DataError) as error:
        get_extractor("inception")
    assert WEIGHTS_FILE in str(error.value) and "https://" in str(error.value)
    assert str(tmp_path / ".cache" / "poiesis") in str(error.value)
    assert "\n" not in str(error.value)
    fake = tmp_path / WEIGHTS_FILE
    torch.save({}, fake)
    monkeypatch.setenv("POIESIS_INCEPTION", str(tmp_path))
    with pytest.raises(DataError, match="not the official"):
        get_extractor("inception")


# -- classifiers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_committed_classifiers(name):
    extractor = get_extractor(name)
    goal = {"digits": 0.97, "mnist": 0.985, "fashion-mnist": 0.88, "cifar10-jpeg": 0.60}[name]
    assert extractor.accuracy >= goal
    assert extractor.name == name and len(extractor.sha256) == 64 and extractor.classes == 10
    images = torch.randint(extractor.levels, (3, *extractor.shape), dtype=torch.uint8)
    assert extractor.features(images).shape == (3, extractor.dims)
    assert extractor.logits(images).shape == (3, 10)
    parts = [extractor.features(images, batch_size=1), extractor.features(images)]
    torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-5)


def test_digits_are_recognised(digits):
    images, labels = digits
    logits = get_extractor("digits").logits(images)
    assert (logits.argmax(1) == labels).float().mean() > 0.97


def test_test_accuracy_is_as_stored(open_or_skip):
    data = open_or_skip("mnist")
    extractor = get_extractor("mnist")
    test = data.splits["test"]
    right = (extractor.logits(test.x[:2000]).argmax(1) == test.y[:2000]).float().mean()
    assert right == pytest.approx(extractor.accuracy, abs=0.01)


@pytest.fixture
def open_or_skip():
    from poiesis.data import open_data

    def opened(name):
        try:
            return open_data(name)
        except DataError as error:
            pytest.skip(str(error))

    return opened


@pytest.mark.parametrize("name", ["digits", "random"])
def test_noise_blur_and_copies_are_seen(digits, name):
    images, labels = digits
    extractor = get_extractor(name, levels=17)
    draws = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=draws)
    real, other = images[order[:500]], images[order[500:1000]]
    noise = torch.randn(other.shape, generator=draws)
    features = extractor.features(real)

    def distance(fake):
        return fid(features, extractor.features(fake)).value

    ladder = [(other + 16 * s * noise).round().clamp(0, 16).byte() for s in (0, 0.1, 0.2, 0.4)]
    values = [distance(step) for step in ladder]
    assert values == sorted(values) and values[-1] > 10 * values[0]
    starved = other[labels[order[500:1000]] > 2]
    assert distance(starved) > 1.5 * values[0]
    copies = extractor.features(other[:10].repeat(50, 1, 1, 1))
    precision, recall = precision_recall(features, copies)
    assert precision.value > 0.7 and recall.value < 0.05
    if extractor.classes:
        clear, noisy = (inception_score(extractor.logits(ladder[i])).value for i in (0, 3))
        assert noisy < clear - 1 and clear > 8


def test_unfit_images_give_one_line():
    extractor = get_extractor("digits")
    with pytest.raises(DataError, match=r"shape \(1, 28, 28\)"):
        extractor.features(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(DataError, match="levels 0…200"):
        extractor.features(torch.tensor([0, 200] * 32, dtype=torch.uint8).view(1, 1, 8, 8))
    with pytest.raises(DataError, match=r"torch.float32 images"):
        extractor.features(torch.zeros(2, 1, 8, 8))


def test_damaged_weights_give_one_line(tmp_path):
    from poiesis.metrics.extractors import _WEIGHTS

    good = _WEIGHTS / "digits.safetensors"
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(good.read_bytes())
    assert get_extractor(copy).sha256 == get_extractor("digits").sha256
    copy.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(DataError, match="no valid safetensors"):
        ClassifierExtractor(copy)
    weights = load_file(good)
    save_file(weights, copy)
    with pytest.raises(DataError, match="no extractor of ours"):
        ClassifierExtractor(copy)
    with pytest.raises(DataError, match="can't read"):
        get_extractor(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        get_extractor("digit")


# -- random features ---------------------------------------------------------------------------


def test_random_features_are_fixed_and_take_any_size():
    extractor = get_extractor("random")
    assert extractor.sha256 == get_extractor("random").sha256
    assert extractor.sha256.startswith("ed65b441857f")
    for channels, size in ((1, 8), (3, 32), (4, 17), (2, 4)):
        images = torch.randint(256, (2, channels, size, size), dtype=torch.uint8)
        assert extractor.features(images).shape == (2, extractor.dims)
    with pytest.raises(DataError, match="1 to 4 channels"):
        extractor.features(torch.zeros(1, 5, 8, 8, dtype=torch.uint8))
    with pytest.raises(CapabilityError, match="no classifier"):
        extractor.logits(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_features_are_float32_inside_bf16_autocast():
    extractor = get_extractor("random")
    images = torch.randint(256, (4, 1, 16, 16), dtype=torch.uint8)
    plain = extractor.features(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor.features(images), plain)
    assert plain.dtype == torch.float32 and math.isfinite(plain.sum())


def test_names_are_known():
    assert set(CLASSIFIERS) < set(names()) and {"inception", "random"} < set(names())
