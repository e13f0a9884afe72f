"""Moving pictures: animations through Pillow, films of any container through an ffmpeg on the PATH.

A clip is decoded frame by frame, and what a frame becomes is up to the caller, so that memory
follows what is kept. Shape letters: t frames, h height, w width, c channels.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from poiesis.errors import DataError, RunError
from poiesis.files._images import MAX_PIXELS
from poiesis.files._plain import SKIP, bad, exactly

ANIMATION_SUFFIXES = (".gif", ".apng", ".webp", ".png")
"""Endings of files that may hold an animation."""
FILM_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
USUAL_RATE = 10.0
"""Frames a second where a file does not say."""
INSTALL = "install it (apt install ffmpeg, brew install ffmpeg, winget install ffmpeg)"
_FORMATS = ("GIF", "PNG", "WEBP")
# What the endings above hold: no playlist that would name other files or addresses.
_SAFE = (
    *("-protocol_whitelist", "file"),
    *("-format_whitelist", "mov,matroska,avi,mpeg,mpegts,mpegvideo"),
)
_MOST_REPEATS = 1000

Pixels = Callable[[Image.Image], np.ndarray]
"""Takes a frame, returns what is kept of it, uint8 (h, w, c)."""


def is_animation(data: bytes) -> bool:
    """Return whether these are the bytes of a picture of several frames."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # decoders of hostile bytes raise anything
        return False


def read_clip(data: bytes, name: str, pixels: Pixels, *, most: int) -> tuple[np.ndarray, float]:
    """Return the frames of a clip, uint8 (t, h, w, c), and how many of them make a second.

    name: its ending says whether ffmpeg is needed. most: bytes of kept frames above which a clip is
    refused. In an animation a frame shown k times as long as usual counts k times; a film's
    frames are evenly spaced. Raises DataError.
    """
    film = name.lower().endswith(FILM_SUFFIXES)
    kept: list[np.ndarray] = []
    times: list[float] = []
    size = 0
    for frame, milliseconds in _film(data, name) if film else _animation(data, name):
        kept.append(pixels(frame))
        times.append(milliseconds)
        size += kept[-1].nbytes
        if size > most:
            raise bad(name, f"holds over {most / 1e9:.1f} GB of frames", f"cut it, or {SKIP}")
    usual = statistics.median(times) or 1000 / USUAL_RATE
    repeats = [max(1, round(time / usual)) for time in times]
    if sum(repeats) > _MOST_REPEATS + len(kept):
        raise bad(name, "shows a frame for very long", f"cut it, or {SKIP}")
    frames = [frame for frame, count in zip(kept, repeats, strict=True) for _ in range(count)]
    return np.stack(frames), 1000 / usual


def _animation(data: bytes, name: str) -> Iterator[tuple[Image.Image, float]]:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        frames = getattr(image, "n_frames", 1)
    except Exception:
        raise bad(name, f"is not a readable {', '.join(_FORMATS)} animation", SKIP) from None
    if width * height > MAX_PIXELS:
        what = f"has frames of {width} x {height} pixels, more than {MAX_PIXELS:,}"
        raise bad(name, what, f"shrink it, or {SKIP}")
    for number in range(frames):
        try:
            image.seek(number)
            image.load()
            frame, time = image.copy(), float(image.info.get("duration") or 0)
        except Exception:
            raise bad(name, "is a broken or truncated animation", SKIP) from None
        yield frame, time


def _film(data: bytes, name: str) -> Iterator[tuple[Image.Image, float]]:
    if shutil.which("ffmpeg") is None:
        raise bad(
            name, "reading it needs ffmpeg, which is not on the PATH", f"{INSTALL}, or use GIF"
        )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        path = Path(folder) / "film"
        path.write_bytes(data)
        time = 1000 / _rate(path)
        command = ["ffmpeg", "-v", "error", "-nostdin", *_SAFE, "-i", str(path), "-map", "0:v:0"]
        command += ["-f", "image2pipe", "-c:v", "ppm", "-"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process:
            try:
                assert process.stdout is not None
                some = False
                while (frame := _ppm(process.stdout, name)) is not None:
                    some = True
                    yield frame, time
            finally:
                process.kill()
        if not some:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["no frames"]
            raise bad(name, f"ffmpeg can't read it ({lines[-1].replace(str(path), 'it')})", SKIP)


def _ppm(stream: IO[bytes], name: str) -> Image.Image | None:
    """Return the next picture of a stream of binary PPM files, None at its end."""
    fields: list[bytes] = []
    while len(fields) < 4:
        line = stream.readline(64)
        if not line:
            return None
        fields += line.split()
    width, height = int(fields[1]), int(fields[2])
    if width * height > MAX_PIXELS:
        what = f"has frames of {width} x {height} pixels, more than {MAX_PIXELS:,}"
        raise bad(name, what, f"shrink it, or {SKIP}")
    raw = exactly(stream, 3 * width * height)
    if len(raw) < 3 * width * height:
        return None
    return Image.frombytes("RGB", (width, height), raw)


def _rate(path: Path) -> float:
    """Return the frames a second that ffprobe tells of, if it is there and does."""
    if shutil.which("ffprobe") is None:
        return USUAL_RATE
    command = ["ffprobe", "-v", "error", *_SAFE, "-select_streams", "v:0", "-of", "json"]
    command += ["-show_entries", "stream=avg_frame_rate", str(path)]
    done = subprocess.run(command, capture_output=True)
    try:
        over, _, under = json.loads(done.stdout)["streams"][0]["avg_frame_rate"].partition("/")
        rate = float(over) / float(under or 1)
    except (ValueError, LookupError, TypeError, ZeroDivisionError):
        return USUAL_RATE
    return rate if 0 < rate < 1000 else USUAL_RATE


# -- writing --------------------------------------------------------------------------------------


def make_gif(frames: Sequence[Image.Image], rate: float) -> bytes:
    """Return the bytes of an endless GIF of grey or RGB frames of one size, each kept apart.

    Grey is exact; of colours each frame has a palette of its own, of at most 256. Frames last a
    whole number of hundredths of a second, at least two: viewers slow down faster ones.
    """
    delay = max(2, round(100 / rate))
    width, height = frames[0].size
    grey = all(frame.mode == "L" for frame in frames)
    out = io.BytesIO()
    # Seven stands for a table of 256 colours, 0x80 for its being there.
    flags = 0xF7 if grey else 0x70
    out.write(b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0))
    out.write(_GREYS if grey else b"")
    out.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
    for frame in frames:
        table, data = _gif_image(frame)
        out.write(b"\x21\xf9\x04\x00" + struct.pack("<H", delay) + b"\x00\x00")
        out.write(b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0 if grey else 0x87))
        out.write((b"" if grey else table) + data)
    out.write(b"\x3b")
    return out.getvalue()


_GREYS = bytes(level for level in range(256) for _ in range(3))


def _gif_image(frame: Image.Image) -> tuple[bytes, bytes]:
    """Return the table of 256 colours and the compressed pixels of a frame, as Pillow encodes it.

    Pillow itself drops a frame that equals the one before, so that a clip would come back shorter.
    """
    if frame.mode == "L":
        # As indices: Pillow makes the table of grey smaller, and numbers its levels anew.
        indices = Image.frombytes("P", frame.size, frame.tobytes())
        indices.putpalette(_GREYS)
    else:
        indices = frame.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        used = indices.getpalette() or []
        # A table that is filled up with white is none of greys in order, which readers take for L.
        indices.putpalette(bytes(used) + b"\xff" * (768 - len(used)))
    buffer = io.BytesIO()
    indices.save(buffer, "GIF", interlace=0, optimize=False)
    whole = buffer.getvalue()
    place = 13 + 3 * 2 ** ((whole[10] & 0x07) + 1)
    table = whole[13:place]
    while whole[place] == 0x21:  # extensions: a label, then blocks led by their length
        place += 2
        while whole[place]:
            place += whole[place] + 1
        place += 1
    return table + b"\xff" * (768 - len(table)), whole[place + 10 : -1]


def check_ffmpeg() -> None:
    """Raise DataError where there is no ffmpeg to write a film with."""
    if shutil.which("ffmpeg") is None:
        raise DataError(f"writing .mp4 needs ffmpeg on the PATH: {INSTALL}, or write .gif")


def make_mp4(frames: Sequence[Image.Image], rate: float) -> bytes:
    """Return the bytes of a film of frames of one size, which ffmpeg makes.

    It plays everywhere where width and height are even: then colour has half the resolution. Raises
    DataError without ffmpeg, RunError where it fails.
    """
    check_ffmpeg()
    width, height = frames[0].size
    half = width % 2 == height % 2 == 0
    raw = b"".join(frame.convert("RGB").tobytes() for frame in frames)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
        command += ["-pix_fmt", "yuv420p" if half else "yuv444p", "-threads", "1"]
        command += ["-qp", "10", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
        command += ["-movflags", "+faststart", str(film)]
        done = subprocess.run(command, input=raw, capture_output=True)
        if done.returncode or not film.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise RunError(f"ffmpeg could not write the film ({said[-1]}); write .gif instead")
        return film.read_bytes()


def pictures_of(clip: np.ndarray) -> list[Image.Image]:
    """Return the frames of a clip uint8 (t, h, w, c), c 1 or 3, as pictures."""
    return [Image.fromarray(frame[..., 0] if clip.shape[3] == 1 else frame) for frame in clip]
