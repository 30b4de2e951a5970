"""The site of the manual holds every page; mkdocs itself runs in ``make docs``."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, text_of


@pytest.fixture(scope="module")
def site() -> Any:
    spec = importlib.util.spec_from_file_location("site_script", ROOT / "scripts" / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_contents_holds_every_page_once(site: Any) -> None:
    listed = re.findall(r": (\S+\.md)$", text_of(ROOT / "mkdocs.yml"), re.M)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT)) for page in site.pages())


def test_links_lead_to_what_is_gathered(site: Any) -> None:
    pages = set(site.pages())
    for page in pages:
        text, files = site.gathered(page)
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
            aim = (page.parent / target.partition("#")[0]).resolve()
            if "://" not in target and target[0] != "#":
                assert aim in pages or aim in files, (page.name, target)
        assert all(Path(file).is_file() for file in files)
