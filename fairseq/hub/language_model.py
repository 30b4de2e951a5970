"""Causal language models at hand: text in; continuations, samples and scores out.

Shapes: T tokens, R sentences.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairseq import utils
from fairseq.config.refused import REFUSED, check_refused
from fairseq.config.schema import public_fields
from fairseq.config.sections import GenerationConfig
from fairseq.data import encoders
from fairseq.data.datasets.base import FairseqDataset
from fairseq.decoding.beams import AllowedTokens
from fairseq.errors import ConfigError, DataError, did_you_mean
from fairseq.files.io import BYTE_ORDER_MARK
from fairseq.protocols import Limits, Settings

logger = logging.getLogger("fairseq.generator_hub_interface")

# settings of a generator that are no flags
MORE_SETTINGS = ("score_reference", "seed")


class GeneratorHubInterface(nn.Module):
    """Wraps loaded language models with their dictionary and text encoders.

    Args:
        cfg: the configuration they were loaded with.
        task: their task.
        models: the models; several are averaged in probability space.
    """

    def __init__(self, cfg: Settings, task: Any, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.models = nn.ModuleList(models)
        self.src_dict, self.tgt_dict = task.source_dictionary, task.target_dictionary
        for model in self.models:
            prepare: Any = model.prepare_for_inference_
            prepare(cfg)
        self.tokenizer = encoders.build_tokenizer(getattr(cfg, "tokenizer", None))
        self.bpe = encoders.build_bpe(getattr(cfg, "bpe", None))
        limits = [model.max_positions() for model in self.models]  # type: ignore[operator]
        self.max_positions = utils.resolve_max_positions(task.max_positions(), *limits)
        self.register_buffer("_float_tensor", torch.tensor([0.0]), persistent=False)
        # it moves with the module, which tells where the models are; the original has it, too
        self._float_tensor: Tensor
        self.eval()

    @property
    def device(self) -> torch.device:
        """Return where the models are."""
        return self._float_tensor.device

    # -- text and tokens -------------------------------------------------------------------------

    def tokenize(self, sentence: str) -> str:
        """Return a text in words, if there is a tokenizer."""
        utils.check_text(sentence)
        return sentence if self.tokenizer is None else self.tokenizer.encode(sentence)

    def detokenize(self, sentence: str) -> str:
        """Undo :meth:`tokenize`."""
        utils.check_text(sentence)
        return sentence if self.tokenizer is None else self.tokenizer.decode(sentence)

    def apply_bpe(self, sentence: str) -> str:
        """Return words in pieces, if there is a subword encoder."""
        utils.check_text(sentence)
        return sentence if self.bpe is None else self.bpe.encode(sentence)

    def remove_bpe(self, sentence: str) -> str:
        """Undo :meth:`apply_bpe`."""
        utils.check_text(sentence)
        return sentence if self.bpe is None else self.bpe.decode(sentence)

    def binarize(self, sentence: str) -> Tensor:
        """Return the ids of pieces and of end-of-sentence, int64 (T,)."""
        utils.check_text(sentence)
        return self.src_dict.encode_line(sentence, add_if_not_exist=False).long()

    def string(self, tokens: Tensor) -> str:
        """Return the pieces that ids (T,) stand for; a list of them will do."""
        if isinstance(tokens, list | tuple | np.ndarray):
            numbers = np.asarray(tokens)
            tokens = torch.as_tensor(numbers) if numbers.dtype.kind in "iu" else tokens
        utils.check_token_ids(tokens, None, (0, 1, 2))
        return self.tgt_dict.string(tokens)

    def encode(self, sentence: str) -> Tensor:
        """Return the ids of a text and of end-of-sentence, int64 (T,)."""
        utils.check_text(sentence)
        text = sentence.removeprefix(BYTE_ORDER_MARK)
        return self.binarize(self.apply_bpe(self.tokenize(text)))

    def decode(self, tokens: Tensor) -> str:
        """Return the text of ids (T,)."""
        return self.detokenize(self.remove_bpe(self.string(tokens)))

    # -- generation and scores -------------------------------------------------------------------

    def sample(
        self, sentences: str | Sequence[str], beam: int = 1, verbose: bool = False, **kwargs: Any
    ) -> Any:
        """Continue texts; returns a text for a text (None if it is skipped), a list for a list.

        Args:
            sentences: prompts.
            beam: hypotheses that are kept.
            verbose: log all of them.
            **kwargs: see :meth:`generate`; ``sampling=True`` draws instead of searching.
        """
        if isinstance(sentences, str):
            return next(iter(self.sample([sentences], beam, verbose, **kwargs)), None)
        tokens = [self.encode(sentence) for sentence in _texts(sentences)]
        hypotheses = self.generate(tokens, beam, verbose, **kwargs)
        return [self.decode(nbest[0]["tokens"]) for nbest in hypotheses]

    def translate(
        self, sentences: str | Sequence[str], beam: int = 5, verbose: bool = False, **kwargs: object
    ) -> Any:
        """Do as :meth:`sample`, with a wider beam: the original's name for it."""
        return self.sample(sentences, beam, verbose, **kwargs)

    def score(
        self, sentences: str | Sequence[str], replace_newline_with_eos: bool = False, **kwargs: Any
    ) -> Any:
        """Return the hypothesis that a text is, a list of them for a list.

        ``positional_scores`` are natural log-probabilities of the tokens, without that of a final
        end-of-sentence; ``score`` is their mean, so perplexity is ``exp(-score)``.

        Args:
            sentences: texts.
            replace_newline_with_eos: put end-of-sentence between lines.
            **kwargs: see :meth:`generate`.
        """
        if isinstance(sentences, str):
            return next(iter(self.score([sentences], replace_newline_with_eos, **kwargs)), None)
        tokenized = [
            torch.cat([self.encode(line) for line in sentence.splitlines() or [""]])
            if replace_newline_with_eos
            else self.encode(sentence)
            for sentence in _texts(sentences)
        ]
        return [nbest[0] for nbest in self.generate(tokenized, score_reference=True, **kwargs)]

    def generate(
        self,
        tokenized_sentences: Tensor | Sequence[Tensor],
        beam: int = 5,
        verbose: bool = False,
        skip_invalid_size_inputs: bool = False,
        inference_step_args: Mapping[str, Any] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue tokenized prompts.

        Args:
            tokenized_sentences: ids (T,), or a list of such; a final end-of-sentence is dropped.
            beam: hypotheses of each.
            verbose: log them.
            skip_invalid_size_inputs: leave out prompts that are too long instead of refusing them.
            inference_step_args: further arguments of the task's ``inference_step``.
            prefix_allowed_tokens_fn: see :class:`fairseq.decoding.beams.SequenceGenerator`.
            **kwargs: settings of the generation (``sampling``, ``max_len_b``, ``lenpen``, ...);
                ``seed`` makes samples the same in every call.

        Returns:
            the hypotheses of each prompt, best first; for one tensor just its own.

        Raises:
            ConfigError: for an unknown setting.
            DataError: if a prompt is too long for the model, or no ids of the dictionary.
        """
        if isinstance(tokenized_sentences, Tensor) and tokenized_sentences.dim() == 1:
            found = self.generate(
                tokenized_sentences[None],
                beam,
                verbose,
                skip_invalid_size_inputs,
                inference_step_args,
                prefix_allowed_tokens_fn,
                **kwargs,
            )
            return found[0] if found else []  # it was too long, and skipped
        if not isinstance(tokenized_sentences, Iterable):
            utils.check_token_ids(tokenized_sentences, None, (1,))  # which they are not
        for sentence in tokenized_sentences:
            utils.check_token_ids(sentence, len(self.src_dict), (1,))
        settings, models = self._settings(beam, kwargs), list(self.models)
        results: dict[int, list[dict[str, Any]]] = {}
        with ExitStack() as evaluated:
            for model in models:  # the generator leaves them in evaluation
                evaluated.enter_context(utils.model_eval(model))
            generator = self.task.build_generator(
                models, settings, prefix_allowed_tokens_fn=prefix_allowed_tokens_fn
            )
            for batch in self._build_batches(list(tokenized_sentences), skip_invalid_size_inputs):
                batch = utils.move_to_device(batch, self.device)
                hypotheses = self.task.inference_step(
                    generator, models, batch, **(inference_step_args or {})
                )
                results.update(zip(batch["id"].tolist(), hypotheses, strict=True))
        # batches come in order of length, results in that of the prompts
        ordered = [results[number] for number in sorted(results)]
        if verbose:
            self._log(list(tokenized_sentences), results)
        return ordered

    def _settings(self, beam: int, changes: Mapping[str, object]) -> argparse.Namespace:
        """Return the settings of the section ``generation``, changed as given."""
        known = [field.name for field, _ in public_fields(GenerationConfig)]
        section = getattr(self.cfg, "generation", None) or GenerationConfig()
        settings = {name: getattr(section, name) for name in known} | {"beam": beam}
        for name, value in changes.items():
            if name in REFUSED and name not in MORE_SETTINGS:
                check_refused(name, value)
            elif name not in known and name not in MORE_SETTINGS:
                raise ConfigError(
                    f"no setting of the generation is called '{name}'{did_you_mean(name, known)}"
                )
            if value is not None:  # which leaves a setting as it is
                settings[name] = value
        if not isinstance(settings.get("seed", 0), Integral):
            wrong = settings["seed"]
            raise ConfigError(f"the seed of a generation is a whole number, not {wrong!r}")
        return argparse.Namespace(**settings)

    def _build_batches(self, tokens: list[Tensor], skip_invalid_size_inputs: bool) -> Any:
        """Return an iterator over batches of prompts."""
        if not tokens:
            return []
        if any(not len(sentence) for sentence in tokens):
            raise DataError("a prompt has no token; an empty text is encoded as end-of-sentence")
        lengths = [len(sentence) for sentence in tokens]
        data = getattr(self.cfg, "dataset", None)
        dataset = self.task.build_dataset_for_inference(tokens, lengths)
        if skip_invalid_size_inputs and none_fits(dataset, self.max_positions):
            return []
        return self.task.get_batch_iterator(
            dataset=dataset,
            max_tokens=getattr(data, "max_tokens", None),
            max_sentences=getattr(data, "batch_size", None),
            max_positions=self.max_positions,
            ignore_invalid_inputs=skip_invalid_size_inputs,
            # each call has a dataset of its own: a cache would keep them all alive
            disable_iterator_cache=True,
        ).next_epoch_itr(shuffle=False)

    def _log(self, tokens: Sequence[Tensor], results: Mapping[int, list[dict[str, Any]]]) -> None:
        for number, hypotheses in sorted(results.items()):
            logger.info("S\t%s", self.src_dict.string(tokens[number]))
            for hypothesis in hypotheses:
                text = self.decode(hypothesis["tokens"])
                logger.info("H\t%s\t%s", float(hypothesis["score"]), text)
                scores = " ".join(f"{x:.4f}" for x in hypothesis["positional_scores"].tolist())
                logger.info("P\t%s", scores)


def none_fits(dataset: FairseqDataset, max_positions: Limits) -> bool:
    """Tell whether all prompts are too long, and say so: a task refuses a set without any."""
    if max_positions is None:
        return False
    fitting, too_long = dataset.filter_indices_by_size(dataset.ordered_indices(), max_positions)
    if len(fitting):
        return False
    logger.warning("%d prompts are longer than %s tokens: skipped", len(too_long), max_positions)
    return True


def _texts(sentences: object) -> list[str]:
    """Return texts that can be gone through.

    Raises:
        DataError: for anything else.
    """
    texts: list[Any] = list(sentences) if isinstance(sentences, Iterable) else [sentences]
    for text in texts:
        utils.check_text(text)
    return texts


class BPEHubInterface(nn.Module):
    """A subword encoder of :mod:`fairseq.data.encoders` by name."""

    def __init__(self, bpe: str, **kwargs: object) -> None:
        super().__init__()
        self.bpe = encoders.build_bpe(argparse.Namespace(bpe=bpe, **kwargs))

    def encode(self, sentence: str) -> str:
        """Return a text in pieces."""
        utils.check_text(sentence)
        return self.bpe.encode(sentence)

    def decode(self, sentence: str) -> str:
        """Return pieces as text."""
        utils.check_text(sentence)
        return self.bpe.decode(sentence)


class TokenizerHubInterface(nn.Module):
    """A tokenizer of :mod:`fairseq.data.encoders` by name."""

    def __init__(self, tokenizer: str, **kwargs: object) -> None:
        super().__init__()
        self.tokenizer = encoders.build_tokenizer(argparse.Namespace(tokenizer=tokenizer, **kwargs))

    def encode(self, sentence: str) -> str:
        """Return a text in words."""
        utils.check_text(sentence)
        return self.tokenizer.encode(sentence)

    def decode(self, sentence: str) -> str:
        """Return words as text."""
        utils.check_text(sentence)
        return self.tokenizer.decode(sentence)
