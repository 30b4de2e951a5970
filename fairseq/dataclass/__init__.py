"""The configuration classes under the import path that plug-ins use."""

from fairseq.config.schema import II, ChoiceEnum, FairseqDataclass

__all__ = ["II", "ChoiceEnum", "FairseqDataclass"]
