"""torch.hub entry points: every published model by name, and ``bpe`` / ``tokenizer``."""

import functools
import importlib.util

from fairseq.models import MODEL_REGISTRY
from fairseq.plugin_names.roberta import CamembertModel, GottbertModel, XLMRModel

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


_registered = [MODEL_REGISTRY[_model] for _model in list(MODEL_REGISTRY)]
for _cls in [*_registered, XLMRModel, CamembertModel, GottbertModel]:
    for _name in _cls.hub_models():
        globals()[_name] = functools.partial(_cls.from_pretrained, _name)
