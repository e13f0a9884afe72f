"""`poiesis inpaint`: parts of pictures filled in."""

from poiesis.cli.edit import InpaintArgs
from poiesis.cli.edit import inpaint as run

__all__ = ["InpaintArgs", "run"]
