"""`poiesis upscale`: pictures made larger."""

from poiesis.cli.translate import UpscaleArgs
from poiesis.cli.translate import upscale as run

__all__ = ["UpscaleArgs", "run"]
