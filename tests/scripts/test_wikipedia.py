"""From a dump of ten pages to binarized corpora."""

from __future__ import annotations

import bz2
import importlib.util
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import FairseqError
from fairseq_cli import bpe, preprocess

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/wikipedia.py"
MARKUP = """{{Infobox|name={{lang|fr|Café}}|x=1}}
'''Café''' is a [[coffee house|place]] for [[coffee]].<ref name="a">A book.</ref><ref name="a"/>
[[File:Cup.jpg|thumb|A [[cup]] of it]]
== History ==
{| class="x"
| cell || {{n}}
|}
* It began in [https://example.org Vienna], 5 &lt; 6 &amp; so on.<!-- hidden
[[never]] -->
[[Category:Houses]] __NOTOC__
"""
TEXT = "Café is a place for coffee.\nIt began in Vienna, 5 < 6 & so on."


@pytest.fixture(scope="module")
def wikipedia() -> Any:
    spec = importlib.util.spec_from_file_location("wikipedia_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dump(path: Path) -> Path:
    """Write ten pages: seven articles, one of three words; a redirection, a talk, a template."""
    rows = [("0", "", MARKUP)]
    rows += [("0", "", f"Article {n} has words, {'more ' * n}and [[link]]s.") for n in range(5)]
    rows += [("0", "", "Only three words")]
    rows += [("0", '<redirect title="x"/>', "#REDIRECT [[x]] and some more words"),
             ("1", "", "A talk of more than five words here"),
             ("10", "", "A template of more than five words")]  # fmt: skip
    pages = "".join(
        f"<page><title>T{n}</title><ns>{ns}</ns>{more}<revision><text>{escape(text)}</text>"
        "</revision></page>"
        for n, (ns, more, text) in enumerate(rows)
    )
    name = "http://www.mediawiki.org/xml/export-0.11/"
    content = f'<mediawiki xmlns="{name}">{pages}</mediawiki>'.encode()
    path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)
    return path


def test_markup(wikipedia: Any) -> None:
    assert wikipedia.plain(MARKUP) == TEXT
    assert wikipedia.plain("a {{b {{c}} [[d|e {{f}}]] }} g") == "a g"
    assert wikipedia.uncased("Café ÉTÉ") == "cafe ete"


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2"])
@pytest.mark.parametrize("flags", [[], ["--uncased"]])
def test_a_dump_becomes_a_corpus(
    name: str, flags: list[str], wikipedia: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "wiki.jsonl"
    assert wikipedia.main([str(dump(tmp_path / name)), "--out", str(lines), *flags]) == 0
    assert "6 of 7 articles" in capsys.readouterr().err
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [row["title"] for row in rows] == [f"T{n}" for n in range(6)]
    assert rows[0]["text"] == (wikipedia.uncased(TEXT) if flags else TEXT)
    if name.endswith("bz2"):
        return
    tokenizer, pieces, data = (str(tmp_path / n) for n in ("t.json", "train.bpe", "bin"))
    words = ["--inputs", str(lines), "--text-key", "text"]
    bpe.main(["train", *words, "--vocab-size", "300", "--output", tokenizer])
    bpe.main(["encode", "--bpe", "byte_level", "--tokenizer-file", tokenizer, *words,
              "--outputs", pieces])  # fmt: skip
    untokenised = tmp_path / "raw.txt"
    untokenised.write_text("\n".join(row["text"] for row in rows) + "\n", encoding="utf-8")
    for prefix, out in ((pieces, data), (str(untokenised), data + "-raw")):
        preprocess.run(["--only-source", "--trainpref", prefix, "--destdir", out])
        assert len(Dictionary.load(Path(out) / "dict.txt")) > 20
        assert (Path(out) / "train.idx").is_file()


def test_a_cut_dump_writes_nothing(wikipedia: Any, tmp_path: Path) -> None:
    whole = dump(tmp_path / "a.xml").read_bytes()
    (tmp_path / "cut.xml").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.xml.bz2").write_bytes(bz2.compress(whole)[:200])
    for name, said in (("cut.xml", "no sound dump"), ("cut.xml.bz2", "no sound dump"),
                       ("none.xml", "dump not found")):  # fmt: skip
        with pytest.raises(FairseqError, match=said):
            wikipedia.main([str(tmp_path / name), "--out", str(tmp_path / "out.jsonl")])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]
