"""Finding a model: folders, archives, published names, and downloads that go wrong."""

from __future__ import annotations

import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import config, make_corpus, train

from fairseq.errors import MissingFileError
from fairseq.files import archives
from fairseq.hub import load as hub_utils


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
    flat = {"path": str(tmp_path / "run" / folders[1]), "data": str(folders[2])}
    hub_utils.load_by_settings({**flat, "model_overrides": "{'dropuot': 0.5}"})
    assert "called 'dropuot'" in caplog.text
