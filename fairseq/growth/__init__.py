"""Growth: a small model becomes the start of a larger one (or a large one of a smaller).

A method is a pure function (state, source config, target config, options) -> state, one row of the
catalogue; see :mod:`fairseq.growth.methods`.
"""
