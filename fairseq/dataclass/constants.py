"""The choices of the original's flags, as enum types whose members equal their strings."""

from __future__ import annotations

from typing import Any

from fairseq.config.schema import ChoiceEnum, choices_of, field_types
from fairseq.config.sections import DatasetConfig, DistributedTrainingConfig, LogFormat


def _enum(kind: Any) -> Any:
    return ChoiceEnum(choices_of(kind) or [])


LOG_FORMAT_CHOICES = _enum(LogFormat)
DATASET_IMPL_CHOICES = _enum(field_types(DatasetConfig)["dataset_impl"])
DDP_BACKEND_CHOICES = _enum(field_types(DistributedTrainingConfig)["ddp_backend"])
DDP_COMM_HOOK_CHOICES = _enum(field_types(DistributedTrainingConfig)["ddp_comm_hook"])
ZERO_SHARDING_CHOICES = _enum(field_types(DistributedTrainingConfig)["zero_sharding"])
