"""WAV files: 16-bit PCM samples and the sampling rate."""

from __future__ import annotations

import io
import wave

import numpy as np

from poiesis.files._plain import bad

WAVE_SUFFIXES = (".wav", ".wave")


def parse_wav(data: bytes, name: object) -> tuple[int, np.ndarray]:
    """Return (samples a second, int16 samples (n, channels)) of the bytes of a WAV file.

    Raises DataError for bytes that are none, for other than 16-bit PCM, and for truncated ones.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            claimed = file.getnframes()
            frames = file.readframes(claimed)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        what = f"is no PCM WAV file ({error or 'it ends too early'})"
        raise bad(name, what, "convert it to 16-bit PCM") from None
    if width != 2:
        raise bad(name, f"has samples of {8 * width} bits", "convert it to 16-bit PCM")
    if not rate or len(frames) != 2 * channels * claimed:
        have = len(frames) // (2 * channels)
        raise bad(name, f"its header says {claimed:,} samples at {rate} Hz, it has {have:,}")
    return rate, np.frombuffer(frames, "<i2").astype(np.int16).reshape(-1, channels)


def make_wav(samples: np.ndarray, rate: int) -> bytes:
    """Return the bytes of a mono WAV file of int16 samples (n,)."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()
