"""torch.hub entry points: every published model by name, and ``bpe`` / ``tokenizer``."""

import functools
import importlib.util

from fairseq.models import MODEL_REGISTRY

dependencies = ["torch", "numpy"]

_missing = [name for name in ("torch", "numpy") if importlib.util.find_spec(name) is None]
if _missing:
    raise RuntimeError(f"missing packages: {', '.join(_missing)}")


def bpe(name, **kwargs):
    """Return the subword encoder called ``name``."""
    from fairseq.hub.load import BPEHubInterface

    return BPEHubInterface(name, **kwargs)


def tokenizer(name, **kwargs):
    """Return the tokenizer called ``name``."""
    from fairseq.hub.load import TokenizerHubInterface

    return TokenizerHubInterface(name, **kwargs)


for _model in list(MODEL_REGISTRY):
    _cls = MODEL_REGISTRY[_model]
    for _name in _cls.hub_models():
        globals()[_name] = functools.partial(_cls.from_pretrained, _name)
