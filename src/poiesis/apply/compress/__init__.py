"""Compression by what a model learned: lossless at the rate of its likelihood, or lossy.

`archive` has the verbs, `container` the file format, `chunks` chooses among the coders `lossless`
(bits back), `autoregressive` and `lossy`, which push on the stack of `coder`.
"""

from poiesis.apply.compress.archive import Compressed, Decompressed, compress, decompress

__all__ = ["Compressed", "Decompressed", "compress", "decompress"]
