"""Text from checkpoints: what fairseq-generate and fairseq-interactive do.

Shapes: B sentences, T tokens.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from fairseq import utils
from fairseq.checkpoint.layout import upgrade_state
from fairseq.config.build import plain
from fairseq.config.components import class_of
from fairseq.config.registry import config_class
from fairseq.config.schema import public_fields
from fairseq.data.datasets.base import FairseqDataset
from fairseq.data.storage.dictionary import Dictionary
from fairseq.data.storage.load import folder_of_dictionary
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError, DataError
from fairseq.files.io import BYTE_ORDER_MARK, require_file
from fairseq.files.safe_load import safe_load
from fairseq.hub.fill_text import MaskFiller
from fairseq.hub.language_model import GeneratorHubInterface, none_fits
from fairseq.hub.load import (
    companions,
    encoder_name,
    load_by_settings,
    load_causal_models,
    stated_settings,
)
from fairseq.hub.outputs import Continuation, Hypothesis, Tally
from fairseq.logging.progress_bar import progress_of
from fairseq.protocols import Sample

logger = logging.getLogger("fairseq.generation")

DEFAULT_MAX_TOKENS = 12000


def stated(cfg: Any) -> dict[str, Any]:
    """Return the settings that a configuration states, those of its text encoders included.

    Args:
        cfg: see :func:`fairseq.hub.load.stated_settings`.
    """
    flat = stated_settings(cfg, "language_modeling")
    values = plain(cfg)
    for flag in ("bpe", "tokenizer"):
        section = values.get(flag)
        if isinstance(section, dict):
            flat |= {flag: section.get("_name"), **section}
        elif section is not None:
            names = [one.name for one, _ in public_fields(config_class(class_of(flag, section)))]
            flat |= {flag: section, **{name: values[name] for name in names if name in values}}
    return {name: value for name, value in flat.items() if value is not None and name != "_name"}


class TextGenerator:
    """Loaded models that continue text.

    Files of the encoder (``tokenizer.json``, ``encoder.json`` ...) are found beside the dictionary
    or the checkpoint, whatever the checkpoint names, unless a flag names others.

    Args:
        flat: flat settings: ``path``, ``data``, and whatever else should differ from the
            checkpoint, such as ``beam``.
        loaded: models, configuration and task, if they are loaded already.

    Raises:
        ConfigError: if no path is given, or the model is no causal LM.
    """

    def __init__(
        self, flat: Mapping[str, Any], loaded: tuple[list[Any], Any, Any] | None = None
    ) -> None:
        models, self.config, self.task = loaded or load_causal_models({**_beside(flat), **flat})
        self.flat = flat
        self.device = choose_device(self.config)
        self.hub = GeneratorHubInterface(self.config, self.task, models).to(self.device)
        if flat.get("fp16") and self.device.type != "cpu":
            self.hub.half()
        if flat.get("bf16"):
            self.hub.bfloat16()
        self.models: list[Any] = list(self.hub.models)
        settings = {**plain(self.config.generation), "seed": self.config.common.seed}
        self.generator = self.task.build_generator(self.models, argparse.Namespace(**settings))
        self.tally = Tally()

    # -- sources ---------------------------------------------------------------------------------

    def continue_subset(self) -> Iterator[Continuation]:
        """Continue the lines of ``--gen-subset``, or the first ``--prefix-size`` tokens of each."""
        config, size = self.config, self.config.generation.prefix_size
        if size < 0:
            raise ConfigError(f"--prefix-size must not be negative, not {size}")
        subset = config.dataset.gen_subset
        self.task.load_dataset(subset)
        batches = self._batches(self.task.dataset(subset), limited=size == 0)
        with progress_of(config.common, batches, f"generate from '{subset}' subset") as progress:
            for sample in progress:
                if sample:
                    yield from self._continue(sample, self._prefix(sample, size), targets=True)
                    progress.log({"wps": round(self.tally.tokens / self.tally.seconds)})

    def continue_lines(self, lines: Iterable[str]) -> Iterator[Continuation]:
        """Continue texts, ``--buffer-size`` of them at a time."""
        buffer: list[str] = []
        number = 0
        for line in lines:
            buffer.append(line.strip())
            if len(buffer) >= max(1, self.config.interactive.buffer_size):
                yield from self._continue_buffer(buffer, number)
                number, buffer = number + len(buffer), []
        yield from self._continue_buffer(buffer, number)

    def _continue_buffer(self, buffer: list[str], first: int) -> list[Continuation]:
        if not buffer:
            return []
        tokens = [self.hub.encode(line) for line in buffer]
        lengths = [len(sentence) for sentence in tokens]
        continued: list[Continuation] = []
        for sample in self._batches(self.task.build_dataset_for_inference(tokens, lengths)):
            sample["id"] = sample["id"] + first
            continued += self._continue(sample, None, targets=False)
        return sorted(continued, key=lambda one: one.number)

    def _batches(self, dataset: FairseqDataset, limited: bool = True) -> Any:
        data, flat = self.config.dataset, self.flat
        max_tokens, batch_size = flat.get("max_tokens"), flat.get("batch_size")
        limits = [model.max_positions() for model in self.models] if limited else []
        longest = utils.resolve_max_positions(self.task.max_positions(), *limits)
        if data.skip_invalid_size_inputs_valid_test and none_fits(dataset, longest):
            return []
        return self.task.get_batch_iterator(
            dataset=dataset,
            max_tokens=max_tokens or (None if batch_size else DEFAULT_MAX_TOKENS),
            max_sentences=batch_size,
            max_positions=longest,
            ignore_invalid_inputs=data.skip_invalid_size_inputs_valid_test,
            num_shards=max(1, data.num_shards),
            shard_id=data.shard_id,
            num_workers=0,
            disable_iterator_cache=True,
        ).next_epoch_itr(shuffle=False)

    def _prefix(self, sample: Sample, size: int) -> Tensor | None:
        """Return the first ``size`` tokens of the targets, (B, size), None for all the sources."""
        if size == 0:
            return None
        first = 1 if getattr(self.task.cfg, "add_bos_token", False) else 0
        return sample["target"][:, first : first + size].to(self.device)

    # -- one batch -------------------------------------------------------------------------------

    def _continue(self, sample: Sample, prefix: Tensor | None, targets: bool) -> list[Continuation]:
        started = time.perf_counter()
        sample = utils.move_to_device(sample, self.device)
        outputs = self.task.inference_step(
            self.generator, self.models, sample, prefix_tokens=prefix
        )
        seconds = time.perf_counter() - started
        self.tally.seconds += seconds
        self.tally.sentences += len(outputs)
        results = []
        for row, hypotheses in enumerate(outputs):
            self.tally.tokens += len(hypotheses[0]["tokens"])
            source_T = sample["net_input"]["src_tokens"][row]
            results.append(
                Continuation(
                    int(sample["id"][row]),
                    self._pieces(self.task.source_dictionary, source_T),
                    self._pieces(self.task.target_dictionary, sample["target"][row])
                    if targets
                    else None,
                    [self._hypothesis(one) for one in hypotheses[: self.config.generation.nbest]],
                    seconds,
                )
            )
        return results

    def _hypothesis(self, output: Mapping[str, Any]) -> Hypothesis:
        pieces = self._pieces(self.task.target_dictionary, output["tokens"])
        bits = (output["positional_scores"].double() / math.log(2)).tolist()
        text = self.hub.detokenize(self.hub.remove_bpe(pieces))
        return Hypothesis(pieces, text, float(output["score"]) / math.log(2), bits)

    def _pieces(self, dictionary: Dictionary, tokens_T: Tensor) -> str:
        ignored = {dictionary.pad(), *self.generator.symbols_to_strip_from_output}
        return dictionary.string(
            tokens_T, self.config.common_eval.post_process, extra_symbols_to_ignore=ignored
        )


def text_writer(flat: Mapping[str, Any], guess: bool = False) -> TextGenerator | MaskFiller:
    """Return what continues text, or fills masks, as the checkpoint does.

    Args:
        flat: see :class:`TextGenerator`.
        guess: where neither ``flat`` nor the checkpoint names a text encoder, take the one that
            the dictionary was made with, and the checkpoint's own folder of data.

    Raises:
        ConfigError: if no path is given, or the model does neither.
    """
    state = None
    if guess and flat.get("path"):
        first = utils.split_paths(flat["path"])[0]
        state = upgrade_state(safe_load(first))
        own = Path(first).parent
        flat = {"data": str(folder_of_dictionary(own, state) or own), **flat}
        encoder = encoder_name(flat.get("bpe"), state, Path(utils.split_paths(flat["data"])[0]))
        flat = {**flat, "bpe": encoder}
    flat = {**_beside(flat), **flat}
    loaded = load_by_settings(flat, ensemble=True, state=state)
    if hasattr(loaded[2], "eval_lm_dataloader"):
        return TextGenerator(flat, loaded)
    return MaskFiller(flat, loaded)


def _beside(flat: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of encoders whose files lie beside the dictionary or the checkpoint."""
    paths = [path for name in ("data", "path") if (path := flat.get(name))]
    first = [os.path.abspath(utils.split_paths(path)[0]) for path in paths]
    return companions(*(p if os.path.isdir(p) else os.path.dirname(p) for p in first))


def generate(flat: Mapping[str, object]) -> tuple[Iterator[Continuation], Tally]:
    """Continue a subset of binarized data; lines are prompts unless ``sample_break_mode`` is given.

    Args:
        flat: see :class:`TextGenerator`; ``gen_subset`` is ``test`` if not given.

    Returns:
        the continuations, as they are made, and the tally, which is complete after the last.
    """
    writer = TextGenerator({"sample_break_mode": "eos", **flat})
    return writer.continue_subset(), writer.tally


def write_texts(
    flat: Mapping[str, Any], texts: Sequence[str]
) -> tuple[Iterator[Continuation], Tally]:
    """Continue texts, or fill their masks; see :func:`generate`.

    Args:
        flat: see :class:`TextGenerator`; ``data`` may be left out.
        texts: prompts, or texts with ``<mask>``.
    """
    writer = text_writer(flat, guess=True)
    return writer.continue_lines(texts), writer.tally


def interact(
    flat: Mapping[str, object], stream: TextIO | None = None
) -> tuple[Iterator[Continuation], Tally]:
    """Continue the lines of a stream, or fill their masks; see :func:`generate`.

    Args:
        flat: see :class:`TextGenerator`; ``input`` names a file, ``-`` the standard input.
        stream: text to read instead.
    """
    writer = text_writer(flat)
    name = writer.config.interactive.input

    def continuations() -> Iterator[Continuation]:
        with _opened(name, stream) as lines:
            yield from writer.continue_lines(_unmarked(lines))

    return continuations(), writer.tally


@contextmanager
def _opened(name: str, stream: TextIO | None) -> Iterator[Iterable[str]]:
    """Give the lines of the text to read."""
    if stream is not None:
        yield stream
    elif name == "-":
        binary = getattr(sys.stdin, "buffer", None)  # a stand-in may hold text alone
        yield sys.stdin if binary is None else _decoded(binary, "standard input")
    else:
        require_file(name, "input", "Name a file of text, or - for standard input (--input).")
        with open(name, "rb") as handle:
            yield _decoded(handle, name)


def _unmarked(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines, the first without a byte-order mark."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(BYTE_ORDER_MARK)


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield lines of UTF-8, each as soon as it is there.

    Raises:
        DataError: on bytes that are not UTF-8.
    """
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x}). Convert the "
                "text, for example with iconv"
            ) from error
