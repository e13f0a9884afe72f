"""Data: sources (where files are), codecs (raw to tensor and back), views, loaders."""

from __future__ import annotations

from typing import Any

__all__ = ["open_data"]


def open_data(source: str, config: Any = None) -> Any:
    """Open a data set by name or path and return a `DataSet`; raises DataError.

    config: a `DataConfig`; its source is replaced by `source`.
    """
    from poiesis.data.sources import open_data

    return open_data(source, config)
