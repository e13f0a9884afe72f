"""Codecs: raw sample to tensor and back, to files and to preview pictures; one module each."""

from __future__ import annotations

from typing import Any

from poiesis.data.codecs.audio import AudioCodec
from poiesis.data.codecs.image import ImageCodec
from poiesis.data.codecs.spectrogram import SpectrogramCodec
from poiesis.data.codecs.text import TextCodec
from poiesis.data.codecs.vector import VectorCodec
from poiesis.data.codecs.video import VideoCodec
from poiesis.errors import DataError

__all__ = [
    "AudioCodec",
    "ImageCodec",
    "SpectrogramCodec",
    "TextCodec",
    "VectorCodec",
    "VideoCodec",
    "codec_from_json",
]

AnyCodec = AudioCodec | ImageCodec | TextCodec | VectorCodec | VideoCodec
_KINDS = {
    "audio": AudioCodec,
    "image": ImageCodec,
    "spectrogram": SpectrogramCodec,
    "text": TextCodec,
    "vector": VectorCodec,
    "video": VideoCodec,
}


def codec_from_json(data: dict[str, Any]) -> AnyCodec:
    """Return the codec that ``to_json`` described; raises DataError."""
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise DataError(f"unknown codec {kind!r}; known: {', '.join(_KINDS)}")
    try:
        return _KINDS[kind].from_json(fields)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"the description of the {kind} codec is damaged ({error})") from None
