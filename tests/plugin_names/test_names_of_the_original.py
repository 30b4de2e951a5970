"""The names that the original's packages expose, and small ones that are used by hand."""

from __future__ import annotations

import copy
import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.file_io import PathManager
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq import modules
from fairseq.config.registry import REGISTRIES
from fairseq.config.sections import EMAConfig
from fairseq.data import data_utils
from fairseq.data.storage.dictionary import Dictionary
from fairseq.errors import ConfigError, UnsupportedError
from tests.models.tiny_lm import DICTIONARY

NAMES = {
    "models": "CompositeEncoder DistributedFairseqModel FairseqModel FairseqMultiModel "
    "FairseqIncrementalDecoder ARCH_MODEL_REGISTRY ARCH_CONFIG_REGISTRY ARCH_MODEL_NAME_REGISTRY",
    "models.roberta": "XLMRModel CamembertModel GottbertModel init_bert_params RobertaEncoder",
    "models.roberta.model_xlmr": "XLMRModel",
    "models.roberta.model_camembert": "CamembertModel",
    "models.transformer": "TransformerEncoder TransformerEncoderBase TransformerDecoder "
    "TransformerDecoderBase TransformerConfig TransformerModel TransformerModelBase Embedding "
    "Linear base_architecture DEFAULT_MIN_PARAMS_TO_WRAP DEFAULT_MAX_SOURCE_POSITIONS",
    "models.transformer.transformer_config": "TransformerConfig",
    "modules": "LayerNorm MultiheadAttention TransformerEncoderLayer TransformerDecoderLayer "
    "TransformerSentenceEncoder TransformerSentenceEncoderLayer PositionalEmbedding "
    "LearnedPositionalEmbedding SinusoidalPositionalEmbedding FairseqDropout LayerDropModuleList "
    "AdaptiveInput AdaptiveSoftmax CharacterTokenEmbedder gelu gelu_accurate cross_entropy "
    "GradMultiply SamePad TransposeLast Fp32LayerNorm Fp32GroupNorm",
    "modules.layer_norm": "LayerNorm Fp32LayerNorm",
    "modules.fp32_group_norm": "Fp32GroupNorm",
    "models.ema": "EMA build_ema",
    "registry": "setup_registry set_defaults",
    "utils": "index_put multi_tensor_total_norm",
    "data.encoders.gpt2_bpe_utils": "get_encoder Encoder bytes_to_unicode",
    "modules.fairseq_dropout": "FairseqDropout",
    "modules.layer_drop": "LayerDropModuleList",
    "modules.transformer_layer": "TransformerEncoderLayerBase TransformerDecoderLayerBase",
    "modules.positional_embedding": "PositionalEmbedding",
    "modules.transformer_sentence_encoder": "TransformerSentenceEncoder init_bert_params",
    "optim.adam": "FairseqAdam FairseqAdamConfig",
    "optim.adafactor": "FairseqAdafactor",
    "optim.sgd": "SGD",
    "optim.nag": "FairseqNAG",
    "optim.adagrad": "Adagrad",
    "optim.adadelta": "Adadelta",
    "optim.adamax": "FairseqAdamax",
    "optim.lr_scheduler.cosine_lr_scheduler": "CosineLRSchedule CosineLRScheduleConfig",
    "optim.lr_scheduler.fixed_schedule": "FixedLRSchedule",
    "optim.lr_scheduler.inverse_square_root_schedule": "InverseSquareRootSchedule",
    "optim.lr_scheduler.manual_lr_scheduler": "ManualSchedule",
    "optim.lr_scheduler.pass_through": "PassThroughScheduleSchedule",
    "optim.lr_scheduler.polynomial_decay_schedule": "PolynomialDecayLRSchedule",
    "optim.lr_scheduler.reduce_lr_on_plateau": "ReduceLROnPlateauLRSchedule",
    "optim.lr_scheduler.step_lr_scheduler": "StepLRSchedule",
    "optim.lr_scheduler.tri_stage_lr_scheduler": "TriStageLRSchedule",
    "optim.lr_scheduler.triangular_lr_scheduler": "TriangularLRSchedule",
    "criterions.cross_entropy": "CrossEntropyCriterion CrossEntropyCriterionConfig",
    "criterions.sentence_ranking": "SentenceRankingCriterion",
    "data.encoders.utils": "get_whole_word_mask",
    "tasks.language_modeling": "SAMPLE_BREAK_MODE_CHOICES SHORTEN_METHOD_CHOICES",
    "tasks.sentence_ranking": "SentenceRankingTask",
    "scoring": "BaseScorer build_scorer register_scorer SCORER_REGISTRY",
    "incremental_decoding_utils": "FairseqIncrementalState with_incremental_state",
    "data.data_utils": "post_process lengths_to_mask lengths_to_padding_mask compute_mask_indices",
}


@pytest.mark.parametrize("path", NAMES)
def test_names_of_the_packages(path: str) -> None:
    module = importlib.import_module(f"fairseq.{path}")
    for name in NAMES[path].split():
        assert getattr(module, name, None) is not None, name


def test_the_words_that_pieces_begin(shared: Path) -> None:
    """The ids of GPT-2's pieces: " world" begins a word, "Hello" goes on with one."""
    from fairseq.data.encoders.utils import get_whole_word_mask

    folder = shared / "data" / "gpt2_bpe"
    words = Dictionary()
    hello, world = words.add_symbol("15496"), words.add_symbol("995")
    files = {"gpt2_encoder_json": folder / "encoder.json", "gpt2_vocab_bpe": folder / "vocab.bpe"}
    args = Namespace(bpe="gpt2", **{name: str(path) for name, path in files.items()})
    begins_V = get_whole_word_mask(args, words)
    assert begins_V is not None and begins_V.dtype == torch.uint8
    assert begins_V[hello] == 0 and begins_V[world] == 1 and begins_V[: words.nspecial].all()
    assert get_whole_word_mask(Namespace(bpe=None), words) is None


def test_masks_of_lengths() -> None:
    lengths = torch.tensor([1, 3, 2])
    expected = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    assert torch.equal(data_utils.lengths_to_mask(lengths), expected)
    assert torch.equal(data_utils.lengths_to_padding_mask(lengths), ~expected)
    assert data_utils.post_process("a@@ b c@@", "subword_nmt") == "ab c"


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(8, 80),
    length=st.integers(1, 8),
    share=st.floats(0.05, 0.9),
    kind=st.sampled_from(["static", "uniform", "normal", "poisson"]),
    apart=st.booleans(),
    seed=st.integers(0, 9),
)
def test_masks_of_spans(
    size: int, length: int, share: float, kind: str, apart: bool, seed: int
) -> None:
    padding_BT = torch.zeros(3, size, dtype=torch.bool)
    padding_BT[1, size - 4 :] = True
    with data_utils.numpy_seed(seed):
        mask_BT = data_utils.compute_mask_indices(
            (3, size), padding_BT, share, length, kind, 1.0, min_masks=1, no_overlap=apart
        )
    assert mask_BT.dtype == bool and mask_BT.shape == (3, size)
    assert not mask_BT[padding_BT.numpy()].any()
    assert len({int(row.sum()) for row in mask_BT}) == 1 and mask_BT.any()


def test_spans_have_their_length_and_keep_their_distance() -> None:
    rng = np.random.RandomState(0)
    mask_BT = data_utils.compute_mask_indices(
        (50, 40), None, 0.5, 4, no_overlap=True, min_space=2, require_same_masks=False, rng=rng
    )
    for row in mask_BT:
        runs = "".join(str(int(place)) for place in row).strip("0").split("00")
        assert all(run.strip("0") == "1111" for run in runs if run.strip("0"))
    assert 0.4 < mask_BT.mean() < 0.55
    with pytest.raises(ConfigError, match="unknown mask_type 'odd'"):
        data_utils.compute_mask_indices((1, 9), None, 0.5, 2, "odd")


def test_a_gradient_that_was_multiplied_has_no_derivative() -> None:
    x = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    for scale in (0, 1):
        y = modules.GradMultiply.apply(x, scale).pow(3).sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (second,) = torch.autograd.grad(first, x)
        assert second.item() == pytest.approx(scale * 6 * 0.7)
    y = modules.GradMultiply.apply(x, 0.5).pow(3).sum()
    with pytest.raises(UnsupportedError, match="no second derivatives"):
        torch.autograd.grad(y, x, create_graph=True)


def test_small_modules() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    modules.GradMultiply.apply(x, 0.5).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full((2, 3), 0.5))
    signal = torch.randn(1, 2, 7)
    padded = torch.nn.functional.conv1d(signal, torch.ones(2, 2, 4), padding=2)
    assert padded.shape[2] == 8 and modules.SamePad(4)(padded).shape[2] == 7
    assert modules.SamePad(3)(signal).shape[2] == 7
    assert modules.SamePad(3, causal=True)(signal).shape[2] == 5
    assert torch.equal(modules.TransposeLast()(signal), signal.transpose(1, 2))
    logits, target = torch.randn(4, 5), torch.tensor([0, 1, 2, -100])
    mean = -torch.log_softmax(logits, 1)[[0, 1, 2], [0, 1, 2]].mean()
    torch.testing.assert_close(modules.cross_entropy(logits, target), mean)
    with pytest.raises(UnsupportedError, match="fairseq-bpe"):
        modules.CharacterTokenEmbedder(1, 2)


def test_dropped_layers_are_as_many_as_expected() -> None:
    layers = modules.LayerDropModuleList(0.25, [torch.nn.Identity() for _ in range(400)])
    assert len(list(layers.eval())) == len(layers) == 400
    assert 250 < len(list(layers.train())) < 350
    dropped = modules.FairseqDropout(0.5)(torch.ones(1000))
    assert 350 < (dropped == 0).sum() < 650 and torch.equal(
        dropped.unique(), torch.tensor([0.0, 2])
    )


def test_models_of_several_parts() -> None:
    from fairseq.models import CompositeEncoder, FairseqEncoder, FairseqModel, FairseqMultiModel
    from fairseq.models.base import FairseqDecoder

    class Counting(FairseqEncoder):
        def forward(self, src_tokens: torch.Tensor, *rest: object, **kwargs: object) -> int:
            return src_tokens.numel()

        def max_positions(self) -> int:
            return 7

    class Adding(FairseqDecoder):
        def forward(self, prev: torch.Tensor, encoder_out: int = 0, **kwargs: object) -> int:
            return prev.numel() + encoder_out

    source, target = torch.zeros(2, 3), torch.zeros(2, 2)
    both = CompositeEncoder({"a": Counting(DICTIONARY), "b": Counting(DICTIONARY)})
    assert both(source) == {"a": 6, "b": 6} and both.max_positions() == 7
    pair = FairseqModel(Counting(DICTIONARY), Adding(DICTIONARY))
    assert pair(source, torch.tensor([3, 3]), target) == 10
    many = FairseqMultiModel({"x": Counting(DICTIONARY)}, {"x": Adding(DICTIONARY)})
    assert many(source, torch.tensor([3, 3]), target) == {"x": 10}
    assert many.max_positions() == {"x": (7, 1e6)}


def test_scorers_can_be_registered() -> None:
    from fairseq import scoring

    @scoring.register_scorer("same")
    class Same(scoring.BaseScorer):
        def score(self) -> float:
            return sum(a == b for a, b in zip(self.ref, self.pred, strict=True)) / len(self.ref)

        def result_string(self) -> str:
            return f"{self.score():.2f}"

    try:
        scorer = scoring.build_scorer("same", None)
        scorer.add_string("a", "a")
        scorer.add_string("a", "b")
        assert scorer.result_string() == "0.50" and "scoring" in REGISTRIES
    finally:
        del scoring.SCORER_REGISTRY["same"]


def test_one_process_alone() -> None:
    from fairseq.distributed import utils

    assert (utils.get_data_parallel_rank(), utils.get_data_parallel_world_size()) == (0, 1)


def test_files(tmp_path: Path) -> None:
    with PathManager.opena(str(tmp_path / "a.txt"), "w") as file:
        file.write("é")
    assert PathManager.async_close() and PathManager.isdir(tmp_path)
    assert PathManager.copy_from_local(tmp_path / "a.txt", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == "é"
    assert PathManager.supports_rename(tmp_path)
    with pytest.raises(UnsupportedError, match="mount the remote folder"):
        PathManager.register_handler(object())


def test_published_relatives_of_roberta() -> None:
    from fairseq.models.roberta import CamembertModel, GottbertModel, RobertaModel, XLMRModel

    for cls, name in (
        (XLMRModel, "xlmr.base"),
        (CamembertModel, "camembert.v0"),
        (GottbertModel, "gottbert-base"),
    ):
        assert issubclass(cls, RobertaModel)
        assert cls.hub_models()[name].endswith(".tar.gz")


@pytest.mark.parametrize("name", ["Fp32LayerNorm", "Fp32GroupNorm"])
def test_norms_in_fp32(name: str) -> None:
    """In half precision a sum of squares would overflow; types and gradients stay the input's."""
    x = (300 * torch.randn(4, 8)).half().requires_grad_()
    module = modules.Fp32LayerNorm(8) if name == "Fp32LayerNorm" else modules.Fp32GroupNorm(2, 8)
    expected = copy.deepcopy(module)(x.detach().float())
    y = module.half()(x)
    y.float().sum().backward()
    assert y.dtype == torch.float16 and x.grad is not None
    torch.testing.assert_close(y.float(), expected, rtol=1e-3, atol=1e-3)


def test_small_helpers() -> None:
    from fairseq import registry, utils

    x = torch.zeros(2, 2)
    assert utils.index_put(x, torch.tensor([[True, False], [False, True]]), 3) is x
    assert x.tolist() == [[3, 0], [0, 3]]
    grads = [torch.full((2,), 3.0), torch.full((2, 1), 4.0, dtype=torch.float16)]
    assert float(utils.multi_tensor_total_norm(grads)) == pytest.approx(50**0.5)

    class Component:
        @staticmethod
        def add_args(parser: Any) -> None:
            parser.add_argument("--width", type=int, default=8)
            parser.add_argument("--depth", type=int, default=2)
            parser.add_argument("--unsaid")

    args = Namespace(width=16)
    registry.set_defaults(args, Component)
    registry.set_defaults(args, object)
    assert args == Namespace(width=16, depth=2)


def test_an_average_is_built_by_a_function() -> None:
    from fairseq.models.ema import EMA, build_ema

    model = torch.nn.Linear(2, 2)
    average = build_ema(model, EMAConfig(store_ema=True, ema_decay=0.5))
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(2)
    average.step(model, 1)
    assert type(average) is EMA
    torch.testing.assert_close(average.get_model().weight, before + 1)


def test_ids_of_gpt2(shared: Path) -> None:
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode, get_encoder

    folder = shared / "data/gpt2_bpe"
    encoder = get_encoder(folder / "encoder.json", folder / "vocab.bpe")
    assert encoder.encode("Hello world") == [15496, 995]
    assert encoder.decode([15496, 995]) == "Hello world"
    assert [encoder.decoder[n] for n in (15496, 995)] == ["Hello", "\u0120world"]
    assert bytes_to_unicode()[ord(" ")] == "\u0120" and len(bytes_to_unicode()) == 256
