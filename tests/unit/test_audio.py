"""Audio: WAV files to windows and back, put together without a seam."""

from __future__ import annotations

import io
import json
import wave

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poiesis.apply.recordings import cut, join
from poiesis.data import open_data
from poiesis.data.codecs import AudioCodec, codec_from_json
from poiesis.data.codecs.audio import log_spectrogram
from poiesis.data.config import DataConfig
from poiesis.data.provenance import read_recipe
from poiesis.data.sources.audio import windows
from poiesis.errors import ConfigError, DataError
from poiesis.files import make_wav, parse_wav
from poiesis.spec import Grid

quick = settings(max_examples=60, deadline=None)
RATE = 8000


def wav(samples, *, rate=RATE, width=2, channels=1):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def tone(n, pitch=440.0, loud=8000, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n) / RATE
    return (loud * np.sin(2 * np.pi * (pitch * t + rng.random()))).astype(np.int16)


@pytest.fixture
def sounds(tmp_path):
    """Twelve tones of various lengths in two folders."""
    for k in range(12):
        folder = tmp_path / "sounds" / ("high" if k % 2 else "low")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.wav").write_bytes(wav(tone(700 + 150 * k, 300 + 100 * (k % 2), seed=k)))
    return tmp_path / "sounds"


def refused(path, match, **options):
    with pytest.raises(DataError, match=match) as raised:
        open_data(str(path), DataConfig(**options))
    assert "\n" not in str(raised.value)


# -- files ----------------------------------------------------------------------------------------


def test_samples_and_rate_of_a_file():
    stereo = np.arange(-6, 6, dtype=np.int16)
    rate, found = parse_wav(wav(stereo, rate=44100, channels=2), "x.wav")
    assert rate == 44100 and found.dtype == np.int16
    assert np.array_equal(found, stereo.reshape(6, 2))
    rate, found = parse_wav(make_wav(stereo, 16000), "x.wav")
    assert rate == 16000 and np.array_equal(found[:, 0], stereo)


def test_bad_files():
    whole = wav(tone(100))
    for data, match in (
        (b"", "is no PCM WAV file"),
        (b"RIFF....junk", "is no PCM WAV file"),
        (whole[:120], "its header says 100 samples at 8000 Hz, it has 38"),
        (wav(np.zeros(9, np.uint8), width=1), "samples of 8 bits; convert it to 16-bit PCM"),
        (wav(np.zeros(9, np.int32), width=4), "samples of 32 bits"),
    ):
        with pytest.raises(DataError, match=match):
            parse_wav(data, "x.wav")


@given(data=st.binary(max_size=80))
@quick
def test_no_bytes_crash_the_reader(data):
    for start in (b"", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0"):
        try:
            rate, samples = parse_wav(start + data, "x")
        except DataError:
            continue
        assert rate > 0 and samples.ndim == 2


# -- the source -----------------------------------------------------------------------------------


def test_windows_of_a_folder(sounds):
    data = open_data(str(sounds), DataConfig(length=256))
    assert data.spec == Grid(channels=1, size=(256,), domain="real")
    assert data.variant == "sounds, windows of 256 samples at 8,000 Hz"
    assert data.condition.names == ("high", "low")
    count = sum(-(-(700 + 150 * k) // 256) for k in range(12))
    assert sum(len(split) for split in data.splits.values()) == count
    assert data.notes["counts"] == {part: len(split) for part, split in data.splits.items()}
    train = data.splits["train"]
    assert train.x.shape == (len(train), 1, 256) and len(train.y) == len(train)
    assert float(train.x.square().mean()) == pytest.approx(1, abs=1e-4)


def test_a_window_holds_the_samples_of_its_file(sounds):
    data = open_data(str(sounds), DataConfig(length=256))
    raws = {data.codec.decode(x).tobytes() for split in data.splits.values() for x in split.x}
    _, samples = parse_wav((sounds / "low" / "4.wav").read_bytes(), "x")
    padded = np.pad(samples[:, 0], (0, -len(samples) % 256)).reshape(-1, 256)
    assert all(row.tobytes() in raws for row in padded)


def test_windows_of_one_stretch_stay_in_one_part(tmp_path):
    noise = np.random.default_rng(3).normal(0, 3000, 256 * 16 * 12)
    long = noise.astype(np.int16)
    (tmp_path / "one.wav").write_bytes(wav(long))
    data = open_data(str(tmp_path / "one.wav"), DataConfig(length=256))
    where = {row.tobytes(): k // 16 for k, row in enumerate(long.reshape(-1, 256))}
    blocks = {
        part: {where[data.codec.decode(x).tobytes()] for x in split.x}
        for part, split in data.splits.items()
    }
    assert not blocks["train"] & blocks["test"] and not blocks["train"] & blocks["validation"]
    refused(tmp_path / "one.wav", "too little to cut parts", length=4096 * 8)


def test_files_that_differ_are_refused(tmp_path):
    for k in range(6):
        (tmp_path / f"{k}.wav").write_bytes(wav(tone(600), rate=16000 if k == 4 else RATE))
    refused(tmp_path, r"4\.wav: has 16000 samples a second, not 8000; resample it", length=128)
    data = open_data(str(tmp_path), DataConfig(length=128, skip_bad=True))
    assert len(data.skipped) == 1 and "4.wav" in data.skipped[0]


def test_stereo_is_averaged_only_if_said(tmp_path):
    left, right = tone(600, seed=1), tone(600, seed=2)
    both = np.stack([left, right], 1)
    for k in range(5):
        (tmp_path / f"{k}.wav").write_bytes(wav(both, channels=2))
    refused(tmp_path, "has 2 channels; average them with --data.channels 1", length=128)
    data = open_data(str(tmp_path), DataConfig(length=600, channels=1))
    assert data.codec.mono and data.variant.endswith("as mono")
    wanted = np.rint((left.astype(float) + right) / 2).astype(np.int16)
    assert np.array_equal(data.codec.decode(data.splits["train"].x[0]), wanted)
    with pytest.raises(DataError, match=r"data\.channels = 3, but audio is learned with one"):
        open_data(str(tmp_path), DataConfig(channels=3))


def test_options(sounds):
    with pytest.raises(ConfigError, match=r"data\.augment is for images; sounds is audio"):
        open_data(str(sounds), DataConfig(augment=("flip",), length=128))
    with pytest.raises(ConfigError, match=r"data\.length is for audio; digits is images"):
        open_data("digits", DataConfig(length=128))
    refused(sounds, r"take 0\.0 GB, more than --data\.memory 1e-05", memory=1e-5)


# -- the codec ------------------------------------------------------------------------------------


@given(
    values=st.lists(st.integers(-32768, 32767), min_size=1, max_size=64),
    scale=st.floats(1, 32768),
)
@quick
def test_samples_come_back_exactly(values, scale):
    codec = AudioCodec(rate=RATE, length=64, scale=scale)
    codec = codec_from_json(json.loads(json.dumps(codec.to_json())))
    raw = np.array(values, np.int16)
    x = codec.encode(raw)
    assert x.shape == (1, len(values)) and x.dtype == torch.float32
    assert np.array_equal(codec.decode(x), raw)


def test_what_is_too_loud_is_clipped(tmp_path):
    codec = AudioCodec(rate=RATE, length=16, scale=1000.0)
    raw = codec.decode(torch.tensor([[99.0, -99.0, torch.nan, 0.5]]))
    assert raw.tolist() == [32767, -32768, 0, 500]
    codec.write(raw, tmp_path / f"x{codec.suffix}", {"seed": 2})
    rate, found = parse_wav((tmp_path / "x.wav").read_bytes(), "x")
    assert rate == RATE and np.array_equal(found[:, 0], raw)
    assert read_recipe(tmp_path / "x.wav") == {"seed": 2}


def test_a_spectrogram_peaks_at_the_pitch():
    pitch = 1000.0
    level = log_spectrogram(tone(2000, pitch) / 8000.0)
    assert level.shape == (65, 1 + (2000 - 128) // 64)
    assert (level.argmax(0) == round(pitch / RATE * 128)).all()
    noise = np.random.default_rng(0).normal(size=200_000)
    power = 10 ** (log_spectrogram(noise) / 10)
    assert power[1:-1].mean() == pytest.approx(1, rel=0.02)
    assert log_spectrogram(np.zeros(50)).max() == pytest.approx(-100)


def test_preview_draws_each_recording():
    codec = AudioCodec(rate=RATE, length=512, scale=3000.0)
    quiet, loud = codec.preview([np.zeros(512, np.int16)] * 4), codec.preview([tone(512)] * 4)
    assert quiet.size == loud.size and quiet.tobytes() != loud.tobytes()
    assert codec.preview([tone(9), tone(5000)], 2).width > 360


# -- windows and back -----------------------------------------------------------------------------


@given(n=st.integers(1, 300), length=st.integers(16, 67), seed=st.integers(0, 9))
@quick
def test_windows_put_together_are_the_recording(n, length, seed):
    codec = AudioCodec(rate=RATE, length=length, scale=1234.5)
    raw = np.random.default_rng(seed).integers(-32768, 32768, n).astype(np.int16)
    signal = codec.encode(raw)
    parts = cut(signal, length)
    assert parts.shape[1:] == (1, length)
    assert np.array_equal(codec.decode(join(parts, n)), raw)
    torch.testing.assert_close(join(parts, n), signal, atol=0, rtol=3e-7)


@pytest.mark.parametrize("length", [16, 64, 101])
def test_each_sample_is_in_two_windows_and_seams_are_faded(length):
    signal = torch.zeros(1, 400)
    ones = torch.zeros_like(cut(signal, length))
    ones[::2] = 1
    faded = join(ones, 400)[0]
    assert float(faded.min()) >= 0 and float(faded.max()) <= 1
    # Where every second window says 1 and the others 0, no step is larger than the fade's.
    assert float(faded.diff().abs().max()) < np.pi / length + 0.01


def test_silence_fills_the_last_window():
    found = windows(np.arange(1, 11, dtype=np.int16), 4)
    assert found.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
    assert windows(np.array([7], np.int16), 4).tolist() == [[7, 0, 0, 0]]
