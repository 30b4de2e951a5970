"""Where published files are kept, under the names that plug-ins import."""

from __future__ import annotations

from fairseq.archives import cached_name as url_to_filename
from fairseq.hub_utils import locate

__all__ = ["load_archive_file", "url_to_filename"]


def load_archive_file(archive_file: str) -> str:
    """Return the folder of a model: as given, unpacked, or fetched and unpacked.

    Args:
        archive_file: folder, archive or URL.

    Raises:
        MissingFileError: if it is nowhere.
        CheckpointError: if the archive is damaged or unsafe.
    """
    return str(locate(archive_file, archive_file))
