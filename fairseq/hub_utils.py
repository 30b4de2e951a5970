from fairseq.hub.load import *  # noqa: F403, D100 - for editors; see fairseq/aliases.py
