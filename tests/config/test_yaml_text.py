"""YAML within bounds, for recipes, Hydra and reports alike; and what Hydra must not evaluate."""

from __future__ import annotations

import sys
import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq.config.yaml import read_yaml
from fairseq.config.yaml_text import load_yaml
from fairseq.errors import ConfigError
from fairseq.report.runs import load_runs
from fairseq_cli import hydra_train, train

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + below] * 10)}]\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(['*' + below] * 10)}]}}\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "bomb": (BOMB, "stands for more than 100,000 values"),
    "merges": (MERGES, "stands for more than 100,000 values"),
    "circle": ("a: &a\n  b: *a\n", "or for itself"),
    "deep": ("a: " + "[" * 60 + "]" * 60, "50 levels"),
    "very deep": ("[" * 100_000, "nested too deeply|not valid YAML"),
    "open": ("task: {a: 1\nmodel: x\n", r"not valid YAML(.|\n)*line 2"),
    "tab": ("task:\n\tdata: db\n", r"not valid YAML(.|\n)*line 2"),
    "twice": ("common:\n  cpu: true\ncommon:\n  seed: 2\n", "line 3 states 'common' again.*line 1"),
    "long number": ("a: " + "9" * 5000, "not valid YAML"),
    "no day": ("a: 2001-99-99", "not valid YAML"),
    "object": ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "long": ("a: " + "x" * 10_000_001, "too many"),
}


@pytest.mark.parametrize("text,message", BAD.values(), ids=BAD)
def test_bad_text_is_refused_at_once(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_yaml(text, "mine.yaml")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"mine.yaml.*({message})"):
        read_yaml(str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match=f"mine.yaml.*({message})"):
        hydra_train.compose(str(tmp_path), "mine", [])


@pytest.mark.parametrize("section", ["common", "task", "dataset", "bmuf", "model"])
@pytest.mark.parametrize("value", ["7", "[1, 2]"])
def test_a_section_that_holds_no_settings(section, value, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"{section}: {value}\n")
    with pytest.raises(SystemExit):
        train.run(["data", "--config", str(tmp_path / "mine.yaml")])
    assert f"section '{section}' must hold settings, not {value}" in capsys.readouterr().err
    cfg = hydra_train.compose(str(tmp_path), "mine", [])
    with pytest.raises(ConfigError, match=f"section '{section}' must hold settings"):
        hydra_train.main(cfg)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_everything_else_reads_as_yaml_does(value):
    text = yaml.safe_dump(value)
    assert load_yaml(text, "any") == yaml.safe_load(text)


def test_a_report_goes_on_without_the_settings(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"tag": "train", "update": 1, "loss": 2.0}\n')
    (tmp_path / "config.yaml").write_text(BOMB)
    (run,) = load_runs([tmp_path])
    assert run.config == {} and "stands for more than" in run.notes[0]


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(textwrap.dedent(text))


def test_includes_that_multiply(tmp_path):
    write(
        tmp_path,
        **{f"r{n}": f"defaults: [r{n + 1}, r{n + 1}, r{n + 1}, _self_]\n" for n in range(30)},
        r30="common: {seed: 1}\n",
    )
    with pytest.raises(ConfigError, match="more than 200 recipes"):
        read_yaml(str(tmp_path / "r0.yaml"))
    write(
        tmp_path,
        **{f"r{n}": f"defaults: [r{n + 1}@a{n}, r{n + 1}@b{n}, _self_]\n" for n in range(30)},
    )
    with pytest.raises(ConfigError, match="include each other too often"):
        hydra_train.compose(str(tmp_path), "r0", [])


@pytest.mark.parametrize("entry", ["${oc.env:SECRET}", "m: ${oc.env:SECRET}", "m: ${oc.decode:1}"])
def test_hydra_evaluates_nothing_in_defaults(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    write(tmp_path, main=f"defaults:\n  - {entry}\n  - _self_\n")
    with pytest.raises(ConfigError, match="is not evaluated") as caught:
        hydra_train.compose(str(tmp_path), "main", [])
    assert "hunter2" not in str(caught.value)


def test_hydra_evaluates_nothing_in_a_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    write(tmp_path, main="defaults: [{model: one}]\n")
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", one="_name: roberta\n")
    for override in ("model=${oc.env:SECRET}", "+m=${oc.env:SECRET}"):
        with pytest.raises(ConfigError, match="is not evaluated") as caught:
            hydra_train.compose(str(tmp_path), "main", [override])
        assert "hunter2" not in str(caught.value)
    composed = hydra_train.compose(str(tmp_path), "main", [])
    assert composed["model"]["_name"] == "roberta"  # and Hydra's own reader is back
    composed = hydra_train.compose(str(tmp_path), "main", ["common.log_file=${task.data}"])
    assert composed["common"]["log_file"] == "${task.data}"


def test_hydra_imports_no_package_that_a_recipe_names(tmp_path, monkeypatch):
    (tmp_path / "spy_package").mkdir()
    (tmp_path / "spy_package/__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, main="hydra: {searchpath: ['pkg://spy_package']}\ncommon: {seed: 1}\n")
    with pytest.raises(ConfigError, match="searchpath names a package"):
        hydra_train.compose(str(tmp_path), "main", [])
    assert "spy_package" not in sys.modules


def test_a_recipe_names_no_code_for_hydra(tmp_path):
    (tmp_path / "spy_plugin").mkdir()
    (tmp_path / "spy_plugin/__init__.py").write_text("raise SystemExit(99)")
    write(tmp_path, main=f"common: {{user_dir: {tmp_path / 'spy_plugin'}}}\n")
    words = ["--config-dir", str(tmp_path), "--config-name", "main"]
    for more in ([], ["--cfg", "job"]):
        with pytest.raises(ConfigError, match="only the command line may name code"):
            hydra_train.run([*words, *more])
    with pytest.raises(SystemExit, match="99"):
        hydra_train.run([*words, f"common.user_dir={tmp_path / 'spy_plugin'}"])
