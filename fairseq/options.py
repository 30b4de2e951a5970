from fairseq.config.options import *  # noqa: F403, D100 - for editors; see fairseq/aliases.py
