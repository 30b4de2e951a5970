"""The configuration classes under the import path that plug-ins type."""

from fairseq.config.schema import II, ChoiceEnum, FairseqDataclass, option

__all__ = ["II", "ChoiceEnum", "FairseqDataclass", "option"]
