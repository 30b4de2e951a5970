"""The demo's corpus builder, on a handful of source files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fairseq.errors import DataError, MissingFileError

ROOT = Path(__file__).resolve().parents[2]

SAMPLE = '''
"""The module is about things that are said in plain English.

This second paragraph is the :class:`~package.Thing` of *interest*, with ``code`` in
**two** lines; see `the manual <nowhere>`_ for more details.

Short one.
"""

def function(a, b):
    """Adds two numbers and returns what comes out of it.

    Heading of a section that is dropped
    ------------------------------------
    a : int
        The first of the two numbers to be added.
    b : int, optional
        The second of the two numbers to be added.

    Args:
        left (int): the number that stands on the left
            side of the sign.
        right: the number that stands on the right side.

    - An item of a list, long enough to be kept.
    - Another item of the list, also long enough.

    .. note:: A note is prose and therefore it stays here.
       Its second line belongs to it.

    .. code-block:: python

        this = is_not(prose, but="some code in a block of code")

        neither is this second part of the very same block

    The following shows how it is used in a program::

        result = function(1, 2) and some more words of code here

    >>> function(1, 2)  # doctests are not prose at all
    3 is the answer that is printed by this example

    =====  ==========================================
    left   words in a table that nobody wants to read
    =====  ==========================================
    """

class Thing:
    """adds two NUMBERS, and returns what comes out of it"""

    def method(self):
        """Raises a ValueError if the number is not valid.

        This paragraph stays because it is not a copy of anything.
        """

add_docstr(Thing.more, r"""
more(x) -> Tensor

Documentation of compiled functions is given as an argument.
""".format(x=1))

log("""Strings that are handed to
other functions are not documentation at all.""")
'''

EXPECTED = """\
The module is about things that are said in plain English.
This second paragraph is the package.Thing of interest, with code in two lines; see the manual \
for more details.

Adds two numbers and returns what comes out of it.
The first of the two numbers to be added.
The second of the two numbers to be added.
the number that stands on the left side of the sign.
the number that stands on the right side.
An item of a list, long enough to be kept.
Another item of the list, also long enough.
A note is prose and therefore it stays here. Its second line belongs to it.
The following shows how it is used in a program:

This paragraph stays because it is not a copy of anything.

Documentation of compiled functions is given as an argument.
"""

SENTENCES = ["Raises a ValueError if the <mask> is not valid."]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_corpus", ROOT / "scripts/demo_corpus.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_corpus"] = module  # worker processes look the functions up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    for name, text in {
        "a.py": SAMPLE,
        "b.py": '"""A file of its own, with words of its own."""\n',
        "broken.py": '"""Not Python because of what follows below."""\nthis is no Python\n',
        "bytes.py": "\0",
        "data.txt": '"""Not a source file, whatever it may say here."""\n',
        "tests/t.py": '"""Tests are left out whatever they may say here."""\n',
        "sub/c.py": '"""A file in a folder below the package folder."""\n',
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_prose_is_kept_and_the_rest_is_not(
    demo: ModuleType, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "split_of", lambda name: "valid" if "/sub/" in name else "train")
    files = list(demo.source_files("package", sources))
    assert [file.name for file in files] == [
        f"package/{name}" for name in ("a.py", "b.py", "broken.py", "bytes.py", "sub/c.py")
    ]
    sizes = demo.build(files, SENTENCES, tmp_path / "out", workers=1)
    texts = {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()}
    expected = EXPECTED + "\nA file of its own, with words of its own.\n"
    assert texts["train"].split("\n") == expected.split("\n")
    assert texts["valid"] == "A file in a folder below the package folder.\n"
    assert texts["test"] == ""
    assert sizes == {name: len(text) for name, text in texts.items()}


def test_building_again_gives_the_same_bytes(
    demo: ModuleType, sources: Path, tmp_path: Path
) -> None:
    files = list(demo.source_files("package", sources))
    results = []
    for workers in (1, 2, 1):
        demo.build(files, SENTENCES, tmp_path / "out", workers)
        results.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert results[0] == results[1] == results[2]
    assert sorted(results[0]) == ["test.txt", "train.txt", "valid.txt"]


@pytest.mark.parametrize(
    ("text", "is_copy"),
    [
        ("raises a valueerror, IF the key (is not) valid", True),
        ("It raises a ValueError if the input is bad.", False),
        ("Or it raises a ValueError if the input is not known.", True),
        ("Raises a TypeError if the value is not valid.", False),
        ("The default value is None, as always.", True),
        ("The default value for it is None.", False),
        ("The default values are None.", False),
    ],
)
def test_near_copies(demo: ModuleType, text: str, is_copy: bool) -> None:
    pattern = demo.near_copy_pattern([*SENTENCES, "The default value <mask> None."])
    assert bool(pattern.search(demo.words_of(text))) is is_copy


def test_splits_have_their_shares_and_never_move(demo: ModuleType) -> None:
    names = [f"package/file{number}.py" for number in range(4000)]
    splits = [demo.split_of(name) for name in names]
    for split, percent in demo.SPLIT_PERCENT.items():
        assert 0.7 * percent < 100 * splits.count(split) / len(names) < 1.3 * percent
    assert demo.split_of("torch/functional.py") == demo.split_of("torch/functional.py")
    assert [demo.split_of(f"python/{name}.py") for name in ("abc", "ast", "csv")] == ["train"] * 3


def test_topics_of_the_language_reference_count(demo: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "topics.py"
    path.write_text('topics = {"x": "A topic has text in\\nmore than a single line.\\n"}\n')
    inside = demo.Source("python/pydoc_data/topics.py", path)
    assert demo.documents_of(inside) == [["A topic has text in more than a single line."]]
    assert demo.documents_of(demo.Source("python/other.py", path)) == []


def test_the_demo_has_five_sentences_each_with_its_words(demo: ModuleType) -> None:
    sentences = demo.read_sentences(demo.SENTENCES)
    assert len(sentences) == 5
    for sentence, accepted in sentences:
        assert sentence.endswith(".")
        assert len(set(accepted)) == len(accepted) >= 1


@pytest.mark.parametrize(
    "line", ["No mask.\tword", "A <mask> <mask>.\tword", "A <mask>.", "", "\t"]
)
def test_damaged_sentences_are_refused(demo: ModuleType, tmp_path: Path, line: str) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("A good <mask>.\tone two\n" + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        demo.read_sentences(path)
    with pytest.raises(MissingFileError, match="--sentences"):
        demo.read_sentences(tmp_path / "none.txt")


def test_installed_packages_are_found_without_importing_them(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import demo_corpus;"
        "print(*demo_corpus.source_folders(), {'torch', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "python numpy torch set()\n", run.stderr
    monkeypatch.setattr(demo, "PACKAGES", ("no_such_package",))
    with pytest.raises(MissingFileError, match="pip install no_such_package"):
        demo.source_folders()
