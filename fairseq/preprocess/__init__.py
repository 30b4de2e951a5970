"""From text to pieces, a dictionary and binary files.

``fairseq-bpe`` needs the pieces alone, and starts without what writes binary files.
"""

from __future__ import annotations

from fairseq.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, dict.fromkeys(("OutputExistsError", "preprocess"), "fairseq.preprocess.corpus")
)
