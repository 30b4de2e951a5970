"""The commands: each module parses, builds and calls; the logic lives in ``fairseq``."""
