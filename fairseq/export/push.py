"""Publishing: an exported folder to the Hub of Hugging Face. Nothing else uses the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairseq.errors import ConfigError, FairseqError, UnsupportedError, install_hint


def check_repository(name: str) -> None:
    """Raise unless a repository can be called so; asked before anything is computed.

    Raises:
        ConfigError: unless it is a name, or an owner and a name.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(part and not part.startswith((".", "-")) for part in parts):
        raise ConfigError(f"--push needs OWNER/NAME of a repository on the Hub, not {name!r}")


def push(folder: Path, repository: str, private: bool = True, branches: Sequence[str] = ()) -> str:
    """Upload a folder to a model repository, which is made if it does not exist.

    Args:
        folder: what an export wrote.
        repository: ``owner/name``.
        private: whether a repository that is made is private.
        branches: names of folders below ``folder``; each becomes a branch, the last one ``main``,
            too. Without any, ``folder`` itself becomes ``main``.

    Returns:
        its address.

    Raises:
        FairseqError: if the Hub refuses; the folder stays as it is.
        UnsupportedError: if the package is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UnsupportedError(f"--push needs huggingface_hub: {install_hint('hf')}") from error
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True, private=private)
        for name in branches:
            api.create_branch(repository, branch=name, exist_ok=True)
        last = folder / branches[-1] if branches else folder
        for path, branch in [*((folder / name, name) for name in branches), (last, "main")]:
            api.upload_folder(
                repo_id=repository, folder_path=str(path), revision=branch,
                commit_message="Export from fairseq-lm",
            )  # fmt: skip
    except Exception as error:  # its own errors, and those of the HTTP library below it
        raise FairseqError(
            f"{repository} could not be written: {error}. The export stands in {folder}; log in "
            "with 'hf auth login' and push again"
        ) from error
    return str(address)
