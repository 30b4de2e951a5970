"""Headless training against the usual one: a decoder, an encoder, and the number of negatives.

Usage: python examples/headless/study.py --text FOLDER --glue-dir GLUE --out RUNS
       python examples/headless/study.py --tables

FOLDER holds train.txt, valid.txt and test.txt, GLUE the official files of SST-2. Finished runs are
kept in RUNS: the same command goes on where it was stopped. ``--tables`` prints the tables of the
README from the results.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import floors
import studies

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
COMMON = (
    "--position alibi --dropout 0 --attention-dropout 0 --tokens-per-sample 64 --batch-size-valid "
    "16 --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 --weight-decay 0.01 "
    "--weight-decay-mode matrices --clip-norm 1.0 --lr-scheduler polynomial_decay "
    "--no-epoch-checkpoints --num-workers 0 --device cpu --max-valid-steps 16 --log-interval 5 "
    "--log-format none"
)
DECODER = (
    f"{COMMON} --task language_modeling --arch transformer_lm_gpt --decoder-layers 2 "
    "--decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4 --lr 0.004"
)
ENCODER = (
    f"{COMMON} --task masked_lm --arch roberta --encoder-layers 2 --encoder-embed-dim 128 "
    "--encoder-ffn-embed-dim 512 --encoder-attention-heads 4 --lr 0.002 --batch-size 16"
)
VANILLA = "--criterion cross_entropy --share-decoder-input-output-embed"
HEADLESS = "--criterion contrastive_weight_tying"
TUNED = f"{VANILLA} --lr 0.001"
# updates of 1,024 tokens; a tenth of them tunes a headless decoder into a language model
DECODER_UPDATES, ENCODER_UPDATES, SWEEP_UPDATES = 350, 700, 150
TENTH = DECODER_UPDATES // 10
# rows of 64 tokens in a micro-batch, micro-batches of an update, flags
SWEEP = {
    "4 rows": (4, 16, ""),
    "16 rows": (16, 4, ""),
    "64 rows": (64, 1, ""),
    "4 rows, global negatives": (4, 16, "--negatives global"),
}
RATES = ("0.002", "0.008", "0.016")
CLAIMS = ("+1.6 GLUE", "+2.7 LAMBADA", "20 times")


def words_of(flags: str, updates: int, batch: str = "") -> tuple[str, ...]:
    """Return the words of a run: a tenth of it warms up, validation comes seven times."""
    warm = max(1, updates // 10)
    schedule = f"--max-update {updates} --warmup-updates {warm} --validate-interval-updates "
    return tuple(f"{flags} {batch} {schedule}{max(1, updates // 7)}".split())


def in_fives(updates: float) -> int:
    """Return a number of updates whose last is logged."""
    return 5 * max(1, round(updates / 5))


def speed(data: Path, out: Path, updates: int = 60, rounds: int = 3) -> dict[str, Any]:
    """Return how many tokens a second each loss trains, and the ratio; the two take turns.

    Every run is alone, with one thread; its first half does not count.
    """
    flags = {
        "decoder": (
            f"{DECODER} --batch-size 16 {VANILLA}",
            f"{DECODER} --batch-size 16 {HEADLESS}",
        ),
        "encoder": (f"{ENCODER} --criterion masked_lm", f"{ENCODER} {HEADLESS}"),
    }
    rates_of: dict[str, Any] = {}
    for kind, pair in flags.items():
        rates: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            for flag, rate in zip(pair, rates, strict=True):
                folder = out / f"speed-{kind}-{len(rates[0])}-{len(rates[1])}-{number}"
                folder.mkdir(parents=True, exist_ok=True)
                words = [data, *words_of(flag, updates), "--disable-validation", "--log-interval",
                         updates // 2, "--save-dir", folder]  # fmt: skip
                studies.call(["fairseq-train", *words], folder / "train.log")
                rate.append(studies.curve(folder, "train_inner")[-1]["wps"])
        vanilla, headless = map(statistics.median, rates)
        rates_of[kind] = {"vanilla": rates[0], "headless": rates[1], "ratio": headless / vanilla}
    return rates_of


# -- what is measured ------------------------------------------------------------------------------


def last_words(text: Path, out: Path) -> Path:
    """Write the sentences of the test text that end in a word, without their full stop."""
    path = out / "last-words.jsonl"
    if not path.is_file():
        lines = (text / "test.txt").read_text(encoding="utf-8").splitlines()
        stripped = [re.sub(r"[\W_]+$", "", line) for line in lines]
        kept = [line for line in stripped if len(line.split()) > 7]
        records = "".join(json.dumps({"text": line}) + "\n" for line in kept)
        path.write_text(records, encoding="utf-8")
    return path


def score(model: Path, out: Path, log: Path) -> dict[str, float]:
    """Return the loss of a decoder on the test text (bits a token), and its last words."""
    words = ["fairseq-eval-lm", out / "data-bin", "--path", model, "--num-workers", 0, "--json",
             "--cpu"]  # fmt: skip
    text = json.loads(studies.call(words, log).splitlines()[-1])
    words += ["--bpe", "byte_level", "--byte-level-tokenizer", out / "tokenizer.json",
              "--last-word", out / "last-words.jsonl"]  # fmt: skip
    last = json.loads(studies.call(words, log).splitlines()[-1])
    return {
        "loss": text["loss"],
        "last_word_accuracy": 100 * last["accuracy"],
        "last_word_perplexity": last["perplexity"],
    }


def with_head(folder: Path, name: str, *flags: str) -> Path:
    """Give the headless model of a run its embeddings as a head, once; return the new file."""
    path = folder / name
    if not path.is_file():
        studies.call(
            ["fairseq-export", folder / "checkpoint_last.pt", "--add-head", "tied", *flags,
             "--data", folder.parent / "data-bin", "--out", path], folder / "measure.log",
        )  # fmt: skip
    return path


def with_bias(folder: Path) -> Path:
    """Add the logarithm of the words' frequencies to that head, too."""
    return with_head(folder, "tied-head-and-bias.pt", "--log-unigram-bias")


def measure_decoder(folder: Path) -> dict[str, Any]:
    """Return the scores of a decoder; of a headless one with two heads that need no training."""
    model, log = folder / "checkpoint_last.pt", folder / "measure.log"
    if "contrastive_weight_tying" not in (folder / "config.yaml").read_text(encoding="utf-8"):
        return {"as trained": score(model, folder.parent, log)}
    scores = {
        "tied head": score(with_head(folder, "tied-head.pt"), folder.parent, log),
        "tied head + bias": score(with_bias(folder), folder.parent, log),
    }
    negatives = studies.curve(folder, "train")[-1]["negatives"]
    return {**scores, "train_negatives": negatives}


def measure_encoder(glue: Path, epochs: int, folder: Path) -> dict[str, Any]:
    """Return the accuracy on SST-2, fine-tuned or frozen, and how alike states of the text are."""
    model, data = folder / "checkpoint_last.pt", folder.parent / "data-bin"
    words: list[object] = [
        "fairseq-validate", data, "--path", model, "--valid-subset", "test", "--seed", 1,
        "--max-valid-steps", 1_000_000, "--criterion", "contrastive_weight_tying", "--json",
    ]  # fmt: skip
    states = json.loads(studies.call(words, folder / "measure.log").splitlines()[-1])["test"]
    figures: dict[str, Any] = {"states": states}
    for name, flags in (("sst2", []), ("frozen", ["--freeze-encoder", "--pooling", "mean"])):
        words = ["fairseq-glue", model, "--glue-dir", glue, "--out", folder / name,
                 "--tasks", "SST-2", "--dict-dir", data, "--bpe", "byte_level",
                 "--tokenizer-file", folder.parent / "tokenizer.json", "--max-epoch", epochs,
                 "--lr", "0.001", "--cpu", "--json", *flags]  # fmt: skip
        printed = json.loads(studies.call(words, folder / "glue.log").splitlines()[-1])
        figures |= {name: 100 * printed[0]["best"], "majority": printed[0]["majority"]}
    return figures


# -- the parts -------------------------------------------------------------------------------------

Train = Callable[[Sequence[studies.Run]], list[Any]]


def decoder_part(train: Train, out: Path, ratio: float, seeds: Sequence[int]) -> list[Any]:
    """Train decoders with either loss: as many tokens, and as much time.

    The control is a usual decoder whose head starts with the words' frequencies, as the bias gives
    them to a headless one at its end.
    """
    batch = "--batch-size 16"
    longer = in_fives(ratio * (DECODER_UPDATES - TENTH))
    stages = {
        "vanilla": (VANILLA, DECODER_UPDATES),
        "headless": (HEADLESS, DECODER_UPDATES),
        "headless, nine tenths": (HEADLESS, DECODER_UPDATES - TENTH),
        "headless, longer": (HEADLESS, longer),
        "untrained": (f"{HEADLESS} --lr 1e-9", 5),
    }
    first = [
        studies.Run(name, seed, words_of(f"{DECODER} {flags}", updates, batch))
        for name, (flags, updates) in stages.items()
        for seed in seeds
    ]
    results = train(first)
    second = [later for run in first for later in continued(run, out, batch)]
    second.sort(key=lambda run: run.name)
    return [result for result in results if result["name"] != "untrained"] + train(second)


def continued(run: studies.Run, out: Path, batch: str) -> Iterator[studies.Run]:
    """Yield the runs that begin with the model of a headless run."""
    folder = run.folder(out)
    if run.name == "untrained":
        flags, source = f"{DECODER} {VANILLA} --head-bias", with_bias(folder)
        words = words_of(flags, DECODER_UPDATES, batch)
        yield studies.Run(
            "vanilla, from frequencies", run.seed, (*words, "--finetune-from-model", str(source))
        )
    elif run.name in ("headless, nine tenths", "headless, longer"):
        for name, flags, source in (
            ("fine-tuning", "", folder / "checkpoint_last.pt"),
            ("bias + fine-tuning", "--head-bias", with_bias(folder)),
        ):
            words = words_of(f"{DECODER} {TUNED} {flags}", TENTH, batch)
            words = (*words, "--finetune-from-model", str(source))
            yield studies.Run(f"{run.name} + {name}", run.seed, words)


def rates_part(train: Train, seeds: Sequence[int]) -> list[Any]:
    """Train decoders at other learning rates, in case that of the others suits one loss better."""
    return train([
        studies.Run(
            f"{name}, lr {rate}",
            seed,
            words_of(f"{DECODER} {flags} --lr {rate}", DECODER_UPDATES, "--batch-size 16"),
        )
        for name, flags in (("vanilla", VANILLA), ("headless", HEADLESS))
        for rate in RATES
        for seed in seeds
    ])  # fmt: skip


def sweep_part(train: Train, seeds: Sequence[int]) -> list[Any]:
    """Train headless decoders on the same tokens a step, in micro-batches of several sizes."""
    return train([
        studies.Run(
            name,
            seed,
            words_of(
                f"{DECODER} {HEADLESS} {flags}",
                SWEEP_UPDATES,
                f"--batch-size {rows} --update-freq {frequency}",
            ),
        )
        for name, (rows, frequency, flags) in SWEEP.items()
        for seed in seeds
    ])  # fmt: skip


def encoder_part(train: Train, ratio: float, seeds: Sequence[int]) -> list[Any]:
    """Train encoders with either loss: as many tokens, and as much time."""
    variants = {
        "vanilla": ("--criterion masked_lm", ENCODER_UPDATES),
        "headless": (HEADLESS, ENCODER_UPDATES),
        "headless, longer": (HEADLESS, in_fives(ratio * ENCODER_UPDATES)),
        "vanilla, ten times": ("--criterion masked_lm", 10 * ENCODER_UPDATES),
        "headless, ten times": (HEADLESS, 10 * ENCODER_UPDATES),
        "random weights": (f"{HEADLESS} --lr 1e-9", 5),
    }
    return train([
        studies.Run(name, seed, words_of(f"{ENCODER} {flags}", updates))
        for name, (flags, updates) in variants.items()
        for seed in seeds
    ])  # fmt: skip


# -- tables ----------------------------------------------------------------------------------------


def heads_of(result: dict[str, Any]) -> list[str]:
    """Return the heads a decoder was scored with."""
    return [name for name in ("as trained", "tied head", "tied head + bias") if name in result]


def perplexities(group: Sequence[Any], head: str) -> list[float]:
    """Return the test perplexity of every seed."""
    return [2 ** result[head]["loss"] for result in group]


def decoder_table(record: dict[str, Any]) -> str:
    """Return test perplexity and last words of the decoders, with each of their heads."""
    rows = []
    for name, group in studies.by_name(record["results"]).items():
        for head in heads_of(group[0]):
            scores = [result[head] for result in group]
            tokens = group[0]["tokens"] * (1 if "tuning" not in name else 0)
            rows.append([
                name, head, f"{tokens:,}" if tokens else f"+ {group[0]['tokens']:,}",
                studies.spread(perplexities(group, head), 1),
                studies.spread([one["last_word_accuracy"] for one in scores], 2),
            ])  # fmt: skip
    for name, bits in {"word frequencies": record["unigram"], **record["floors"]}.items():
        rows.append([name, "counted", "", f"{2**bits:.1f}", ""])
    header = ["decoder", "head", "tokens", "test perplexity", "last word right, %"]
    return studies.table(header, rows)


def sweep_table(record: dict[str, Any]) -> str:
    """Return what the number of negatives did."""
    rows = []
    for name, group in studies.by_name(record["results"]).items():
        negatives = [result["train_negatives"] for result in group]
        cells = [
            studies.spread(perplexities(group, head), 1)
            for head in ("tied head", "tied head + bias")
        ]
        seconds = studies.spread([result["seconds"] for result in group], 0)
        rows.append([name, studies.spread(negatives, 0), *cells, seconds])
    header = ["micro-batch", "distinct negatives", "test perplexity", "with bias", "seconds a run"]
    return studies.table(header, rows)


def encoder_table(record: dict[str, Any]) -> str:
    """Return SST-2 and the validation figures of the encoders."""
    rows = []
    for name, group in studies.by_name(record["results"]).items():
        shown = [studies.spread([result[key] for result in group], 1) for key in ("sst2", "frozen")]
        for key in ("accuracy", "avg_cosine_l0", "avg_cosine_l1", "avg_cosine_l2"):
            digits = 1 if key == "accuracy" else 2
            shown.append(studies.spread([result["states"][key] for result in group], digits))
        rows.append([name, f"{group[0]['tokens']:,}", *shown])
    majority = f"{100 * record['results'][0]['majority']:.1f}"
    rows.append(["most frequent label", "", majority, majority, "", "", "", ""])
    header = ["encoder", "tokens", "SST-2, %", "frozen, %", "retrieval, %"]
    return studies.table([*header, "cosine of embeddings", "layer 1", "layer 2"], rows)


def facts(record: dict[str, Any]) -> str:
    """Return a line on what the runs were and took."""
    ratios = ", ".join(
        f"{kind} {one['ratio']:.2f}x" for kind, one in record.get("speed", {}).items()
    )
    took, _, where = studies.spent(record).partition(", ")
    return (
        f"{len(record['results'])} runs, seeds {studies.seeds_of_all()}; {took}, "
        f"tokens/s headless against vanilla: {ratios}; {where}.\n"
    )


TABLES = {
    "decoder": decoder_table,
    "rates": decoder_table,
    "sweep": sweep_table,
    "encoder": encoder_table,
}


def tables() -> str:
    """Return the tables of all parts whose results are there."""
    return studies.tables(RESULTS, TABLES, facts)


def draw(results: Path) -> None:
    """Draw the perplexities of the decoders, and those of the sweep against its negatives."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = {
        part: studies.read(path)
        for part in ("decoder", "sweep")
        if (path := results / f"{part}.json").is_file()
    }
    figure, panels = pyplot.subplots(1, len(records), figsize=(6 * len(records), 4), squeeze=False)
    for axes, part in zip(panels[0], records, strict=True):
        {"decoder": draw_decoders, "sweep": draw_sweep}[part](axes, records[part])
    figure.tight_layout()
    figure.savefig(results / "headless.png", dpi=100)
    pyplot.close(figure)


def draw_decoders(axes: Any, record: dict[str, Any]) -> None:
    """Draw a bar for every decoder and head, with every seed as a point."""
    bars = [
        (f"{name}: {head}" if len(heads_of(group[0])) > 1 else name, perplexities(group, head))
        for name, group in studies.by_name(record["results"]).items()
        for head in heads_of(group[0])
    ][::-1]
    axes.barh([name for name, _ in bars], [statistics.mean(seeds) for _, seeds in bars], alpha=0.5)
    for height, (_, seeds) in enumerate(bars):
        axes.plot(seeds, [height] * len(seeds), "k.", markersize=3)
    axes.axvline(2 ** record["unigram"], color="grey", linestyle=":", label="word frequencies")
    axes.set(xlabel="test perplexity", xscale="log", xlim=(100, None))
    axes.legend()


def draw_sweep(axes: Any, record: dict[str, Any]) -> None:
    """Draw perplexity against the distinct negatives of a token."""
    for head in ("tied head", "tied head + bias"):
        for result in record["results"]:
            global_ones = "global" in result["name"]
            axes.plot(
                result["train_negatives"],
                2 ** result[head]["loss"],
                "^" if global_ones else "o",
                color="C0" if head == "tied head" else "C1",
                label=f"{head}{', global' if global_ones else ''}",
            )
    known: dict[str, Any] = {}
    for mark, label in zip(*axes.get_legend_handles_labels(), strict=True):
        known.setdefault(label, mark)
    axes.legend(known.values(), known.keys())
    axes.set(xlabel="distinct negatives", ylabel="test perplexity", xscale="log", yscale="log")
    axes.set_xticks(sorted({round(result["train_negatives"], -2) for result in record["results"]}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter("")


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, help="folder with train.txt, valid.txt, test.txt")
    parser.add_argument("--glue-dir", type=Path, help="folder with SST-2/train.tsv, SST-2/dev.tsv")
    parser.add_argument("--only", choices=list(TABLES), help="one part (default: all)")
    parser.add_argument("--smoke", action="store_true", help="a few updates a run, one seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (2)")
    study(studies.arguments(parser, tables, ("text", "glue-dir")))


def study(args: argparse.Namespace) -> None:
    """Run the parts and write their results."""
    global DECODER_UPDATES, ENCODER_UPDATES, SWEEP_UPDATES, TENTH
    if args.smoke:
        DECODER_UPDATES, ENCODER_UPDATES, SWEEP_UPDATES, TENTH = 10, 7, 7, 1
    data = studies.prepare([args.text], args.out, 8000)
    last_words(args.text, args.out)
    rounds = (6, 1) if args.smoke else (60, 3)
    rates = studies.once(args.out / "speed.json", lambda: speed(data, args.out, *rounds))
    seeds = studies.SEEDS[: 1 if args.smoke else None]

    def train(measure: Callable[[Path], Any], runs: Sequence[studies.Run]) -> list[Any]:
        return studies.run_all(runs, data, args.out, measure, args.jobs)

    decoders = functools.partial(train, measure_decoder)
    glue = functools.partial(measure_encoder, args.glue_dir.resolve(), 1 if args.smoke else 3)
    parts: dict[str, Callable[[], list[Any]]] = {
        "decoder": lambda: decoder_part(decoders, args.out, rates["decoder"]["ratio"], seeds),
        "rates": lambda: rates_part(decoders, seeds),
        "sweep": lambda: sweep_part(decoders, seeds),
        "encoder": lambda: encoder_part(
            functools.partial(train, glue), rates["encoder"]["ratio"], seeds
        ),
    }
    results = args.out / "results" if args.smoke else RESULTS
    for part, run in parts.items():
        if args.only in (None, part):
            done = run()
            bits = studies.unigram_bits(args.out, "test", ends=True)
            path = results / f"{part}.json"
            counted = floors.text_bits(args.out / "train.bpe", args.out / "test.bpe")
            studies.record(done, path, args.out, unigram=bits, floors=counted, speed=rates)
            print(TABLES[part](studies.read(path)), flush=True)
    draw(results)


if __name__ == "__main__":
    main()
