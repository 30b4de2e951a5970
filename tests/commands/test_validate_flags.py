"""fairseq-validate refuses flags that would do nothing without others."""

from __future__ import annotations

import pytest

from fairseq.errors import ConfigError
from fairseq_cli import validate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "x.png"], "--plot belongs to --per-sample"),
        (["--top-k", "3"], "--top-k belongs to --write-teacher-cache"),
        (["--cache-force"], "--cache-force belongs to --write-teacher-cache"),
        (["--pseudo-ppl-blocks", "3"], "--pseudo-ppl-blocks belongs to --pseudo-ppl"),
        (["--pseudo-ppl", "--at-lengths", "8"], "run one at a time"),
        (["--pseudo-ppl", "--pseudo-ppl-blocks", "0"], "must be at least 1"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate.run(["nowhere", "--path", "nothing.pt", *words])
