"""Data: sources (where files are), codecs (raw to tensor and back), views, loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poiesis.data.config import DataConfig
    from poiesis.data.dataset import DataSet

__all__ = ["open_data"]


def open_data(source: str, config: DataConfig | None = None) -> DataSet:
    """Open a data set by name or path and return a `DataSet`; raises DataError.

    config: a `DataConfig`; its source is replaced by `source`.
    """
    from poiesis.data.sources import open_data

    return open_data(source, config)
