"""Audio as pictures: analysis and synthesis against closed forms; classes from file names."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from poiesis.data import open_data
from poiesis.data.codecs import AudioCodec, SpectrogramCodec, codec_from_json
from poiesis.data.codecs.spectrogram import RANGE, griffin_lim, mel_filters, sound_of, spectrum
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError, DataError
from poiesis.files import make_wav
from poiesis.metrics.features import features_of, value_features
from poiesis.spec import Grid

RATE = 8000


def tone(n, pitch=440.0, loud=8000.0):
    return loud * np.sin(2 * np.pi * pitch * np.arange(n) / RATE)


def codec_of(**options):
    return SpectrogramCodec(
        **{"rate": RATE, "length": 4096, "scale": 3000.0, "loudest": 35.0, **options}
    )


def test_the_spectrum_is_inverted_exactly():
    x = torch.randn(2, 1280, dtype=torch.float64)
    found = spectrum(x, 256)
    assert found.shape == (2, 129, 20)
    torch.testing.assert_close(sound_of(found, 256), x)


def test_white_noise_has_power_one_and_a_tone_its_place():
    noise = torch.randn(1, 512 * 200, generator=torch.Generator().manual_seed(0)).double()
    power = spectrum(noise, 512).abs().square()[:, 1:-1].mean()
    assert float(power) == pytest.approx(1, rel=0.02)
    found = spectrum(torch.from_numpy(tone(5120, pitch=1000.0))[None], 512).abs()
    assert (found[0, :, 5:-5].argmax(0) == 64).all()


@pytest.mark.parametrize(("bands", "frame", "rate"), [(64, 512, 8000), (128, 256, 8000)])
def test_bands_widen_with_pitch_and_miss_nothing(bands, frame, rate):
    filters = mel_filters(bands, frame, rate)
    torch.testing.assert_close(filters.sum(1), torch.ones(bands, dtype=torch.float64))
    hertz = torch.arange(frame // 2 + 1) * rate / frame
    centres = filters @ hertz.double()
    assert bool((centres.diff() >= 0).all())
    # 1000 Hz is 1000 mel, of which the whole range of 4 kHz has 2146.
    place = float((centres < 1000).sum() + 0.5) / (bands + 1)
    assert place == pytest.approx(1000 / (2595 * math.log10(1 + 4000 / 700)), abs=0.02)


def test_amplitudes_alone_give_the_sound_again():
    t = torch.arange(4096, dtype=torch.float64) / RATE
    x = (torch.sin(2 * math.pi * (300 + 400 * t) * t) * torch.hann_window(4096).double())[None]
    wanted = spectrum(x, 512).abs()

    def error(rounds):
        back = spectrum(griffin_lim(wanted, 512, rounds), 512).abs()
        return float((back - wanted).norm() / wanted.norm())

    assert error(32) < 0.1 < 3 * error(32) < error(0)


def test_pitch_and_loudness_survive_the_picture():
    codec = codec_of()
    assert codec.spec == Grid(channels=1, size=(64, 32)) and codec.frame == 512
    raw = np.rint(np.concatenate([tone(2048, 500.0), tone(2048, 1500.0, 2000.0)])).astype(np.int16)
    levels = codec.encode(raw)
    assert levels.shape == (1, 64, 32) and levels.dtype == torch.uint8
    back = codec.decode(levels)
    assert back.dtype == np.int16 and back.shape == (4096,)
    for part, pitch, loud in ((slice(300, 1700), 500, 8000), (slice(2400, 3800), 1500, 2000)):
        power = np.abs(np.fft.rfft(back[part] * np.hanning(1400)))
        assert power.argmax() * RATE / 1400 == pytest.approx(pitch, abs=25)
        found = math.sqrt(2) * back[part].astype(float).std()
        assert 20 * math.log10(found / loud) == pytest.approx(0, abs=2)
    assert np.array_equal(codec.decode(levels), back)
    # Low pitches lie below, as in every spectrogram.
    assert levels[0, :, 8].argmax() > levels[0, :, 24].argmax()
    assert not codec.decode(torch.zeros(1, 64, 32, dtype=torch.uint8)).any()


def test_levels_are_decibels_and_the_codec_is_saved(tmp_path):
    codec = codec_of()
    quiet, loud = (codec.encode(tone(4096, 800.0, v).astype(np.int16)) for v in (1000, 4000))
    band = loud[0, :, 10].argmax()
    assert int(loud[0, band, 10]) - int(quiet[0, band, 10]) == pytest.approx(
        255 * 20 * math.log10(4) / RANGE, abs=1
    )
    same = codec_from_json(json.loads(json.dumps(codec.to_json())))
    assert same == codec and isinstance(same, SpectrogramCodec)
    assert codec_from_json(AudioCodec(rate=8, length=16, scale=1.0).to_json()).kind == "audio"
    with pytest.raises(DataError, match=r"levels of shape \(1, 64, 31\) are not those of a grid"):
        codec.decode(torch.zeros(1, 64, 31))
    codec.write(codec.decode(loud), tmp_path / "x.wav")
    assert codec.preview([codec.decode(loud)]).width > 100


@pytest.fixture
def spoken(tmp_path):
    """Twenty tones in a flat folder, called PITCH_SPEAKER_NUMBER.wav."""
    folder = tmp_path / "spoken"
    folder.mkdir()
    for k in range(20):
        raw = tone(900 + 10 * k, 300.0 * (1 + k % 2)).astype(np.int16)
        name = f"{('low', 'high')[k % 2]}_{('ann', 'bob', 'cy', 'di')[k % 4]}_{k}.wav"
        (folder / name).write_bytes(make_wav(raw, RATE))
    return folder


def test_classes_are_a_part_of_the_names(spoken):
    data = open_data(str(spoken), DataConfig(length=1024))
    assert data.condition.names == ("high", "low")
    split = data.splits["train"]
    pitch = torch.fft.rfft(split.x[:, 0]).abs().argmax(1) * RATE / 1024
    assert torch.equal(pitch > 450, split.y == 0)
    data = open_data(str(spoken), DataConfig(length=1024, label="2"))
    assert data.condition.names == ("ann", "bob", "cy", "di")
    assert open_data(str(spoken), DataConfig(length=1024, label="0")).condition is None
    with pytest.raises(DataError, match=r"data\.label = '4' is no part of the name .* has 3"):
        open_data(str(spoken), DataConfig(length=1024, label="4"))
    with pytest.raises(DataError, match=r"data\.label = 'digit' is no part of the name"):
        open_data(str(spoken), DataConfig(length=1024, label="digit"))


def test_names_that_say_nothing_are_no_classes(tmp_path):
    for k in range(6):
        (tmp_path / f"take{k}_{k}.wav").write_bytes(make_wav(tone(600).astype(np.int16), RATE))
    assert open_data(str(tmp_path), DataConfig(length=600)).condition is None
    (tmp_path / "a").mkdir()
    for path in tmp_path.glob("*.wav"):
        path.rename(tmp_path / "a" / path.name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x_1.wav").write_bytes(make_wav(tone(600).astype(np.int16), RATE))
    with pytest.raises(DataError, match=r"without folders, but .* has them: leave it out"):
        open_data(str(tmp_path), DataConfig(length=600, label="1"))


def test_a_set_of_spectrograms(spoken):
    waves = open_data(str(spoken), DataConfig(length=1024))
    data = open_data(str(spoken), DataConfig(length=1024, audio="spectrogram"))
    assert data.spec == Grid(channels=1, size=(64, 8)) and data.variant.endswith("grams of 64x8")
    assert data.condition == waves.condition
    train = data.splits["train"]
    assert train.x.dtype == torch.uint8 and int(train.x.max()) == 255
    assert torch.equal(train.x, data.codec.native(waves.splits["train"].x))
    # Its features are those of the sound, the same as of the samples themselves up to the loss.
    sounds, same = (
        value_features(train.x, data.codec),
        value_features(waves.splits["train"].x, waves.codec),
    )
    assert sounds.shape == same.shape
    loud = same > -20
    assert float((sounds - same)[loud].abs().mean()) < 3
    # In training the pictures themselves are compared: the same pitches, told apart as well.
    name, quick = features_of(data)
    found = quick(train.x)
    assert name == "spectra" and found.shape == (len(train), 64)
    first, *others = torch.cdist(found, found)[0].argsort().tolist()
    assert first == 0
    assert bool((train.y[others[:4]] == train.y[0]).all())
    with pytest.raises(ConfigError, match=r"data\.audio is for audio; digits is images"):
        open_data("digits", DataConfig(audio="spectrogram"))
    with pytest.raises(ConfigError, match=r"data\.augment is for images; spoken is audio"):
        open_data(str(spoken), DataConfig(length=512, audio="spectrogram", augment=("flip",)))
