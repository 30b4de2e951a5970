"""Datasets: items of tokens, and the wrappers that change them."""
