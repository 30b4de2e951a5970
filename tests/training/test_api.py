"""``from fairseq import train`` is the command's loop: same weights, same errors, and callbacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fairseq import train
from fairseq.config.settings import config_from_settings
from fairseq.errors import ConfigError, DataError, FairseqError, MissingFileError, RegistryError
from fairseq_cli import train as command
from tests import tiny_run
from tests.distributed.test_distributed import finish, free_port


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus") / "bin")


def settings(data: Path, save_dir: Path, **more: Any) -> dict[str, Any]:
    return {**tiny_run.SMALL, "data": data, "save_dir": save_dir, **more}


def words(values: dict[str, Any]) -> list[str]:
    """Return settings as a command line."""
    line = [str(values["data"])]
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            line.append(flag)
        elif name != "data":
            line += [flag, str(value)]
    return line


def test_the_function_computes_what_the_command_computes(data: Path, tmp_path: Path) -> None:
    by_command = settings(data, tmp_path / "command")
    assert command.run(words(by_command)) == 0
    result = train(settings(data, tmp_path / "function"))
    assert result.checkpoint == tmp_path / "function" / "checkpoint_last.pt"
    ours, theirs = result.checkpoint, tmp_path / "command" / "checkpoint_last.pt"
    assert tiny_run.digest(ours) == tiny_run.digest(theirs)


def test_what_the_result_says(data: Path, tmp_path: Path) -> None:
    result = train(settings(data, tmp_path / "run", valid_subset="valid,train"))
    assert (result.updates, result.save_dir) == (9, tmp_path / "run")
    assert result.reason is not None and "max_update" in result.reason
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert result.metrics == [json.loads(line) for line in lines]
    validations = [r for r in result.metrics if r["tag"] == "valid"]
    assert set(result.final) == {"valid", "train"} and result.final["valid"] == validations[-1]
    assert result.final["train"]["update"] == 9 and "lr" not in result.final["train"]
    assert result.best in validations and result.best["loss"] == min(v["loss"] for v in validations)
    best = tiny_run.content(tmp_path / "run" / "checkpoint_best.pt")
    assert result.best_checkpoint == tmp_path / "run" / "checkpoint_best.pt"
    assert best["extra_state"]["val_loss"] == result.best["loss"]
    assert train(settings(data, tmp_path / "run", valid_subset="valid,train")) == result


def test_a_recipe_is_overruled_by_settings(data: Path, tmp_path: Path) -> None:
    common = settings(data, tmp_path / "run")
    for name in ("arch", "max_update", "encoder_layers"):
        del common[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {_name: roberta, encoder_layers: 1}\noptimization: {max_update: 50}\n"
        "checkpoint: {no_epoch_checkpoints: true}\n",
        encoding="utf-8",
    )
    result = train({**common, "max_update": 2}, recipe=recipe)
    model = tiny_run.content(tmp_path / "run" / "checkpoint_last.pt")["model"]
    assert result.updates == 2
    assert not any(".layers.1." in name for name in model)
    assert not (tmp_path / "run" / "checkpoint1.pt").exists()


def test_a_recipe_of_the_package_has_a_name() -> None:
    cfg = config_from_settings({"data": "x", "max_update": 7}, ["zero_clap"])
    assert (cfg.model.head, cfg.optimization.max_update) == ("clap", 7)


def test_callbacks_see_what_the_log_says_and_the_run_goes_on_later(
    data: Path, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []

    def stop_at_4(record: dict[str, Any]) -> bool:
        seen.append(record)
        return record["update"] == 4

    first = train(settings(data, tmp_path / "run"), on_log=stop_at_4)
    assert (first.updates, first.reason) == (4, "a callback asked for it")
    figures = [{k: v for k, v in r.items() if k != "time"} for r in first.metrics]
    assert all({k: v for k, v in r.items() if k != "time"} in figures for r in seen)
    assert [r["update"] for r in seen] == [1, 2, 3, 4]
    second = train(settings(data, tmp_path / "run"))
    whole = train(settings(data, tmp_path / "whole"))
    assert second.updates == whole.updates == 9
    weights = [
        tiny_run.content(r.save_dir / "checkpoint_last.pt")["model"] for r in (second, whole)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])


def test_a_validation_may_end_the_run(data: Path, tmp_path: Path) -> None:
    flags = settings(data, tmp_path / "run", no_save=True, max_update=50)
    result = train(flags, on_validate=lambda record: record["ppl"] > 0)
    assert result.updates == 6  # the first epoch
    assert result.checkpoint is None and not (tmp_path / "run").exists()
    assert [r["tag"] for r in result.metrics] == ["train_inner"] * 6 + ["valid"]
    assert result.best == result.final["valid"] == result.metrics[-1]


def test_an_error_in_a_callback_is_the_callers(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(settings(data, tmp_path / "run"), on_log=lambda record: 1 // 0 > 0)
    assert train(settings(data, tmp_path / "run")).updates == 9  # the folder is free again


def test_ctrl_c_saves_and_is_a_keyboard_interrupt(data: Path, tmp_path: Path) -> None:
    def press(record: dict[str, Any]) -> None:
        if record["update"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings(data, tmp_path / "run"), on_log=press)
    state = tiny_run.content(tmp_path / "run" / "checkpoint_last.pt")
    assert 3 <= state["optimizer_history"][-1]["num_updates"] < 9


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"tokens_per_sampel": 16}, ConfigError, "did you mean 'tokens_per_sample'"),
        ({"decoder_layers": 2}, ConfigError, "no flag --decoder-layers"),
        ({"tpu": True}, ConfigError, "TPUs are not supported"),
        ({"arch": "robert"}, RegistryError, "did you mean 'roberta'"),
        ({"task": "translation"}, RegistryError, "translation is out of scope"),
        ({"lr": -1}, ConfigError, "at least 0"),
        ({"lr": "fast"}, ConfigError, "lr"),
        ({"batch_size": None}, ConfigError, "a batch size"),
        ({"data": "nowhere"}, FairseqError, "nowhere"),
        ({"data": None}, ConfigError, "data"),
        ({"restore_file": "none.pt"}, MissingFileError, "none.pt"),
        ({"user_dir": "no_folder"}, MissingFileError, "no_folder"),
        ({"distributed_world_size": 2}, ConfigError, "torchrun --nproc-per-node 2"),
        ({"best_checkpoint_metric": "bleu"}, ConfigError, "bleu"),
    ],
)
def test_errors_are_exceptions_of_ours(
    data: Path, tmp_path: Path, more: dict[str, Any], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        train({**settings(data, tmp_path / "run"), **more})
    assert isinstance(caught.value, FairseqError)


def test_recipes_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        train({"data": data}, recipe=tmp_path / "none.yaml")
    code = tmp_path / "code.yaml"
    code.write_text("common: {user_dir: plugin}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="only the command line may name code"):
        train(settings(data, tmp_path / "run"), recipe=code)
    cut = tiny_run.make_corpus(tmp_path / "cut")
    (cut / "train.bin").write_bytes(b"")
    with pytest.raises(DataError):
        train(settings(cut, tmp_path / "run"))


def test_booleans_mean_what_they_say() -> None:
    """The original's flags of what is on by default switch off; names and values do not."""
    base = {"data": "x", "task": "masked_lm", "criterion": "masked_lm", "arch": "roberta"}
    base |= {"optimizer": "adam", "lr_scheduler": "fixed", "batch_size": 1}
    for name in ("layernorm_embedding", "--layernorm-embedding", "layernorm-embedding"):
        assert config_from_settings({**base, name: True}).model.layernorm_embedding is True
        assert config_from_settings({**base, name: False}).model.layernorm_embedding is False
    assert config_from_settings({**base, "no_epoch_checkpoints": True}).checkpoint == (
        config_from_settings({**base, "epoch_checkpoints": False}).checkpoint
    )
    settled = config_from_settings({**base, "epoch_checkpoints": True})
    assert settled.checkpoint.no_epoch_checkpoints is False
    assert config_from_settings({**base, "max_sentences": 3}).dataset.batch_size == 3  # old name


def test_one_process_of_two_may_end_both(data: Path, tmp_path: Path) -> None:
    """The callback of one rank decides; both stop after the same update, and one writes."""
    port = str(free_port())

    def work(rank: int) -> None:
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        os.environ.update(env, RANK=str(rank), LOCAL_RANK=str(rank))
        stop = None if rank == 0 else lambda record: record["update"] == 2
        result = train(settings(data, tmp_path / "run"), on_log=stop)
        assert (result.updates, result.reason) == (2, "a callback asked for it")

    assert finish([tiny_run.fork(lambda rank=rank: work(rank)) for rank in range(2)]) == [0, 0]
    state = tiny_run.content(tmp_path / "run" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2


def test_the_name_costs_nothing_until_it_is_used() -> None:
    code = (
        "import sys, fairseq\n"
        "assert not {'torch', 'fairseq.training'} & set(sys.modules)\n"
        "import fairseq.trainer, fairseq.training\n"
        "from fairseq import train\n"
        "assert callable(train) and fairseq.train is train\n"
        "assert fairseq.trainer.Trainer is fairseq.training.trainer.Trainer\n"
        "assert 'train' in dir(fairseq)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_process_trains_one_model_at_a_time(data: Path, tmp_path: Path) -> None:
    """Draws, figures and open logs are the process's; afterwards the next run may begin."""
    refused: list[str] = []

    def other() -> None:
        with pytest.raises(ConfigError, match="a run of this process is under way") as error:
            train(settings(data, tmp_path / "second"))
        refused.append(str(error.value))

    def on_log(record: dict[str, Any]) -> bool:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        other()
        return True

    first = train(settings(data, tmp_path / "first"), on_log=on_log)
    assert first.updates == 1 and len(refused) == 2 and not (tmp_path / "second").exists()
    assert [record["tag"] for record in first.metrics] == ["train_inner", "valid", "train"]
    thread = threading.Thread(target=train, args=(settings(data, tmp_path / "second"),))
    thread.start()
    thread.join()
    assert (tmp_path / "second" / "checkpoint_last.pt").is_file()


def test_arguments_of_another_kind(data: Path, tmp_path: Path) -> None:
    """They are refused before the run, not by what trips over them after an epoch."""
    with pytest.raises(ConfigError, match="settings are a dict .* not list"):
        train(["--lr", "1"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no flag --3 "):
        train({**settings(data, tmp_path / "run"), 3: 4})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="on_validate is a function, not 3"):
        train(settings(data, tmp_path / "run"), on_validate=3)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
