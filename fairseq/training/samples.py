"""What the model makes of a few lines at every validation: ``--sample-prompts FILE``.

A masked model fills the ``<mask>`` of each line, a causal one goes on where the line ends. What
comes out is in the log and, one record a validation, in ``samples.jsonl`` of the run folder. It is
a function of the weights, the lines and the seed: a run that was stopped writes what one that was
not writes, and no random number of the training is used.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fairseq import utils
from fairseq.config.sections import FairseqConfig
from fairseq.data import encoders
from fairseq.errors import ConfigError, DataError, FairseqError
from fairseq.files.io import require_file
from fairseq.files.line_reader import LineReader
from fairseq.logging.console import printable
from fairseq.logging.sinks import open_records
from fairseq.models.base import BaseFairseqModel, FairseqLanguageModel
from fairseq.modules.predictions import tells_projection
from fairseq.tasks.base import FairseqTask
from fairseq.tasks.precision import autocast

logger = logging.getLogger("fairseq.samples")

MASK = "<mask>"
MOST_LINES = 32  # they are looked at by eye, and each costs time at every validation
FILLS = 5
NEW_TOKENS = 30
# Nucleus sampling (Holtzman et al. 2020): the likeliest continuation of a young model is a loop.
NUCLEUS = 0.9

Sample = dict[str, Any]


class Sampler:
    """Fills or continues the lines of ``--sample-prompts``.

    Args:
        cfg: the configuration of the run.
        task: its task.
        model: the model that is trained, in any mode; what is sampled from is its weights of the
            moment, which validation measures, not their moving average.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if a line cannot be used; the message has its number.
        ConfigError: if the model is no language model, or the text encoder is missing.
    """

    def __init__(self, cfg: FairseqConfig, task: FairseqTask, model: BaseFairseqModel) -> None:
        self.cfg, self.model = cfg, model
        path = str(cfg.dataset.sample_prompts)
        prompts = read_prompts(path)
        if task.target_dictionary is not task.source_dictionary:
            raise ConfigError(
                f"--sample-prompts needs a language model, and --task {cfg.task._name} trains none"
            )
        _require_encoder(cfg, task.source_dictionary)
        prepare = _continuations if isinstance(model, FairseqLanguageModel) else _fills
        self._say = prepare(cfg, task, model, prompts)

    def sample(self, device: torch.device) -> list[Sample]:
        """Return what the model says now, one entry a line, in their order.

        Returns:
            ``prompt``, the line, with ``fills``, pairs (text, probability), the likeliest first;
            or with ``continuation``, what follows the line.
        """
        with utils.model_eval(self.model), autocast(self.cfg, device), torch.no_grad():
            return self._say(device)

    def report(self, device: torch.device, folder: Path | None, position: dict[str, Any]) -> None:
        """Log what the model says now and append it to ``samples.jsonl``.

        Args:
            device: where the model is.
            folder: the run folder; None writes no file.
            position: ``update`` and ``epoch``; ``done``, the updates the process started with.
        """
        samples = self.sample(device)
        for number, sample in enumerate(samples, start=1):
            logger.info("sample %d: %s", number, sample_line(sample))
        if folder is not None:
            record = {"update": position["update"], "epoch": position["epoch"]}
            record |= {"time": round(time.time(), 3), "samples": samples}
            open_records(folder / "samples.jsonl", position["done"]).write(json.dumps(record))


def sample_line(sample: Sample) -> str:
    """Return a sample as one line of printable text."""
    fills = [f"{text.strip()} {probability:.3f}" for text, probability in sample.get("fills", ())]
    said = ", ".join(fills) if fills else sample["continuation"].strip()
    return printable(f"{sample['prompt']} -> {said}")


def read_prompts(path: str) -> list[tuple[int, str]]:
    """Return the lines of a file that are not blank, each with its number.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it has no line or too many, or is not UTF-8.
    """
    require_file(path, "file of prompts", "Name a text file, a prompt a line (--sample-prompts).")
    reader, prompts = LineReader([path]), list[tuple[int, str]]()
    for block in reader.blocks():
        lines = enumerate(reader.lines(block, 0), start=block.first_line)
        prompts += [(number, line) for number, line in lines if line]
        if len(prompts) > MOST_LINES:
            raise DataError(
                f"{path} (--sample-prompts) has more than {MOST_LINES} lines; they are all used at "
                "every validation. Take the first ones: head -n 10"
            )
    if not prompts:
        raise DataError(f"{path} (--sample-prompts) has no line of text: write one prompt a line")
    return prompts


def _require_encoder(cfg: FairseqConfig, dictionary: Any) -> None:
    """Raise if the dictionary's symbols are numbers of pieces and no encoder makes them of text."""
    symbols = [s for s in dictionary.symbols[dictionary.nspecial :][:200] if s != MASK]
    numbers = sum(symbol.isdigit() for symbol in symbols)
    if cfg.bpe is None and symbols and numbers > 0.9 * len(symbols):
        beside = Path(utils.split_paths(str(cfg.task.data))[0]) / "tokenizer.json"
        named = beside if beside.is_file() else "TOKENIZER.json"
        raise ConfigError(
            "--sample-prompts: the dictionary holds numbers of subword pieces, and no encoder is "
            f"named that turns text into them: add --bpe byte_level --byte-level-tokenizer {named}"
            ", or --bpe gpt2"
        )


def _place(cfg: FairseqConfig, number: int) -> str:
    return f"{cfg.dataset.sample_prompts} (--sample-prompts), line {number}"


def _check_tokens(
    cfg: FairseqConfig, number: int, tokens: Sequence[int], most: int, dictionary: Any, mask: int
) -> None:
    """Raise if a line is too long for the model, or says nothing to it."""
    if len(tokens) > most:
        raise DataError(
            f"{_place(cfg, number)}: {len(tokens)} tokens are more than the {most} that the model "
            "takes here; shorten the line"
        )
    # the ends, which masked models see, are not the line's
    words = {*tokens} - {dictionary.bos(), dictionary.eos()}
    if dictionary.unk() in words and words <= {dictionary.unk(), mask}:
        raise DataError(
            f"{_place(cfg, number)}: no word of it is in the dictionary. Words there are those of "
            "the training text; if it was encoded, name the encoder with --bpe"
        )


def _fills(
    cfg: FairseqConfig, task: FairseqTask, model: BaseFairseqModel, prompts: list[tuple[int, str]]
) -> Callable[[torch.device], list[Sample]]:
    """Return a function that fills the mask of each line."""
    interface = type(model).hub_interface(cfg, task, [model])
    try:
        fills = hasattr(interface, "fill_mask") and tells_projection(model)
    except FairseqError as error:  # it has no head
        raise ConfigError(f"--sample-prompts: masks cannot be filled: {error}") from error
    if not fills:
        raise ConfigError(
            f"--sample-prompts: {type(model).__name__} neither fills masks nor continues text"
        )
    dictionary = task.source_dictionary
    mask = getattr(task, "mask_idx", dictionary.index(MASK))
    for number, line in prompts:
        if (masks := line.count(MASK)) != 1:
            raise DataError(
                f"{_place(cfg, number)}: a masked model fills one {MASK} in each line, and this "
                f"one has {masks or 'none'}"
            )
        tokens = interface.encode_masked(line).tolist()
        _check_tokens(cfg, number, tokens, model.max_positions(), dictionary, mask)

    def fill(device: torch.device) -> list[Sample]:
        interface.to(device)
        found = [(line, interface.fill_mask(line, topk=FILLS)) for _, line in prompts]
        return [{"prompt": line, "fills": [(t, p) for _, p, t in fills]} for line, fills in found]

    return fill


def _continuations(
    cfg: FairseqConfig, task: Any, model: BaseFairseqModel, prompts: list[tuple[int, str]]
) -> Callable[[torch.device], list[Sample]]:
    """Return a function that continues each line; its draws are the same at every validation."""
    dictionary = task.source_dictionary
    found = encoders.build_tokenizer(cfg.tokenizer), encoders.build_bpe(cfg.bpe)
    stages = [stage for stage in found if stage is not None]
    encoded: list[torch.Tensor] = []
    for number, line in prompts:
        pieces = line
        for stage in stages:
            pieces = stage.encode(pieces)
        ids_T = dictionary.encode_line(pieces, add_if_not_exist=False).long()
        # one token stands in front, and one at least is to follow
        most = model.max_positions() - 2
        _check_tokens(cfg, number, ids_T[:-1].tolist(), most, dictionary, dictionary.index(MASK))
        encoded.append(ids_T)
    dataset = task.build_dataset_for_inference(encoded, [len(ids_T) for ids_T in encoded])
    settings = argparse.Namespace(
        beam=1,
        sampling=True,
        sampling_topp=NUCLEUS,
        max_len_a=1,
        max_len_b=NEW_TOKENS,
        seed=cfg.common.seed,
    )

    def text_of(generator: Any, ids_T: torch.Tensor) -> str:
        ignored = {dictionary.pad(), *generator.symbols_to_strip_from_output}
        text = dictionary.string(ids_T, extra_symbols_to_ignore=ignored)
        for stage in reversed(stages):
            text = stage.decode(text)
        return text

    def continue_lines(device: torch.device) -> list[Sample]:
        generator = task.build_generator([model], settings)
        batch = dataset.collater([dataset[i] for i in range(len(encoded))])
        batch = utils.move_to_device(batch, device)
        found = task.inference_step(generator, [model], batch)
        samples = []
        for (_, line), ids_T, hypotheses in zip(prompts, encoded, found, strict=True):
            whole = text_of(generator, hypotheses[0]["tokens"])
            rest = whole.removeprefix(text_of(generator, ids_T))
            samples.append({"prompt": line, "continuation": rest})
        return samples

    return continue_lines
