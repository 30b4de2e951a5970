"""The configuration classes under the import path that plug-ins type."""

from fairseq.config.schema import II, ChoiceEnum, FairseqDataclass

__all__ = ["II", "ChoiceEnum", "FairseqDataclass"]
