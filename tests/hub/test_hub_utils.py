"""Finding a model: folders, archives, published names, and downloads that go wrong."""

from __future__ import annotations

import http.server
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import SMALL, config, make_corpus, train

from fairseq.config.options import make_config
from fairseq.errors import CheckpointError, ConfigError, MissingFileError
from fairseq.files import archives
from fairseq.hub import load as hub_utils
from fairseq.hub.continue_text import text_writer
from fairseq.models.roberta import RobertaModel
from fairseq.training import loop


def archive_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        info = tarfile.TarInfo("model/dict.txt")
        info.size = 4
        packed.addfile(info, io.BytesIO(b"a 1\n"))
    return buffer.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves the archive, or the first half of it under a name that says so."""

    def do_GET(self) -> None:
        data = archive_bytes()
        self.send_response(200 if "missing" not in self.path else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if "half" in self.path else data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert hub_utils.locate(str(tmp_path), "x") == tmp_path


def test_an_archive_is_unpacked_into_the_cache(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive_bytes())
    folder = hub_utils.locate(str(tmp_path / "a.tar.gz"), "x")
    assert (folder / "dict.txt").read_text() == "a 1\n"
    assert folder.is_relative_to(cache)


def test_a_checkpoint_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(MissingFileError, match=r"checkpoint_file='model\.pt'"):
        hub_utils.locate(str(tmp_path / "model.pt"), "x")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no model called 'gone'"):
        hub_utils.locate(str(tmp_path / "gone"), "gone")


def test_a_download_is_kept_and_used_again(address: str, cache: Path) -> None:
    folder = hub_utils.locate(f"{address}/model.tar.gz", "x")
    assert (folder / "dict.txt").is_file()
    for path in cache.glob("*"):  # without the server, and without the packed file
        if path.is_file():
            path.unlink()
    assert hub_utils.locate(f"{address}/model.tar.gz", "x") == folder


@pytest.mark.parametrize("name", ["half.tar.gz", "missing.tar.gz"])
def test_a_failed_download_leaves_nothing(name: str, address: str, cache: Path) -> None:
    with pytest.raises(MissingFileError, match="(?s)could not be downloaded.*save it as"):
        hub_utils.locate(f"{address}/{name}", "x")
    assert list(cache.iterdir()) == []


def test_without_a_network_a_seeded_cache_works(cache: Path) -> None:
    url = "http://127.0.0.1:9/model.tar.gz"
    with pytest.raises(MissingFileError, match=archives.cached_name(url)):
        hub_utils.locate(url, "x")
    cache.mkdir(exist_ok=True)
    (cache / archives.cached_name(url)).write_bytes(archive_bytes())
    assert (hub_utils.locate(url, "x") / "dict.txt").is_file()


def test_the_cache_of_the_original_is_used(cache: Path) -> None:
    """It keeps a download as SHA-256 of the address, a dot, SHA-256 of the ETag."""
    url = "http://127.0.0.1:9/other.tar.gz"
    cache.mkdir()
    (cache / archives.cached_name(url, '"etag"')).write_bytes(archive_bytes())
    (cache / f"{archives.cached_name(url, chr(34))}.json").write_text("{}")
    assert (hub_utils.locate(url, "x") / "dict.txt").is_file()


def test_folders_may_be_paths_and_slips_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config(make_corpus(tmp_path / "data"), tmp_path / "run", max_update=1))
    folders = tmp_path / "run", "checkpoint_last.pt", tmp_path / "data"
    loaded = hub_utils.from_pretrained(*folders, dropout=0.5, load_checkpoint_heads=True)
    assert loaded["args"].task.data == str(tmp_path / "data")
    assert loaded["args"].model.dropout == 0.5 and "no setting" not in caplog.text
    hub_utils.from_pretrained(*folders, dropuot=0.5)
    assert "called 'dropuot' (did you mean 'dropout'?): it is ignored" in caplog.text
    caplog.clear()
    hub = RobertaModel.from_pretrained(*folders, load_checkpoint_heads=False)
    assert hub.cfg.model.load_checkpoint_heads is False
    flat = {"path": str(tmp_path / "run" / folders[1]), "data": str(folders[2])}
    hub_utils.load_by_settings({**flat, "model_overrides": "{'dropuot': 0.5}"})
    assert "called 'dropuot'" in caplog.text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose folder holds no dictionary, and a copy of its checkpoint."""
    folder = tmp_path_factory.mktemp("hub")
    train(config(make_corpus(folder / "data"), folder / "run", max_update=1))
    shutil.copy(folder / "run" / "checkpoint_last.pt", folder / "run" / "other.pt")
    return folder / "run"


def test_the_dictionary_is_that_of_the_training(run: Path, tmp_path: Path) -> None:
    """If the model's folder has one, it is taken: a run may have been moved without its data."""
    hub = RobertaModel.from_pretrained(run, Path("checkpoint_last.pt"))
    assert hub.encode("w0 w1").tolist() == [0, 4, 5, 2]
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    shutil.move(run.parent / "data", tmp_path / "gone")
    try:
        with pytest.raises(MissingFileError, match="dictionary not found"):
            RobertaModel.from_pretrained(moved, "checkpoint_last.pt")
        shutil.copy(tmp_path / "gone" / "dict.txt", moved)
        assert RobertaModel.from_pretrained(moved, "checkpoint_last.pt").encode("w0")[1] == 4
        writer = text_writer({"path": str(moved / "checkpoint_last.pt"), "cpu": True}, guess=True)
        assert len(writer.hub.encode("w0")) == 3
    finally:
        shutil.move(tmp_path / "gone", run.parent / "data")


def test_a_missing_checkpoint_names_those_that_are_there(run: Path) -> None:
    there = "holds checkpoint_best.pt, checkpoint_last.pt, other.pt. Check the path"
    for name in ("model.pt", "checkpoint_last", "."):
        with pytest.raises(MissingFileError, match=f"checkpoint not found: .*{there}"):
            RobertaModel.from_pretrained(run, name)
    data = run.parent / "data"
    for flag in ("restore_file", "finetune_from_model", "grow_from"):
        with pytest.raises(MissingFileError, match=f"--{flag.replace('_', '-')}.*{there[:22]}"):
            train(config(data, run.parent / "new", **{flag: str(run / "model.pt")}))
    with pytest.raises(CheckpointError, match="dict.txt was refused: it is no checkpoint, but"):
        train(config(data, run.parent / "new", restore_file=str(data / "dict.txt")))


@pytest.mark.parametrize("wrong", [None, 5, ["checkpoint_last.pt"], b"checkpoint_last.pt"])
def test_what_is_no_name_is_refused(run: Path, wrong: Any) -> None:
    kind = type(wrong).__name__
    with pytest.raises(ConfigError, match=f"model_name_or_path is a name or a path, not {kind}"):
        RobertaModel.from_pretrained(wrong)
    with pytest.raises(ConfigError, match=f"checkpoint_file is a name or a path, not {kind}"):
        RobertaModel.from_pretrained(run, wrong)
    with pytest.raises(ConfigError, match=f"data_name_or_path is a name or a path, not {kind}"):
        RobertaModel.from_pretrained(run, "other.pt", wrong)
    with pytest.raises(ConfigError, match="as data_name_or_path, not as data"):
        RobertaModel.from_pretrained(run, "other.pt", data=wrong)
    if wrong is not None:
        with pytest.raises(ConfigError, match="bpe invalid choice"):
            RobertaModel.from_pretrained(run, "other.pt", bpe=wrong)


def test_no_checkpoint_is_left_out_in_silence(run: Path) -> None:
    with pytest.raises(ConfigError, match="not an ensemble of 2"):
        RobertaModel.from_pretrained(run, "checkpoint_last.pt:other.pt")


def test_a_model_of_a_grammar_reads_its_words(tmp_path: Path) -> None:
    """Its task makes the dictionary: no file is looked at, and none is missing."""
    rules = tmp_path / "g.rules"
    rules.write_text("S A B 1.0\nA x 0.5\nA y 0.5\nB x 1.0\n")
    kept = {k: v for k, v in SMALL.items() if k not in ("tokens_per_sample", "max_positions")}
    settings = {**kept, "task": "pcfg_masked_lm", "criterion": "masked_lm", "grammar": str(rules)}
    settings |= {"save_dir": str(tmp_path / "run"), "disable_validation": True, "max_update": 1}
    loop.run_training(make_config(settings))
    for folders in ((), (str(tmp_path),)):
        hub = RobertaModel.from_pretrained(tmp_path / "run", "checkpoint_last.pt", *folders)
        assert hub.bpe is None and hub.decode(hub.encode("x y")) == "x y"
    writer = text_writer(
        {"path": str(tmp_path / "run/checkpoint_last.pt"), "cpu": True}, guess=True
    )
    assert [one.hypotheses for one in writer.continue_lines(["x <mask>"])]


def test_what_the_caller_says_wins_over_the_published_entry(run: Path) -> None:
    published = {"mine": {"path": str(run), "bpe": "nothing", "tokenizer": "moses"}}
    found = hub_utils.from_pretrained(
        "mine", "checkpoint_last.pt", ".", published, bpe=None, tokenizer="space"
    )
    assert found["args"].tokenizer._name == "space"
