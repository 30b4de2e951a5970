"""``fairseq-pcfg``: corpora whose true distribution is known, their labels and conditionals."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq.catalog import SPAN_LABELS
from fairseq_cli.entry import command, command_parser
from fairseq_cli.flags import seed

if TYPE_CHECKING:
    from fairseq.pcfg.source import Source


EXAMPLES = """\
examples:
  a grammar of your own, a corpus of it, and what a perfect model would answer:
    fairseq-pcfg grammar --seed 0 --levels 3 --width 6 --vocab 60 --emit 20 --out g.rules
    fairseq-pcfg sample g.rules corpus --num 100000 --valid 5000 --test 5000 --workers 2
    fairseq-pcfg score g.rules corpus/test.txt --masks single --out test.npz
  or train on the stream itself, and validate against the truth:
    fairseq-train --task pcfg_masked_lm --grammar g.rules --criterion masked_lm_truth \\
        --arch roberta_tiny --optimizer adam --lr 0.001 --batch-size 64 --max-update 1000
  sentences with the symbol of their first four words, for --task sentence_prediction:
    fairseq-pcfg downstream g.rules task-b --task B --num 50000 --valid 10000
  a grammar like CFG3, a hidden-Markov model, a mixture of five:
    fairseq-pcfg grammar --kind tree --levels 6 --width 3 --vocab 3 --out cfg3.rules
    fairseq-pcfg grammar --kind hmm --states 100 --lengths 16 16 --out h.json
    fairseq-pcfg grammar --kind hmm --states 10 --components 5 --out ginc.json
"""

SAMPLE_NOTES = """\
Writes train.txt, valid.txt and test.txt (one sentence a line) and dict.txt. The same seed gives the
same bytes for any --workers. Binarize with
  fairseq-preprocess --only-source --srcdict DEST/dict.txt --trainpref DEST/train.txt \\
      --validpref DEST/valid.txt --destdir data-bin
and train with --sample-break-mode eos: then every block is one sentence.
"""

DOWNSTREAM_NOTES = """\
Writes SPLIT.input0, SPLIT.label and SPLIT.csv with dict.txt and label.dict.txt, and says how often
the commonest label is right (majority) and the best guess there is (ceiling, below 1 for gold).
Binarize with
  fairseq-preprocess --only-source --srcdict DEST/dict.txt --trainpref DEST/train.input0 \\
      --validpref DEST/valid.input0 --destdir data/input0
  fairseq-preprocess --only-source --srcdict DEST/label.dict.txt --trainpref DEST/train.label \\
      --validpref DEST/valid.label --destdir data/label
"""

MASK_NOTES = """\
Writes the HDF5 that the programs published with Liu et al. 2023 read: input_ids, input_mask,
segment_ids, masked_lm_positions and masked_lm_ids, one sentence a sample. Needs h5py.
"""

SCORE_NOTES = """\
The npz holds, for sentence s, the rows offset[s] to offset[s + 1] of: position, target (number of
the word that stands there, a place in terminals), logq (natural log of the true distribution) and
entropy; logp_sentence and terminals. -inf: an impossible word; NaN: no word fits the others.
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command and its sub-commands."""
    description = "Corpora whose true distribution is known."
    parser = command_parser("fairseq-pcfg", description, EXAMPLES)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{grammar,sample,downstream,score,mask,probe}"
    )
    _add_grammar(_command(commands, "grammar", "draw a new grammar or hidden-Markov model", ""))
    sample = _command(commands, "sample", "draw a corpus", SAMPLE_NOTES, "DEST")
    _add_numbers(
        sample,
        ("num", 1_000_000, "sentences of train"),
        ("valid", 10_000, "sentences of valid"),
        ("test", 10_000, "sentences of test"),
        ("shards", 1, "train files of --num sentences each"),
        ("max-len", 32, "most words of a sentence"),
        ("workers", 1, "processes"),
    )
    sample.add_argument(
        "--blank-lines", action="store_true", help="an empty line after every sentence"
    )
    sample.add_argument(
        "--binarize",
        metavar="FOLDER",
        help="also run fairseq-preprocess, into this folder; of --shards into FOLDER0, FOLDER1 ...",
    )
    labels = _command(commands, "downstream", "draw labelled sentences", DOWNSTREAM_NOTES, "DEST")
    labels.add_argument(
        "--task", default="B", metavar="TASK",
        help="A: the whole sentence; B, C: its first 4, 2 words; span:i:j (B)",
    )  # fmt: skip
    labels.add_argument(
        "--label", default="likelihood", choices=SPAN_LABELS,
        help="how the symbol is chosen; gold: the one it was drawn from (default: likelihood)",
    )  # fmt: skip
    _add_numbers(
        labels,
        ("num", 10_000, "sentences of train"),
        ("valid", 1_000, "sentences of valid"),
        ("min-len", 5, "fewest words of a sentence"),
        ("max-len", 31, "most words of a sentence"),
    )
    labels.add_argument(
        "--drop-unparsable", action="store_true", help="leave out spans that no symbol fits"
    )
    score = _command(commands, "score", "write true conditionals", SCORE_NOTES, "FILE")
    score.add_argument(
        "--masks", default="single", metavar="HOW",
        help="single: each position given all others; random:k: k at a time (default: single)",
    )  # fmt: skip
    score.add_argument(
        "--vocab-file", metavar="FILE",
        help="FILE is HDF5 of masked samples in these word pieces; its own masks are scored",
    )  # fmt: skip
    score.add_argument("--out", required=True, metavar="F.npz", help="file to write")
    mask = _command(commands, "mask", "write masked samples as HDF5", MASK_NOTES, "FILE")
    mask.add_argument("--vocab-file", required=True, metavar="FILE", help="word pieces, one a line")
    mask.add_argument("--out", required=True, metavar="FOLDER", help="for train_shard_K.hdf5")
    mask.add_argument(
        "--split", default="train", metavar="NAME", help="name of the files (default: train)"
    )
    _add_numbers(
        mask,
        ("dup-factor", 1, "shards, each with other masks"),
        ("max-predictions-per-seq", 20, "masked words of a sample at most"),
        ("masked-lm-prob", 0.15, "share of masked words"),
        ("max-seq-length", 512, "tokens of a sample, [CLS] and [SEP] included"),
    )
    commands.add_parser("probe", help="linear probes of encoders: another name of fairseq-probe")
    return parser


def _add_numbers(parser: Any, *flags: tuple[str, int | float, str]) -> None:
    """Add flags of one number each: name, default, meaning."""
    for name, default, text in flags:
        parser.add_argument(
            f"--{name}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{text} (default: {default})",
        )


def _command(
    commands: Any, name: str, help: str, notes: str, last: str = ""
) -> argparse.ArgumentParser:
    """Add a sub-command with what all have in common."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=notes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if last:
        command.add_argument("grammar", metavar="GRAMMAR", help="rules, or a model (.json)")
        command.add_argument("target", metavar=last, help="folder" if last == "DEST" else "text")
        command.add_argument(
            "--normalize", action="store_true", help="accept rules that do not sum to one"
        )
    command.add_argument(
        "--seed", type=seed, default=1, metavar="N", help="seed of all that is drawn (default: 1)"
    )
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    return command


def _add_grammar(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--kind", default="levelled", choices=["levelled", "tree", "hmm"],
        help="levelled: binary rules and words on every level; tree: like CFG3; hmm "
        "(default: levelled)",
    )  # fmt: skip
    for flag, kinds in (
        ("levels", "levelled, tree: number of levels (default: 4; tree 6)"),
        ("width", "levelled, tree: symbols on a level (default: 10; tree 3)"),
        ("roots", "levelled: rules of the start symbol (default: 9)"),
        ("binary", "levelled: binary rules of an inner symbol (default: 20)"),
        ("vocab", "number of words (default: 200; tree 3)"),
        ("emit", "levelled: words that a symbol of the last level can be (default: 100)"),
        ("rules-each", "tree: rules of a symbol (default: 2)"),
        ("states", "hmm: number of hidden states (default: 100)"),
        ("components", "hmm: number of models in the mixture (default: 1)"),
    ):
        parser.add_argument(f"--{flag}", type=int, metavar="N", help=kinds)
    parser.add_argument(
        "--term-prob", type=float, nargs=2, metavar="P",
        help="levelled: range of the chance that an inner symbol is a word (default: 0.05 0.35)",
    )  # fmt: skip
    parser.add_argument(
        "--peak",
        type=float,
        metavar="X",
        help="levelled, hmm: parameter of the Dirichlet distribution that "
        "probabilities of words are drawn from (default: 1.0; hmm 0.03)",
    )
    parser.add_argument(
        "--children",
        type=int,
        nargs=2,
        metavar="N",
        help="tree: fewest and most symbols of a rule (default: 2 3)",
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs=2,
        metavar="N",
        help="hmm: words of the shortest and of the longest sentence (default: 16 16)",
    )


def _grammar(args: argparse.Namespace) -> dict[str, Any]:
    """Draw a source with the settings that are given, refusing those of another kind."""
    import inspect

    from fairseq.errors import ConfigError
    from fairseq.pcfg import random_sources
    from fairseq.pcfg.grammar import Grammar
    from fairseq.pcfg.source import GrammarSource

    makers = {
        "levelled": random_sources.levelled_grammar,
        "tree": random_sources.tree_grammar,
        "hmm": random_sources.random_hmm,
    }
    maker: Any = makers[args.kind]
    shared = ("command", "out", "kind", "json")
    stated = {k: v for k, v in vars(args).items() if v is not None and k not in shared}
    strangers = stated.keys() - inspect.signature(maker).parameters.keys()
    if strangers:
        flag = min(strangers).replace("_", "-")
        raise ConfigError(f"--{flag} does not belong to --kind {args.kind}; leave it out")
    source = maker(**{k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()})
    source.save(args.out)
    record: dict[str, Any] = {"out": args.out, "terminals": len(source.terminals)}
    if isinstance(source, Grammar):
        law_W = source.length_law(32)[source.start]
        record |= {"nonterminals": len(source.nonterminals), "rules": len(source.rules())}
        record["reachable"] = int(source.reachable().sum())
        record["length_law"] = [round(float(p), 6) for p in law_W]
        source = GrammarSource(source)
    return record | _predictability(source, args.seed)


def _predictability(source: Source, seed: int) -> dict[str, Any]:
    """Return what the words of a source can be known by at best, in nats; None: not known."""
    import math

    from fairseq.pcfg import entropy
    from fairseq.pcfg.source import GrammarSource

    record: dict[str, Any] = {}
    if isinstance(source, GrammarSource):
        grammar = source.grammar
        words, nats = entropy.mean_length(grammar), entropy.derivation_entropy(grammar)
        finite = math.isfinite(words)
        record["mean_length"] = round(words, 4) if finite else None
        record["derivation_entropy_per_word"] = round(nats / words, 4) if finite else None
    estimate = entropy.entropy_per_word(source, seed)
    record["entropy_per_word"] = round(estimate[0], 4) if estimate else None
    record["entropy_per_word_se"] = round(estimate[1], 4) if estimate else None
    return record


def _sample(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    from fairseq.pcfg.sample import write_samples

    train = [f"train{k}" for k in range(args.shards)] if args.shards > 1 else ["train"]
    sizes = dict.fromkeys(train, args.num)
    sizes |= {name: size for name, size in (("valid", args.valid), ("test", args.test)) if size}
    done = write_samples(
        source, args.target, sizes, args.seed, args.max_len, args.workers, args.blank_lines
    )
    record = dataclasses.asdict(done)
    if args.binarize:
        from fairseq_cli import preprocess

        # as fairseq-train reads them: an epoch of each folder, the other splits in the first
        folders = [args.binarize + name.removeprefix("train") for name in train]
        for folder, name in zip(folders, train, strict=True):
            splits = {"train": name}
            if folder == folders[0]:
                splits |= {split: split for split in ("valid", "test") if split in sizes}
            words = [
                word
                for split, text in splits.items()
                for word in (f"--{split}pref", f"{args.target}/{text}.txt")
            ]
            preprocess.run(
                ["--only-source", "--srcdict", f"{args.target}/dict.txt", "--destdir", folder,
                 "--workers", str(args.workers), *words]
            )  # fmt: skip
        record["data"] = ":".join(folders)
    return record


def _mask(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    from fairseq.pcfg.hdf5 import Masking, write_masked_samples
    from fairseq.pcfg.source import read_sentences

    masking = Masking(
        args.masked_lm_prob,
        args.max_predictions_per_seq,
        args.max_seq_length,
        args.dup_factor,
        args.seed,
    )
    sentences = read_sentences(args.target, source.terminals)
    files = write_masked_samples(
        args.out, args.vocab_file, source.terminals, sentences, masking, args.split
    )
    return {"out": args.out, "files": files, "samples": len(sentences)}


def _downstream(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    from fairseq.errors import ConfigError
    from fairseq.pcfg.downstream import Labeller, write_downstream
    from fairseq.pcfg.source import GrammarSource

    if not isinstance(source, GrammarSource):
        raise ConfigError("labels of spans need a grammar; a hidden-Markov model has none")
    done = write_downstream(
        Labeller(source, args.task, args.label),
        args.target,
        {"train": args.num, "valid": args.valid},
        args.seed,
        (args.min_len, args.max_len),
        args.drop_unparsable,
    )
    return {"task": args.task, "label": args.label, **dataclasses.asdict(done)}


def _score(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    from fairseq.files.io import sha256_of
    from fairseq.pcfg.hdf5 import read_masked_samples
    from fairseq.pcfg.score import write_scores
    from fairseq.pcfg.source import read_sentences

    masks: Any = args.masks
    if args.vocab_file:
        sentences, masks = read_masked_samples(args.target, args.vocab_file, source.terminals)
    else:
        sentences = read_sentences(args.target, source.terminals)
    digest = sha256_of(args.grammar)
    scores = write_scores(args.out, source, sentences, masks, args.seed, digest).optimum()
    if scores["undefined"]:
        print(
            f"note: {scores['undefined']} sentences have words that never stand together; they are "
            "not in the means",
            file=sys.stderr,
        )
    return {
        "out": args.out,
        "masks": args.masks if isinstance(masks, str) else "of the file",
        **scores,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["probe"]:
        from fairseq_cli import probe

        return probe.main(argv[1:])
    args = get_parser().parse_args(argv)
    if args.command == "grammar":
        record = _grammar(args)
    else:
        from fairseq.pcfg.source import GrammarSource, load_source

        source = load_source(args.grammar, args.normalize)
        if isinstance(source, GrammarSource):
            for note in source.grammar.notes:
                print(f"note: {args.grammar}: {note}", file=sys.stderr)
        actions = {"sample": _sample, "downstream": _downstream, "score": _score, "mask": _mask}
        record = actions[args.command](args, source)
    if args.json:
        print(json.dumps({"command": args.command, **record}))
    else:
        print("\n".join(f"{name}: {value}" for name, value in record.items()))
    return 0


cli_main = command(main)

if __name__ == "__main__":
    cli_main()
