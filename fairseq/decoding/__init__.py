"""Choosing tokens: search, beams, scores."""
