"""fairseq-preprocess: build a dictionary and binarize text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairseq_cli.entry import command

if TYPE_CHECKING:
    from fairseq.config.preprocess import PreprocessConfig
    from fairseq.preprocess.corpus import DictionaryMaker


USAGE = "fairseq-preprocess --only-source --trainpref FILE [options]"
EXAMPLES = """examples:
  fairseq-preprocess --only-source --trainpref train.bpe --validpref valid.bpe --destdir data-bin
  fairseq-preprocess --only-source --trainpref more.bpe --srcdict data-bin/dict.txt \\
      --destdir more-bin
  fairseq-preprocess --only-source --trainpref train.parquet --validpref valid.jsonl \\
      --text-key text --byte-level-tokenizer tokenizer.json --destdir data-bin
"""


def main(cfg: PreprocessConfig) -> None:
    """Preprocess as a flat Namespace (or PreprocessConfig) says."""
    from fairseq.logging.console import setup_logging
    from fairseq.preprocess.corpus import preprocess

    setup_logging(stream="stderr")
    maker = _maker(cfg)
    preprocess(cfg) if maker is None else preprocess(cfg, maker)


def _maker(cfg: object) -> DictionaryMaker | None:
    """Return the task of a plug-in that makes dictionaries of its own, None for any other."""
    from fairseq.catalog import TASKS
    from fairseq.config.plugins import import_user_module

    name = getattr(cfg, "task", None)
    import_user_module(cfg)
    if name is None or name in TASKS:
        return None
    from fairseq.tasks import TASK_REGISTRY, get_task
    from fairseq.tasks.base import FairseqTask

    # old scripts name the original's default
    unread = name == "translation" or getattr(cfg, "user_dir", None) is None
    if unread and name not in TASK_REGISTRY:
        return None
    task = get_task(name)
    return None if _dictionary_functions(task) == _dictionary_functions(FairseqTask) else task


def _dictionary_functions(task: DictionaryMaker) -> list[object]:
    methods = (task.load_dictionary, task.build_dictionary)
    return [getattr(method, "__func__", method) for method in methods]


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and preprocess."""
    from fairseq.config import options

    parser = options.get_preprocessing_parser()
    parser.prog, parser.usage, parser.epilog = "fairseq-preprocess", USAGE, EXAMPLES
    main(options.parse_args_and_arch(parser, argv))
    return 0


cli_main = command(run)

if __name__ == "__main__":
    cli_main()
