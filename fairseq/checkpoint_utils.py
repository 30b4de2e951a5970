from fairseq.checkpoint import *  # noqa: F403, D100 - for editors; see fairseq/aliases.py
