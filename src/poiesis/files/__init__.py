"""Reading what strangers wrote: sizes are checked before memory is taken, nothing is executed.

Every function raises DataError with one line that names the file, what is wrong with it and the
way out; no other exception leaves this room, whatever the bytes. Archives are streamed member by
member and never unpacked to disk. `name` arguments are what messages call the data.
"""

from poiesis.files._archives import Zip, safe_member, tar_members
from poiesis.files._arrays import parse_npy, read_idx, read_npz, read_safetensors
from poiesis.files._images import IMAGE_SUFFIXES, MAX_PIXELS, image_header, read_image
from poiesis.files._pickles import unpickle
from poiesis.files._plain import decode_text, open_stream, read_bytes, read_json, read_text
from poiesis.files._tables import TABLE_SUFFIXES, Table, is_table, read_table
from poiesis.files._videos import (
    ANIMATION_SUFFIXES,
    FILM_SUFFIXES,
    USUAL_RATE,
    check_ffmpeg,
    is_animation,
    make_gif,
    make_mp4,
    pictures_of,
    read_clip,
)
from poiesis.files._waves import WAVE_SUFFIXES, make_wav, parse_wav

__all__ = [
    "ANIMATION_SUFFIXES",
    "FILM_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "TABLE_SUFFIXES",
    "USUAL_RATE",
    "WAVE_SUFFIXES",
    "Table",
    "Zip",
    "check_ffmpeg",
    "decode_text",
    "image_header",
    "is_animation",
    "is_table",
    "make_gif",
    "make_mp4",
    "make_wav",
    "open_stream",
    "parse_npy",
    "parse_wav",
    "pictures_of",
    "read_bytes",
    "read_clip",
    "read_idx",
    "read_image",
    "read_json",
    "read_npz",
    "read_safetensors",
    "read_table",
    "read_text",
    "safe_member",
    "tar_members",
    "unpickle",
]
