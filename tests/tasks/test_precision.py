"""Who asks for bf16 on a processor without units for it is told what it costs there."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairseq.tasks.precision import product_seconds, warn_if_slow

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def told(caplog: pytest.LogCaptureFixture, device: torch.device, took: float, **flags: Any) -> str:
    """Return what is said if a product takes so many seconds in bf16, and 2 ms in fp32."""
    known = {"bf16": False, "amp": False, "amp_dtype": "auto"}
    cfg: Any = SimpleNamespace(common=SimpleNamespace(**{**known, **flags}))
    asked: list[torch.dtype] = []

    def seconds(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return {torch.bfloat16: took, torch.float32: 0.002}[dtype]

    with caplog.at_level(logging.WARNING):
        warn_if_slow(cfg, device, seconds)
    assert set(asked) in (set(), {torch.bfloat16, torch.float32})
    text = caplog.text if asked else f"not measured{caplog.text}"
    caplog.clear()
    return text


@pytest.mark.parametrize("flag", ["bf16", "amp"])
def test_a_slow_type_is_told_with_its_measure(flag: str, caplog: pytest.LogCaptureFixture) -> None:
    text = told(caplog, CPU, 0.17, **{flag: True})
    assert f"--{flag} slows" in text and "85.0 times" in text and "170.00 against 2.00 ms" in text
    assert told(caplog, CPU, 0.001, **{flag: True}) == ""  # has units for it
    assert told(caplog, CPU, 0.0022, **{flag: True}) == ""  # within the noise


def test_nobody_else_is_kept_waiting(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, CPU, 0.17) == "not measured"
    assert told(caplog, CUDA, 0.17, bf16=True) == "not measured"
    assert told(caplog, CPU, 0.17, amp=True, amp_dtype="fp16") == "not measured"


def test_the_measure_is_a_time_that_a_product_can_take() -> None:
    seconds = product_seconds(torch.float32)
    flop = 2 * 256**3
    assert 1e6 < flop / seconds < 1e13  # from a busy machine to one that does not exist yet
