"""How data is read: the `data` part of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poiesis.config import check

__all__ = ["DataConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data is and how it is read."""

    source: str = "digits"
    """Name (digits, shapes, mnist, fashion-mnist, cifar10, cifar10-jpeg, moving-digits, weizmann64,
    python-stdlib, ring, grid, swirl, moons, hf:OWNER/NAME) or path of an image folder, a .zip of
    images, a folder of clips, a text file or a folder of text files, a table of numbers (.csv,
    .tsv, .npy, .npz, .parquet), a .wav file or a folder of them."""
    resize: int | None = None
    """Resize the shorter side of images to this many pixels (area-averaged), then crop."""
    crop: int | None = None
    """Cut the centre square of this many pixels out of images (default: --data.resize's size)."""
    channels: Literal[1, 3, 4] | None = None
    """Convert images to grey (1), RGB (3) or RGBA (4); average the channels of audio (1)."""
    binarize: Literal["none", "once", "threshold"] = "none"
    """Make images binary: once = a pixel's grey value is the probability of a 1, drawn once with
    seed 0; threshold = 1 from half the maximum on."""
    tokenizer: Literal["characters", "bytes", "bpe"] = "characters"
    """How text becomes tokens."""
    vocabulary: int = 2048
    """Number of tokens that --data.tokenizer bpe learns."""
    classes: tuple[str, ...] = ()
    """Use the images of these classes alone, by name (default: all): a model of what is normal,
    for poiesis detect."""
    captions: bool = False
    """Take the names of classes as captions, for models that learn from text."""
    pairs: Literal["none", "left-to-right", "right-to-left"] = "none"
    """Each image file holds two pictures side by side: learn the right one given the left one, or
    the other way round, for models that learn from pictures. Options such as resize go for each."""
    augment: tuple[str, ...] = ()
    """Random changes of training images, e.g. flip, shift."""
    label: str | None = None
    """Column of a table that holds the class of each row. For WAV files without folders: which part
    of names such as 7_theo_12.wav is the class, counted from 1; none is 1 where all names have as
    many parts and end in a number, 0 is no class."""
    attributes: str = ""
    """Yes-or-no properties to condition on, several of which a sample may have. For a table: its
    columns of 0 and 1, separated by commas. For images: a table whose first column names the files
    and whose others are 0 or 1 (or -1 and 1)."""
    drop: str = ""
    """Columns of a table to leave out, separated by commas."""
    length: int = 1024
    """Samples of the windows that audio is cut into."""
    frames: int = 16
    """Frames of the windows that video is cut into."""
    frame_step: int = 1
    """Frames of a clip from one frame of a window to the next: above 1, a window sees longer."""
    clips: Literal["files", "strips", "folders"] = "files"
    """What a clip of video is: a file (GIF, animated PNG or WebP; MP4 and others with ffmpeg), an
    image that is a strip of square frames from left to right, or a folder of numbered images."""
    audio: Literal["waveform", "spectrogram"] = "waveform"
    """What models learn of audio: its samples, or a picture of loudness by pitch and time, which
    every model of images can learn and which is made into sound again."""
    validation: float | None = None
    """Share of the data held out to watch training (default: 0.1; 5,000 images of MNIST)."""
    split_seed: int = 0
    """Seed of the train, validation and test split."""
    limit: int | None = None
    """Use at most this many training samples (characters, for text)."""
    skip_bad: bool = False
    """Leave out files (of a table: rows) that can't be read, count and list them, instead of
    stopping."""
    memory: float = 4.0
    """Gigabytes of decoded data up to which everything is held in memory; larger sets stream."""
    workers: int = 2
    """Threads that read a streamed set."""

    def __post_init__(self) -> None:
        check("data.resize", self.resize, low=1, high=8192)
        check("data.crop", self.crop, low=1, high=8192)
        check("data.vocabulary", self.vocabulary, low=257, high=1_000_000)
        check("data.length", self.length, low=16, high=1_048_576)
        check("data.frames", self.frames, low=2, high=4096)
        check("data.frame_step", self.frame_step, low=1, high=1000)
        check("data.validation", self.validation, low=0, high=0.9)
        check("data.limit", self.limit, low=2)
        check("data.memory", self.memory, low=0)
        check("data.workers", self.workers, low=1, high=256)
