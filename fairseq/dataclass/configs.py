"""The shared sections under the import path that plug-ins use."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.config.schema import FairseqDataclass
from fairseq.config.sections import (
    CheckpointConfig,
    CommonConfig,
    CommonEvalConfig,
    DatasetConfig,
    DistributedTrainingConfig,
    EMAConfig,
    EvalLMConfig,
    FairseqConfig,
    GenerationConfig,
    InteractiveConfig,
    OptimizationConfig,
)

__all__ = [
    "CheckpointConfig",
    "CommonConfig",
    "CommonEvalConfig",
    "DatasetConfig",
    "DistributedTrainingConfig",
    "EMAConfig",
    "EvalLMConfig",
    "FairseqBMUFConfig",
    "FairseqConfig",
    "FairseqDataclass",
    "GenerationConfig",
    "InteractiveConfig",
    "OptimizationConfig",
]


@dataclass
class FairseqBMUFConfig(FairseqDataclass):
    """A name that plug-ins import; BMUF itself is not supported."""
