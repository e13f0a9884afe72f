"""Video: files of clips to windows and back, moving digits, what judges clips."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from poiesis.data import open_data, sources
from poiesis.data.codecs import VideoCodec, codec_from_json
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet, TensorSplit
from poiesis.data.provenance import read_recipe
from poiesis.data.sources import moving_digits
from poiesis.errors import ConfigError, DataError
from poiesis.evaluation.videos import evaluate_videos
from poiesis.files import make_gif, make_mp4, pictures_of, read_clip
from poiesis.metrics.extractors import get_extractor
from poiesis.metrics.features import clip_features, motion
from poiesis.spec import Grid

quick = settings(max_examples=40, deadline=None)
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def pixels(image):
    return np.array(image.convert("RGB"))


def read(data, name="x.gif", most=10**9):
    return read_clip(data, name, pixels, most=most)


def clip(number, frames=10, side=12, channels=1):
    """A clip whose pixels tell its number and the frame: no two frames of any clips are alike."""
    out = np.zeros((frames, side, side, channels), np.uint8)
    for t, frame in enumerate(out):
        frame[:] = 5 * t
        frame[: side // 2, : side // 2] = 100 + number
        frame[(t % (side - 2)) :][:2, -3:] = 255
    return out


def write_clips(folder, lengths, *, suffix=".gif", classes=("a", "b"), **more):
    for k, length in enumerate(lengths):
        path = folder / classes[k % len(classes)] / f"{k:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        make = make_mp4 if suffix == ".mp4" else make_gif
        path.write_bytes(make(pictures_of(clip(k, length, **more)), 12.5))
    return folder


def refused(path, match, error=DataError, **options):
    with pytest.raises(error, match=match) as raised:
        open_data(str(path), DataConfig(**options))
    assert "\n" not in str(raised.value)


# -- files ----------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99),
    frames=st.integers(2, 9),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    levels=st.integers(1, 256),
)
@quick
def test_grey_comes_back_exactly_from_a_gif(seed, frames, height, width, levels):
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, levels, (frames, height, width, 1)).astype(np.uint8)
    raw[-1] = raw[0]
    found, rate = read(make_gif(pictures_of(raw), 10))
    assert np.array_equal(found, np.repeat(raw, 3, 3)) and rate == 10


def test_frames_that_are_alike_are_kept_apart():
    still = np.repeat(clip(3, 1), 7, 0)
    assert len(read(make_gif(pictures_of(still), 20))[0]) == 7


def test_colours_of_a_gif_come_back_nearly():
    few = clip(0, 5, channels=3)
    few[..., 1] //= 2
    assert np.array_equal(read(make_gif(pictures_of(few), 10))[0], few)
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    error = np.abs(read(make_gif(pictures_of(noise), 10))[0].astype(int) - noise).mean()
    assert 1 < error < 20  # 1,600 colours by 256


def test_a_frame_shown_longer_counts_more_often():
    frames = pictures_of(clip(0, 5))
    out = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:], "duration": [50, 50, 150, 50, 50]}
    frames[0].save(out, "PNG", **more)
    found, rate = read(out.getvalue(), "x.png")
    assert rate == 20 and len(found) == 7
    assert np.array_equal(found[:, 0, 11, 0], clip(0, 5)[[0, 1, 2, 2, 2, 3, 4], 0, 11, 0])


def test_bad_clips():
    whole = make_gif(pictures_of(clip(0, 4)), 10)
    for data, name, match in (
        (b"", "x.gif", "is not a readable GIF, PNG, WEBP animation"),
        (b"GIF89a" + b"\xff" * 40, "x.gif", "animation; use --skip-bad"),
        (whole, "x.gif", r"holds over 0\.0 GB of frames; cut it"),
    ):
        with pytest.raises(DataError, match=match):
            read(data, name, most=100)


def test_films_need_ffmpeg_and_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"needs ffmpeg, which is not on the PATH; install it"):
        read(b"anything", "x.mp4")
    with pytest.raises(DataError, match=r"writing \.mp4 needs ffmpeg on the PATH"):
        make_mp4(pictures_of(clip(0)), 10)


@needs_ffmpeg
@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 29)])
def test_a_film_comes_back_nearly(height, width):
    y, x = np.mgrid[:height, :width]
    raw = np.stack([[y * 5, x * 5, y + x + 4 * t] for t in range(16)]).clip(0, 255)
    raw = raw.transpose(0, 2, 3, 1).astype(np.uint8)
    found, rate = read(make_mp4(pictures_of(raw), 12.5), "x.mp4")
    assert found.shape == raw.shape and rate == 12.5
    assert np.abs(found.astype(int) - raw).mean() < 4
    assert np.abs(found.astype(int) - raw[::-1]).mean() > 8


@needs_ffmpeg
@pytest.mark.parametrize(
    "data", [b"junk", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hosts\n", b"ffconcat version 1.0\n"]
)
def test_what_is_no_film_or_points_elsewhere_is_refused(data):
    with pytest.raises(DataError, match=r"x\.mp4: ffmpeg can't read it \(.*--skip-bad") as raised:
        read(data, "x.mp4")
    assert "\n" not in str(raised.value)


# -- windows --------------------------------------------------------------------------------------


def test_each_window_is_a_row_and_clips_stay_in_one_part(tmp_path):
    lengths = [10 + k for k in range(12)]
    data = open_data(str(write_clips(tmp_path, lengths)), DataConfig(frames=4, frame_step=2))
    assert data.spec == Grid(channels=1, size=(4, 12, 12))
    assert data.variant.endswith("windows of 4 frames, every second")
    assert data.condition.names == ("a", "b")
    assert data.codec.rate == 12.5 / 2
    rows = {part: split.fetch(torch.arange(len(split))) for part, split in data.splits.items()}
    assert sum(len(x) for x, _ in rows.values()) == sum(n - 6 for n in lengths)
    seen = {}
    for part, (x, y) in rows.items():
        numbers = x[:, 0, :, 0, 0].int() - 100
        assert (numbers == numbers[:, :1]).all()  # no window crosses clips
        assert torch.equal(y, numbers[:, 0].long() % 2)
        times = x[:, 0, :, -1, 0].int() // 5
        assert (times.diff(dim=1) == 2).all()
        seen[part] = set(numbers[:, 0].tolist())
        for number in seen[part]:
            own = times[numbers[:, 0] == number, 0]
            assert own.tolist() == list(range(lengths[number] - 6))
    assert sum(map(len, seen.values())) == 12 == len(set().union(*seen.values()))
    assert data.notes["clips"] == {part: len(numbers) for part, numbers in seen.items()}
    assert data.notes["counts"] == {part: len(x) for part, (x, _) in rows.items()}


def test_strips_and_folders_of_frames_hold_the_same_windows(tmp_path):
    write_clips(tmp_path / "files", [11] * 6)
    for k in range(6):
        label, frames = "ab"[k % 2], clip(k, 11)
        strip = np.concatenate(list(frames), 1)[..., 0]
        (tmp_path / "strips" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(strip).save(tmp_path / "strips" / label / f"{k:02d}.png")
        folder = tmp_path / "folders" / label / f"{k:02d}"
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame[..., 0]).save(folder / f"frame-{t}.png")
    found = {
        kind: open_data(str(tmp_path / kind), DataConfig(frames=5, clips=kind))
        for kind in ("files", "strips", "folders")
    }
    rows = {k: d.splits["train"].fetch(torch.arange(4))[0] for k, d in found.items()}
    assert torch.equal(rows["files"], rows["strips"])
    assert torch.equal(rows["files"], rows["folders"])
    assert all(d.spec == found["files"].spec for d in found.values())


def test_a_zip_of_clips_and_stills_beside_them(tmp_path):
    write_clips(tmp_path / "clips", [8] * 5)
    Image.new("L", (99, 9)).save(tmp_path / "clips" / "grid.png")
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for path in sorted((tmp_path / "clips").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "clips"))
    for place in ("clips", "clips.zip"):
        data = open_data(str(tmp_path / place), DataConfig(frames=8))
        assert sum(map(len, data.splits.values())) == 5


@needs_ffmpeg
def test_a_folder_of_films(tmp_path):
    data = open_data(str(write_clips(tmp_path, [6] * 5, suffix=".mp4")), DataConfig(frames=6))
    assert data.codec.format == "mp4" and data.codec.rate == 12.5
    assert data.spec == Grid(channels=1, size=(6, 12, 12))


def test_stills_are_still_images(tmp_path):
    for k in range(9):
        Image.new("L", (8, 8), k).save(tmp_path / f"{k}.gif")
    assert open_data(str(tmp_path)).spec.size == (8, 8)


def test_clips_that_do_not_fit(tmp_path):
    write_clips(tmp_path / "short", [20] * 5 + [7])
    refused(tmp_path / "short", r"05\.gif: has 7 frames, fewer than the 16 of a window; use --data")
    data = open_data(str(tmp_path / "short"), DataConfig(skip_bad=True))
    assert len(data.skipped) == 1 and sum(map(len, data.splits.values())) == 25
    write_clips(tmp_path / "few", [20] * 2)
    refused(tmp_path / "few", "2 clips: parts are cut by clip; give 3 or more")
    write_clips(tmp_path / "sizes", [9] * 4)
    path = tmp_path / "sizes" / "a" / "09.gif"
    path.write_bytes(make_gif(pictures_of(clip(9, 9, side=16)), 10))
    refused(tmp_path / "sizes", r"4 of 12x12 .*1 of 16x16 .*use --data\.resize N", frames=8)
    data = open_data(str(tmp_path / "sizes"), DataConfig(frames=8, resize=12))
    assert data.spec.size == (8, 12, 12)
    refused(tmp_path / "few", r"over 0\.0 GB of frames; cut it, or use --skip-bad", memory=1e-6)
    sizes = {"frames": 8, "resize": 12, "memory": 1e-5}
    refused(tmp_path / "sizes", r"more than --data\.memory 1e-05 GB: raise it, resize", **sizes)
    (tmp_path / "x.mp4").write_bytes(b"x")
    refused(tmp_path / "x.mp4", "is a single clip; give the folder")
    (tmp_path / "strips").mkdir()
    Image.new("L", (30, 8)).save(tmp_path / "strips" / "x.png")
    refused(tmp_path / "strips", r"x\.png: has 30 x 8 pixels, no row of square", clips="strips")


def test_options(tmp_path):
    write_clips(tmp_path, [9] * 4)
    for options, match in (
        ({"augment": ("flip",)}, r"data\.augment is for images; .* is video"),
        ({"binarize": "once"}, r"data\.binarize is for images"),
        ({"channels": 4}, r"data\.channels = 4, but video is grey \(1\) or RGB \(3\)"),
        ({"attributes": "x.csv"}, "video has classes"),
    ):
        refused(tmp_path, match, ConfigError, frames=8, **options)
    with pytest.raises(ConfigError, match=r"data\.frame_step is for video; digits is images"):
        open_data("digits", DataConfig(frame_step=2))
    assert open_data(str(tmp_path), DataConfig(frames=8, channels=3)).spec.channels == 3


# -- the codec ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "format", ["gif", pytest.param("mp4", marks=needs_ffmpeg)], ids=["gif", "mp4"]
)
def test_written_clips_are_data_of_the_same_spec(format, tmp_path):
    codec = VideoCodec(channels=1, frames=6, size=(12, 12), rate=12.5, format=format)
    codec = codec_from_json(json.loads(json.dumps(codec.to_json())))
    codec.check_format()
    raws = [clip(k, 6) for k in range(4)]
    for k, raw in enumerate(raws):
        assert np.array_equal(codec.decode(codec.encode(raw)), raw)
        codec.write(raw, tmp_path / f"{k}{codec.suffix}", {"seed": k})
        assert read_recipe(tmp_path / f"{k}{codec.suffix}") == {"seed": k}
    codec.preview(raws).save(tmp_path / "grid.png")
    data = open_data(str(tmp_path), DataConfig(frames=6))
    assert data.spec == codec.spec and data.codec == codec
    row = data.splits["train"].fetch(torch.arange(1))[0][0]
    close = [np.abs(codec.decode(row).astype(int) - raw).mean() for raw in raws]
    assert min(close) <= (0 if format == "gif" else 6) and sorted(close)[1] > min(close)


def test_previews_show_frames_in_order():
    codec = VideoCodec(channels=1, frames=16, size=(12, 12))
    sheet = np.array(codec.preview([clip(0, 16), clip(1, 16)]))
    still = np.array(codec.preview([np.repeat(clip(0, 1), 16, 0)] * 2))
    assert sheet.shape == still.shape
    side = 12 * (48 // 12) + 1
    gap = side // 8
    tiles = [sheet[gap : gap + side - 1, gap + k * side :][:, : side - 1] for k in range(8)]
    assert [int(tile[-1, 0, 0]) for tile in tiles] == [5 * t for t in range(0, 16, 2)]
    film, rate = read(codec.animate([clip(0, 16), clip(1, 16)]))
    assert len(film) == 16 and rate == codec.rate
    with pytest.raises(DataError, match=r"a clip of uint8 \(3, 12, 12, 1\) is not one of"):
        codec.encode(clip(0, 3))


# -- moving digits --------------------------------------------------------------------------------


@pytest.fixture
def digits(monkeypatch):
    """Stands for MNIST: ten digits, each a bright box of its own size, and no class of theirs."""
    x = torch.zeros(10, 1, 28, 28, dtype=torch.uint8)
    for k in range(10):
        x[k, 0, 4 : 14 + k, 6:20] = 250
    split = TensorSplit(x, torch.arange(10))
    spec = Grid(channels=1, size=(28, 28))
    splits = dict.fromkeys(("train", "validation", "test"), split)
    mnist = DataSet("mnist", "mnist", spec, None, None, splits)  # type: ignore[arg-type]

    def open_moving(name, **options):
        count = 2 if name.endswith("2") else 1
        config = DataConfig(source=name, **options)
        return moving_digits.open_moving_digits(config, lambda: mnist, digits=count)

    return open_moving


def test_moving_digits_are_a_function_of_their_number(digits):
    first, second = (digits("moving-digits").splits["test"] for _ in range(2))
    some = torch.tensor([5, 900, 5])
    x, y = first.fetch(some)
    assert x.shape == (3, 1, 16, 32, 32) and x.dtype == torch.uint8
    assert torch.equal(x[0], x[2]) and not torch.equal(x[0], x[1])
    assert torch.equal(second.fetch(some)[0], x) and torch.equal(first.fetch(some[1:])[0], x[1:])
    assert y.tolist() == [int(first.y[5]), int(first.y[900]), int(first.y[5])]
    train = digits("moving-digits").splits["train"].fetch(some)[0]
    assert not torch.equal(train[0], x[0])


@pytest.mark.parametrize("side", [32, 64])
def test_digits_stay_inside_and_keep_their_speed_between_bounces(digits, side):
    split = digits("moving-digits", resize=side, frames=24).splits["train"]
    rows = torch.arange(200)
    x, _ = split.fetch(rows)
    assert x.shape == (200, 1, 24, side, side)
    light = x.double().sum((1, 3, 4))
    # Nothing is cut off at an edge: all of the digit's light is there in each frame.
    assert float((light / light[:, :1] - 1).abs().max()) < 0.01
    place = torch.arange(side).double()
    weight = x.double()[:, 0]
    centre = torch.stack(
        [(weight.sum(3) * place).sum(2) / light, (weight.sum(2) * place).sum(2) / light], 2
    )
    way = centre.diff(dim=1)
    speed = split.velocity[rows, 0].double().abs()[:, None]
    # A way of a frame is the speed, up to rounding to eighths, or less in the frame of a bounce.
    assert float((way.abs() - speed).max()) < 0.14
    straight = ((way.abs() - speed).abs() < 0.14).double().mean()
    assert 0.8 < float(straight) < 1
    lengths = split.velocity[:, 0].norm(dim=1) / side
    low, high = moving_digits.SPEEDS
    assert low <= float(lengths.min()) and float(lengths.max()) <= high


@given(
    start=st.floats(0, 18),
    velocity=st.floats(-40, 40),
    room=st.floats(18, 40),
)
@quick
def test_places_are_those_of_stepwise_bouncing(start, velocity, room):
    times = torch.arange(30, dtype=torch.float64)
    start, velocity = torch.tensor([start]).double(), torch.tensor([velocity]).double()
    found = moving_digits.places(start, velocity, times, room)[0]
    at, speed = float(start), float(velocity)
    for place in found.tolist():
        assert place == pytest.approx(at, abs=1e-6)
        at += speed
        while not 0 <= at <= room:
            at, speed = (-at, -speed) if at < 0 else (2 * room - at, -speed)


def test_digits_between_pixels_and_two_of_them(digits):
    box = torch.full((1, 4, 4), 200.0)
    frame = moving_digits.draw(box, torch.tensor([[[1.0, 2.5]]]), 8)[0, 0]
    expected = torch.zeros(8, 8)
    expected[1:5, 2:7] = torch.tensor([100.0, 200, 200, 200, 100])
    assert torch.equal(frame, expected)
    data = digits("moving-digits-2", frame_step=2)
    assert data.condition is None and data.variant.endswith("16 frames of 32 px, 2 times as fast")
    split = data.splits["train"]
    x, _ = split.fetch(torch.arange(50))
    alone = [
        moving_digits.draw(
            split.pool[split.picks[:50, k]], split.corners(torch.arange(50))[:, k], 32
        )
        for k in range(2)
    ]
    assert torch.equal(x[:, 0].float(), torch.maximum(*alone).round())


def test_options_of_moving_digits(digits, monkeypatch, tmp_path):
    for options, match in (
        ({"resize": 48}, r"data\.resize = 48, but moving-digits are drawn at 32 or 64 px"),
        ({"crop": 8}, r"data\.crop does not go with moving-digits"),
        ({"binarize": "once"}, r"data\.binarize is for images"),
    ):
        with pytest.raises(ConfigError, match=match):
            digits("moving-digits", **options)
    chosen = digits("moving-digits", classes=("3", "7"), limit=100)
    assert chosen.condition.names == ("3", "7") and len(chosen.splits["train"]) == 100
    x, y = chosen.splits["train"].fetch(torch.arange(100))
    assert set(y.tolist()) == {0, 1}
    heights = (x[:, 0, 0].amax(2) > 0).sum(1)
    assert float(heights[y == 1].float().mean()) > float(heights[y == 0].float().mean()) + 1
    monkeypatch.setenv("POIESIS_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "roots", lambda: [tmp_path])
    with pytest.raises(DataError, match="the data set 'mnist' is not in"):
        open_data("moving-digits")


# -- judging --------------------------------------------------------------------------------------


def test_motion_is_grey_where_nothing_moves():
    frame = torch.randint(0, 256, (2, 3, 8, 8)).to(torch.uint8)
    assert (motion(frame, frame) == 127).all()
    white, black = torch.full((1, 1, 4, 4), 255).to(torch.uint8), torch.zeros(1, 1, 4, 4).byte()
    assert (motion(black, white) == 255).all() and (motion(white, black) == 0).all()


def test_features_of_clips_know_order_only_by_motion(digits):
    x, _ = digits("moving-digits").splits["train"].fetch(torch.arange(3))
    extractor = get_extractor("random")
    still = x[:, :, :1].expand(-1, -1, 16, -1, -1)
    found = clip_features(still, extractor)
    assert found.shape == (3, 2 * extractor.dims)
    assert torch.allclose(found[:, : extractor.dims], extractor.features(x[:, :, 0]), atol=1e-5)
    grey = extractor.features(torch.full((1, 1, 32, 32), 127, dtype=torch.uint8))
    assert torch.allclose(found[:, extractor.dims :], grey.expand(3, -1), atol=1e-5)
    assert clip_features(x[:, :, :2], extractor).shape == found.shape


def test_shuffled_and_frozen_clips_are_worse_than_real_ones(digits):
    split = digits("moving-digits").splits["train"]
    real, _ = split.fetch(torch.arange(200))
    other, _ = split.fetch(torch.arange(200, 400))
    shuffled = other[:, :, torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    frozen = other[:, :, :1].expand(-1, -1, 16, -1, -1)

    def judged(clips):
        about = {"data": "moving-digits", "variant": "", "split": "train"}
        found = evaluate_videos(clips, real, get_extractor("random"), **about)
        return {number.name: number for number in found}

    good, mixed, still = judged(other), judged(shuffled), judged(frozen)
    names = ["frame_fid", "motion_fid", "precision", "recall", "density", "coverage"]
    assert list(good) == names
    for bad in (mixed, still):
        assert bad["motion_fid"].interval[0] > 3 * good["motion_fid"].interval[1]
        assert bad["coverage"].value < good["coverage"].value
        # Single frames are the same: it is blind to the order.
        assert bad["frame_fid"].interval[0] < good["frame_fid"].interval[1]
    with pytest.raises(DataError, match="5 generated clips: judging needs at least 10"):
        judged(other[:5])
