"""Training and validation against what the original fairseq logged, on its own data."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import SMALL, content, digest, make_corpus, train

from fairseq.config import options
from fairseq.evaluation import validate
from fairseq.hub.load import load_model_ensemble_and_task
from fairseq.logging.sinks import read_jsonl

# The flags of compat/train_log/fb_log50_nodrop.cmd.txt and of compat/checkpoints/fb_resume25.
COMMAND: dict[str, Any] = {
    "task": "masked_lm",
    "criterion": "masked_lm",
    "arch": "roberta",
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
    "max_positions": 64,
    "tokens_per_sample": 64,
    "sample_break_mode": "none",
    "optimizer": "adam",
    "adam_betas": "(0.9,0.98)",
    "adam_eps": 1e-6,
    "clip_norm": 0.0,
    "weight_decay": 0.01,
    "batch_size": 32,
    "update_freq": [1],
    "cpu": True,
    "seed": 1,
    "no_epoch_checkpoints": True,
    "num_workers": 0,
    "lr_scheduler": "polynomial_decay",
    "lr": [0.002],
    "warmup_updates": 20,
    "total_num_update": 50,
    "max_update": 50,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "log_interval": 1,
    "log_format": "none",
}
# The log shows three decimals, of which the last may be rounded the other way.
LOSS_TOLERANCE = 1.5e-3


def logged(path: Path) -> dict[int, dict[str, str]]:
    """Return the original's records of single updates."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    inner = [r for r in records if r.get("logger", "train_inner") == "train_inner" and "loss" in r]
    return {int(record["num_updates"]): record for record in inner}


def ours(save_dir: Path, tag: str = "train_inner") -> dict[int, dict[str, Any]]:
    return {r["update"]: r for r in read_jsonl(save_dir / "metrics.jsonl") if r["tag"] == tag}


def check_log(save_dir: Path, expected: dict[int, dict[str, str]]) -> None:
    found = ours(save_dir)
    assert found.keys() == expected.keys()
    for update, record in expected.items():
        for key, tolerance in (("loss", LOSS_TOLERANCE), ("gnorm", 2e-3), ("lr", 1e-8)):
            assert abs(found[update][key] - float(record[key])) <= tolerance, (update, key)
        for key in ("wpb", "bsz"):
            assert found[update][key] == float(record[key]), (update, key)


def check_parameters(save_dir: Path, golden: Path) -> None:
    checkpoint = content(save_dir / "checkpoint_last.pt")
    state, steps = checkpoint["model"], checkpoint["last_optimizer_state"]["state"]
    with np.load(golden) as expected:
        assert all(int(steps[n]["step"]) == expected["adam_step"].item() for n in steps)
        names = {key.rsplit("|", 1)[0] for key in expected.files} - {"adam_step"}
        assert names == set(state)
        for name in sorted(names):
            tensor = state[name].double()
            norm, head = expected[f"{name}|norm"], expected[f"{name}|first16"]
            assert abs(float(tensor.norm()) - float(norm)) <= 1e-4, name
            np.testing.assert_allclose(tensor.flatten()[:16].numpy(), head, atol=1e-4, rtol=0)


def test_fifty_updates_are_those_of_the_original(shared: Path, tmp_path: Path) -> None:
    compat = shared / "compat"
    flags = {
        **COMMAND,
        "data": str(compat / "checkpoints/data-bin"),
        "save_dir": str(tmp_path),
        "restore_file": str(compat / "checkpoints/fb_init/model.pt"),
        "reset_optimizer": True,
        "reset_dataloader": True,
        "reset_meters": True,
        "reset_lr_scheduler": True,
        "data_rng": "fairseq-main",
    }
    train(options.make_config(flags))
    check_log(tmp_path, logged(compat / "train_log/fb_log50_nodrop.jsonl"))
    assert ours(tmp_path, "valid")[50]["loss"] == pytest.approx(7.227, abs=LOSS_TOLERANCE)
    check_parameters(tmp_path, compat / "train_log/fb_log50_nodrop.final_params.npz")


def test_a_run_of_the_original_goes_on_where_it_stopped(shared: Path, tmp_path: Path) -> None:
    compat = shared / "compat"
    source = compat / "checkpoints/fb_resume25"
    (tmp_path / "checkpoint_last.pt").write_bytes((source / "checkpoint_last.pt").read_bytes())
    flags = {**COMMAND, "data": str(compat / "checkpoints/data-bin"), "save_dir": str(tmp_path)}
    train(options.make_config(flags))
    expected = logged(source / "resumed_26_to_50.jsonl")
    assert set(expected) == set(range(26, 51))
    check_log(tmp_path, expected)
    check_parameters(tmp_path, compat / "train_log/fb_log50_nodrop.final_params.npz")
    ended = content(tmp_path / "checkpoint_last.pt")
    assert ended["extra_state"]["fairseq_lm"]["config"]["dataset"]["data_rng"] == "fairseq-main"
    assert [entry["num_updates"] for entry in ended["optimizer_history"]] == [1, 25, 50]


CAUSAL: dict[str, Any] = {
    **{key: value for key, value in COMMAND.items() if not key.startswith("encoder")},
    "task": "language_modeling",
    "criterion": "cross_entropy",
    "arch": "transformer_lm",
    "decoder_layers": 2,
    "decoder_embed_dim": 64,
    "decoder_input_dim": 64,
    "decoder_output_dim": 64,
    "decoder_ffn_embed_dim": 128,
    "decoder_attention_heads": 4,
    "share_decoder_input_output_embed": True,
    "disable_validation": True,
}
del CAUSAL["max_positions"], CAUSAL["attention_dropout"]


@pytest.mark.parametrize("stops", [[16], [7, 16]], ids=["at once", "resumed within the epoch"])
def test_causal_updates_are_those_of_the_main_branch(
    stops: list[int], shared: Path, tmp_path: Path
) -> None:
    source = shared / "compat/interchange/lm_adam"
    begin = {
        "restore_file": str(source / "init.pt"),
        "reset_optimizer": True,
        "reset_dataloader": True,
        "reset_meters": True,
        "reset_lr_scheduler": True,
        "data_rng": "fairseq-main",
    }
    for stop in stops:
        data = {"data": str(shared / "compat/checkpoints/data-bin"), "save_dir": str(tmp_path)}
        train(options.make_config({**CAUSAL, **data, **begin, "max_update": stop}))
        begin = {}
    expected = logged(source / "original.jsonl")
    assert set(expected) == set(range(1, 17))
    check_log(tmp_path, expected)


def test_a_causal_run_of_the_original_goes_on(shared: Path, tmp_path: Path) -> None:
    source = shared / "compat/interchange/lm_prenorm_learned_ema"
    (tmp_path / "checkpoint_last.pt").write_bytes((source / "checkpoint_last.pt").read_bytes())
    flags = {
        **CAUSAL,
        "data": str(shared / "compat/checkpoints/data-bin"),
        "save_dir": str(tmp_path),
        "decoder_normalize_before": True,
        "decoder_learned_pos": True,
        "max_update": 20,
    }
    train(options.make_config(flags))
    check_log(tmp_path, logged(source / "original_resumed_12_to_20.jsonl"))


def test_the_order_of_the_main_branch_survives_a_resume_in_a_later_epoch(tmp_path: Path) -> None:
    # an iterator made in epoch 2 would order by seed + 2, the run began with seed + 1
    data = make_corpus(tmp_path / "data")
    flags = {
        **{key: value for key, value in CAUSAL.items() if key.startswith("decoder")},
        "task": "language_modeling",
        "criterion": "cross_entropy",
        "arch": "transformer_lm",
        "sample_break_mode": "eos",
        "data_rng": "fairseq-main",
        "batch_size": 8,
        "total_num_update": 40,
        "no_epoch_checkpoints": True,
        "disable_validation": True,
    }
    names = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim")
    without = {**dict.fromkeys([*names, "encoder_attention_heads", "max_positions"]), **flags}
    small = {key: value for key, value in {**SMALL, **without}.items() if value is not None}

    def run(name: str, updates: int) -> Path:
        paths = {"data": str(data), "save_dir": str(tmp_path / name), "max_update": updates}
        train(options.make_config({**small, **paths}))
        return tmp_path / name / "checkpoint_last.pt"

    steps = 5  # an epoch: 40 lines in batches of 8
    run("cut", steps + 2)
    assert content(run("cut", 3 * steps))["extra_state"]["train_iterator"]["order_epoch"] == 1
    assert digest(run("cut", 3 * steps + 2)) == digest(run("whole", 3 * steps + 2))


def test_adaptive_softmax_counts_the_words_that_the_original_drops(shared: Path) -> None:
    # The original ignores class 1 (its padding id) in every band, so the word at cutoff + 1 costs
    # only its band there: 8.628 bits in compat/interchange/README.md.
    checkpoint = shared / "compat/interchange/lm_gpt_adin/checkpoint_last.pt"
    data = str(shared / "compat/checkpoints/data-bin")
    models, _, task = load_model_ensemble_and_task([str(checkpoint)], {"data": data})
    task.cfg.data_rng = "fairseq-main"  # drops the last block, alone in its batch
    task.load_dataset("valid")
    batches = task.get_batch_iterator(
        task.dataset("valid"), max_sentences=32, required_batch_size_multiple=8
    ).next_epoch_itr(shuffle=False)
    exact = dropped = words = 0.0
    with torch.no_grad():
        for batch in batches:
            positions_N = batch["predicted_positions"]
            target_N = batch["target"].flatten()[positions_N]
            operands, _ = models[0].eval()(**batch["net_input"], predicted_positions=positions_N)
            log_p_NV = operands.log_probs()
            log_p_N = log_p_NV.gather(1, target_N[:, None])[:, 0]
            torch.testing.assert_close(operands.losses(target_N), -log_p_N)
            torch.testing.assert_close(log_p_NV.exp().sum(1), torch.ones(len(target_N)))
            for start, end in itertools.pairwise(operands.cutoff):
                band_p_N = log_p_NV[:, start:end].exp().sum(1).log()
                log_p_in_band_N = log_p_N - band_p_N
                dropped -= float(log_p_in_band_N[target_N == start + 1].sum())
            exact -= float(log_p_N.sum())
            words += len(target_N)
    assert exact / words / math.log(2) == pytest.approx(8.630, abs=1e-3)
    assert (exact - dropped) / words / math.log(2) == pytest.approx(8.628, abs=1e-3)


VALIDATED = [
    "fb_baseline",
    "baseline",
    "learned_clap",
    "alibi_asymmetrical",
    "alibi_symmetrical",
    "clap_alibi",
    "zero_clap",
]


def valid_loss(shared: Path, name: str) -> tuple[float, dict[str, Any], dict[str, float]]:
    """Validate a checkpoint of the original's; return its loss, ours, and what was printed."""
    torch.set_num_threads(1)
    folder = shared / "compat/checkpoints"
    printed = json.loads((folder / name / "validate.txt").read_text().splitlines()[-1])
    given = {
        "path": str(folder / name / "model.pt"),
        "data": str(folder / "data-bin"),
        "batch_size": 32,
        "valid_subset": "valid",
        "log_format": "none",
        "cpu": True,
        "num_workers": 0,
    }
    if name == "fb_baseline":  # the main branch drops a sixth batch, of three samples
        given["max_valid_steps"] = 5
    stats = validate(given)["valid"]
    return stats["loss"], stats, {key: float(value) for key, value in printed.items()}


@pytest.mark.parametrize("name", VALIDATED)
def test_validation_gives_the_printed_loss(name: str, shared: Path) -> None:
    loss, stats, printed = valid_loss(shared, name)
    assert loss == pytest.approx(printed["valid_loss"], abs=1e-3)
    assert stats["bsz"] > 0


def test_self_masking_models_load_with_a_warning(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loss, _, _ = valid_loss(shared, "zero_clap_self_masking")
    assert 0 < loss < 20
    assert any("self-masking" in record.getMessage() for record in caplog.records)
