"""From WAV files to WAV files: training on windows, samples, numbers, cleaning of any length."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

from poiesis.cli.main import main
from poiesis.files import make_wav, parse_wav

RATE = 8000
QUICK = ["--train.grids", "0", "--train.threads", "1", "--quiet"]


def chord(seconds, seed):
    """Some of a few harmonics, at random times and strengths: simple, but no two alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    parts = [
        rng.uniform(0.3, 1) * np.sin(2 * np.pi * (200 * k * t + rng.random()))
        for k in rng.choice(np.arange(1, 6), 2, replace=False)
    ]
    return (4000 * sum(parts)).astype(np.int16)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds") / "chords"
    folder.mkdir()
    for k in range(60):
        (folder / f"{k:02d}.wav").write_bytes(make_wav(chord(0.25, k), RATE))
    return folder


@pytest.fixture(scope="module")
def denoiser(sounds):
    """A denoising autoencoder of short windows, trained for some seconds."""
    path = sounds.parent / "run"
    how = ["--data", str(sounds), "--data.length", "128", "--train.steps", "500", *QUICK]
    how += ["--preset", "mlp", "--model.widths", "128", "--model.level", "0.5"]
    assert main(["train", "denoising-autoencoder", *how, "--out", str(path)]) == 0
    return path


def read(path):
    rate, samples = parse_wav(path.read_bytes(), path)
    assert rate == RATE
    return samples[:, 0].astype(float)


def snr(found, wanted):
    return 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum())


def test_recordings_of_any_length_are_cleaned(poiesis, denoiser, tmp_path):
    rng = np.random.default_rng(0)
    lengths = {"short": 0.005, "odd": 0.3017, "long/one": 1.5}
    for kind in ("noisy", "clean"):
        (tmp_path / kind / "long").mkdir(parents=True)
    for seed, (name, seconds) in enumerate(lengths.items(), start=100):
        clean = chord(seconds, seed)
        noisy = np.rint(clean + 1500 * rng.normal(size=len(clean))).astype(np.int16)
        (tmp_path / "clean" / f"{name}.wav").write_bytes(make_wav(clean, RATE))
        (tmp_path / "noisy" / f"{name}.wav").write_bytes(make_wav(noisy, RATE))
    command = ["denoise", denoiser, tmp_path / "noisy", "-o", tmp_path / "out", "--quiet"]
    code, out, err = poiesis(*command, "--clean", tmp_path / "clean", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["samples"] == 3
    sets = {
        kind: [read(tmp_path / kind / f"{name}.wav") for name in lengths]
        for kind in ("noisy", "clean", "out")
    }
    assert [len(x) for x in sets["out"]] == [len(x) for x in sets["noisy"]]
    whole = {kind: np.concatenate(x) for kind, x in sets.items()}
    assert found["snr_before"] == pytest.approx(snr(whole["noisy"], whole["clean"]), abs=0.01)
    assert found["snr"] == pytest.approx(snr(whole["out"], whole["clean"]), abs=0.02)
    assert found["snr"] > found["snr_before"] + 3
    with Image.open(tmp_path / "out" / "before-after.png") as sheet:
        assert sheet.width > 300 and sheet.height > 300


def test_noise_is_added_and_taken_away(poiesis, denoiser, sounds, tmp_path):
    options = ["--add", "gaussian", "--level", 0.5, "--json", "--quiet"]
    code, out, err = poiesis("denoise", denoiser, sounds, "--limit", 5, *options)
    assert code == 0, err
    files = json.loads(out)
    # Half the loudness of the training data: 6 dB below it, give or take these files' own.
    assert files["samples"] == 5 and files["snr_before"] == pytest.approx(6, abs=1.5)
    assert files["snr"] > files["snr_before"] + 3
    code, out, err = poiesis("denoise", denoiser, *options, "-o", tmp_path / "windows")
    assert code == 0, err
    assert len(list((tmp_path / "windows").glob("test-*.wav"))) == json.loads(out)["samples"]


def test_samples_numbers_report_and_codes(poiesis, denoiser, sounds, tmp_path):
    code, _, err = poiesis("sample", denoiser, "-n", 3, "-o", tmp_path / "new", "--quiet")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        *("00000.wav", "00000.wav.json", "00001.wav", "00001.wav.json"),
        *("00002.wav", "00002.wav.json", "grid.png"),
    ]
    assert len(read(tmp_path / "new" / "00002.wav")) == 128
    code, out, _ = poiesis("reproduce", tmp_path / "new" / "00001.wav")
    assert code == 0 and "identical" in out
    code, out, err = poiesis("evaluate", denoiser, "--samples", 60, "--json", "--quiet")
    assert code == 0, err
    numbers = {n["name"]: n for n in json.loads(out)["numbers"]}
    assert numbers["frechet_distance"]["passport"]["extractor"] == "log power in 32 bands"
    assert poiesis("report", denoiser, "--samples", 20)[0] == 0
    page = (denoiser / "report.html").read_text()
    assert "spectra" in page and page.count("data:image/png;base64,") > 3
    code, out, err = poiesis("reduce", denoiser, sounds / "07.wav", "--json", "--quiet")
    assert code == 0 and json.loads(out)["samples"] == 16, err  # 2,000 samples in windows of 128


@pytest.mark.parametrize(
    "model", ["vae", "iwae", "autoencoder", "sparse-autoencoder", "contractive-autoencoder"]
)
def test_the_family_trains_on_windows(poiesis, sounds, tmp_path, model):
    how = ["--data", sounds, "--data.length", 300, "--train.steps", 3, *QUICK]
    code, _, err = poiesis("train", model, *how, "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = poiesis("denoise", tmp_path / "run", sounds, "--limit", 1, "--quiet")
    assert code == 0, err


def test_mistakes(refused, denoiser, sounds, tmp_path):
    (tmp_path / "fast.wav").write_bytes(make_wav(chord(0.1, 0), 16000))
    line = refused("denoise", denoiser, tmp_path / "fast.wav", "-o", tmp_path / "out", "--quiet")
    assert "has 16000 samples a second, not 8000" in line and not (tmp_path / "out").exists()
    (tmp_path / "x.txt").write_text("no sound")
    assert "is no WAV file" in refused("denoise", denoiser, tmp_path / "x.txt", "--quiet")
    (tmp_path / "empty").mkdir()
    assert "holds no WAV files" in refused("denoise", denoiser, tmp_path / "empty", "--quiet")
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "07.wav").write_bytes(make_wav(chord(0.1, 0), RATE))
    pair = ["denoise", denoiser, sounds / "07.wav", "--clean", tmp_path / "clean", "--quiet"]
    assert "has 800 samples, the noisy one 2,000" in refused(*pair)
    (tmp_path / "clean" / "07.wav").rename(tmp_path / "clean" / "08.wav")
    assert "has no 07.wav" in refused(*pair)
    assert "not grid 1x128" in refused(
        "train", "dcgan", "--data", sounds, "--data.length", 128, "--train.steps", 1
    )


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Chords in a flat folder, called CLASS_VOICE_NUMBER.wav."""
    folder = tmp_path_factory.mktemp("spoken") / "spoken"
    folder.mkdir()
    for k in range(40):
        sound = make_wav(chord(0.06, k), RATE)
        (folder / f"{('one', 'two')[k % 2]}_ann_{k:02d}.wav").write_bytes(sound)
    return folder


TINY = ["--model.channels", "8", "--model.multipliers", "1,2", "--model.batch-size", "8"]


@pytest.mark.parametrize(
    ("model", "audio", "options"),
    [
        ("flow-matching", "waveform", ["--model.fold", "8", "--model.attention", "32"]),
        ("ddpm", "spectrogram", ["--model.fold", "2", "--model.attention", "16"]),
    ],
)
def test_diffusion_from_recordings_to_recordings(poiesis, spoken, tmp_path, model, audio, options):
    run = tmp_path / "run"
    how = ["--data", spoken, "--data.length", 500, "--data.audio", audio, "--train.steps", 4]
    how += ["--train.grids", "1", "--train.threads", "1", "--quiet"]
    code, _, err = poiesis("train", model, *how, *TINY, *options, "--out", run)
    assert code == 0, err
    with Image.open(run / "samples" / "step-00000004.png") as sheet:
        assert sheet.width > 300 and sheet.height > 300
    asked = ["-n", 2, "--class", "two", "--sampling.steps", 2, "-o", tmp_path / "new", "--quiet"]
    code, _, err = poiesis("sample", run, *asked)
    assert code == 0, err
    for k in range(2):
        assert len(read(tmp_path / "new" / f"0000{k}.wav")) == 500
    code, out, _ = poiesis("reproduce", tmp_path / "new" / "00001.wav")
    assert code == 0 and "identical" in out
    judge = ["--samples", 30, "--likelihood-rows", 0, "--json", "--quiet"]
    code, out, err = poiesis("evaluate", run, *judge)
    assert code == 0, err
    numbers = {n["name"]: n for n in json.loads(out)["numbers"]}
    assert numbers["recall"]["passport"]["extractor"] == "log power in 32 bands"
    assert poiesis("report", run, "--samples", 4)[0] == 0
    page = (run / "report.html").read_text()
    assert "Is it copying?" in page and "spectra" in page
    sounds = re.findall(r'<audio [^>]*src="data:audio/wav;base64,([^"]+)"', page)
    assert len(sounds) == 16 and page.count("<figcaption>two</figcaption>") == 8
    rate, samples = parse_wav(base64.b64decode(sounds[0]), "page")
    assert rate == RATE and samples.shape == (500, 1)


def test_a_run_of_spectrograms_reads_recordings_but_does_not_clean_them(
    poiesis, refused, spoken, tmp_path
):
    how = ["--data", spoken, "--data.length", 500, "--data.audio", "spectrogram"]
    code, _, err = poiesis(
        "train", "vae", *how, "--train.steps", 2, *QUICK, "--out", tmp_path / "r"
    )
    assert code == 0, err
    code, out, err = poiesis(
        "reduce", tmp_path / "r", spoken / "one_ann_00.wav", "--json", "--quiet"
    )
    assert code == 0 and json.loads(out)["samples"] == 1, err
    line = refused("denoise", tmp_path / "r", spoken, "--quiet")
    assert "don't hold all of a recording" in line and "--data.audio waveform" in line
