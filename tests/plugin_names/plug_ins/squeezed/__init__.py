"""A RoBERTa whose attention looks at few summaries of the keys, not at all of them."""

from . import model  # noqa: F401
