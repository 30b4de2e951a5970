from fairseq.training.trainer import *  # noqa: F403, D100 - for editors; see fairseq/aliases.py
