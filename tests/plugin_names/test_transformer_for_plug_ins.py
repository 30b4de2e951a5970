"""The Transformer for plug-ins computes what the house's layers and torch compute."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from fairseq.models.transformer import (
    Embedding,
    Linear,
    TransformerConfig,
    TransformerDecoder,
    TransformerEncoder,
    TransformerModel,
    base_architecture,
)
from fairseq.modules.multihead_attention import MultiheadAttention
from torch import Tensor, nn

from fairseq.errors import UnsupportedError
from fairseq.modules import (
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    TransformerLayer,
    TransformerSentenceEncoder,
    TransformerSentenceEncoderLayer,
)
from fairseq.modules.transformer_layer import LayerShape
from fairseq.ops.attention_context import AttentionContext
from tests.models.tiny_lm import DICTIONARY

PAD = DICTIONARY.pad()
FLAT: dict[str, Any] = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (
        ("layers", 2),
        ("embed_dim", 8),
        ("ffn_embed_dim", 12),
        ("attention_heads", 2),
    )
}


def settings(**more: Any) -> Namespace:
    args = Namespace(**{**FLAT, "dropout": 0.0, "max_positions": 16, **more})
    base_architecture(args)
    return args


def tokens(rows: int = 3, length: int = 6, padded: bool = True) -> Tensor:
    drawn_BT = torch.randint(4, len(DICTIONARY), (rows, length))
    if padded:
        drawn_BT[0, -2:] = PAD
    return drawn_BT


def test_settings_are_read_by_flat_and_by_nested_names() -> None:
    config = TransformerConfig.from_namespace(settings(own=3, quant_noise_pq=0.0))
    assert config.encoder.layers == config.encoder_layers == 2 and config.own == 3
    config.decoder_layers = 5
    assert config.decoder.layers == 5 and config.max_source_positions == 1024
    assert TransformerConfig.from_namespace(config) is config
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = config.encoder_nonsense
    ours = Namespace(position="learned", scale_embedding=False, max_positions=9)
    translated = TransformerConfig.from_namespace(ours)
    assert translated.encoder.learned_pos and translated.no_scale_embedding
    assert translated.max_source_positions == 9


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_layer_is_that_of_the_house(pre_norm: bool) -> None:
    shape = LayerShape(8, 12, 2, dropout=0.0, attention_dropout=0.0, pre_norm=pre_norm)
    ours = TransformerLayer(shape)
    more = {"encoder_normalize_before": pre_norm, "decoder_normalize_before": pre_norm}
    args = settings(activation_fn="gelu", **more)
    x_BTC, padding_BT = torch.randn(3, 6, 8), tokens().eq(PAD)
    encoder, decoder = TransformerEncoderLayer(args), TransformerDecoderLayer(args, True)
    for layer in (encoder, decoder):
        layer.load_state_dict(ours.state_dict())  # the same names, so checkpoints fit
    plain_BTC = encoder(x_BTC.transpose(0, 1), padding_BT).transpose(0, 1)
    hidden = AttentionContext(key_padding_mask_BS=padding_BT)
    torch.testing.assert_close(plain_BTC, ours(x_BTC, hidden))
    future_TT = torch.full((6, 6), float("-inf")).triu(1)
    causal_TBC, weights, _ = decoder(x_BTC.transpose(0, 1), self_attn_mask=future_TT)
    causal_BTC = ours(x_BTC, AttentionContext(causal=True))
    torch.testing.assert_close(causal_TBC.transpose(0, 1), causal_BTC)
    assert weights is None
    masked_TBC = encoder(x_BTC.transpose(0, 1), None, attn_mask=future_TT.bool())
    torch.testing.assert_close(masked_TBC.transpose(0, 1), causal_BTC)


def test_attention_is_that_of_torch() -> None:
    mine, theirs = MultiheadAttention(8, 2, kdim=6, vdim=4), nn.MultiheadAttention(8, 2)
    theirs = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    state = {f"{n}_proj_weight": mine.get_submodule(f"{n}_proj").weight for n in "qkv"}
    biases = torch.cat([mine.get_submodule(f"{n}_proj").bias for n in "qkv"])
    out = {f"out_proj.{name}": value for name, value in mine.out_proj.state_dict().items()}
    theirs.load_state_dict({**state, "in_proj_bias": biases, **out})
    query, key, value = torch.randn(5, 3, 8), torch.randn(6, 3, 6), torch.randn(6, 3, 4)
    padding_BS = tokens().eq(PAD)
    got, weights = mine(query, key, value, key_padding_mask=padding_BS)
    expected, expected_weights = theirs(query, key, value, key_padding_mask=padding_BS)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(weights, expected_weights)
    every_HBTS = mine(query, key, value, padding_BS, need_head_weights=True)[1]
    torch.testing.assert_close(every_HBTS.mean(0), weights)
    assert mine(query, key, value, need_weights=False)[1] is None
    for wrong in ({"add_bias_kv": True}, {"q_noise": 0.1}):
        with pytest.raises(UnsupportedError):
            MultiheadAttention(8, 2, **wrong)


def model() -> TransformerModel:
    task = Namespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    args = settings(share_all_embeddings=True)
    return TransformerModel.build_model(args, task).eval()  # type: ignore[return-value]


def test_decoding_token_by_token_is_decoding_at_once() -> None:
    net, source_BT, target_BT = model(), tokens(), tokens(padded=False)
    whole_BTV, extra = net(source_BT, None, target_BT)
    assert extra["attn"][0].shape == (3, 6, 6) and len(extra["inner_states"]) == 3
    encoded, state = net.encoder(source_BT), dict[str, Any]()
    parts = [
        net.decoder(target_BT[:, : n + 1], encoder_out=encoded, incremental_state=state)[0]
        for n in range(6)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole_BTV)
    order = torch.tensor([2, 0, 0])
    net.decoder.reorder_incremental_state(state, order)
    moved = net.encoder.reorder_encoder_out(encoded, order)
    next_BT = torch.cat([target_BT[order], tokens(length=1, padded=False)], 1)
    last_BV = net.decoder(next_BT, encoder_out=moved, incremental_state=state)[0][:, -1]
    again_BTV = net(source_BT[order], None, next_BT)[0]
    torch.testing.assert_close(last_BV, again_BTV[:, -1])


def test_pads_change_nothing_and_the_future_is_not_seen() -> None:
    net, source_BT = model(), tokens()
    with_pads_TBC = net.encoder(source_BT[:1])["encoder_out"][0]
    without_TBC = net.encoder(source_BT[:1, :4])["encoder_out"][0]
    torch.testing.assert_close(with_pads_TBC[:4], without_TBC)
    first_BT, second_BT = tokens(padded=False), tokens(padded=False)
    second_BT[:, :3] = first_BT[:, :3]
    first, second = (net(source_BT, None, target)[0][:, :3] for target in (first_BT, second_BT))
    torch.testing.assert_close(first, second)
    assert net.decoder.output_projection.weight is net.encoder.embed_tokens.weight
    assert net.max_positions() == (1024, 1024)


def test_factories_of_encoders_and_decoders_are_asked() -> None:
    class Layer(TransformerEncoderLayer):
        def build_self_attention(self, embed_dim: int, args: Any) -> nn.Module:
            assert (args.encoder_attention_heads, args.own) == (2, 7)
            return super().build_self_attention(embed_dim, args)

    class Encoder(TransformerEncoder):
        def build_encoder_layer(self, args: Any) -> nn.Module:
            return Layer(args)

    args = settings(own=7, encoder_layerdrop=0.5, checkpoint_activations=True)
    table = Embedding(len(DICTIONARY), 8, PAD)
    encoder = Encoder(args, DICTIONARY, table)
    assert all(type(layer) is Layer for layer in encoder.eval().layers)
    run = [encoder.train()(tokens(), return_all_hiddens=True) for _ in range(20)]
    assert {len(out["encoder_states"]) for out in run} == {1, 2, 3}  # some layers were left out
    decoder = TransformerDecoder(settings(decoder_output_dim=4), DICTIONARY, table, True)
    assert decoder(tokens())[0].shape == (3, 6, len(DICTIONARY))
    assert decoder(tokens(), features_only=True)[0].shape == (3, 6, 4)
    with pytest.raises(UnsupportedError, match="scale_fc"):
        TransformerDecoder(settings(scale_fc=True), DICTIONARY, table, True)


def test_flat_and_nested_settings_build_the_same_stacks() -> None:
    flat, table = settings(decoder_normalize_before=True), Embedding(len(DICTIONARY), 8, PAD)
    nested = TransformerConfig.from_namespace(flat)
    for kind in (TransformerEncoder, TransformerDecoder):
        one, other = kind(flat, DICTIONARY, table), kind(nested, DICTIONARY, table)
        assert one.args is flat and other.args is nested and type(one.cfg) is TransformerConfig
        other.load_state_dict(one.state_dict())
        inner = [[type(part) for part in stack.modules()] for stack in (one, other)]
        assert inner[0] == inner[1]


def test_small_parts() -> None:
    assert not table_row(Embedding(5, 8, 1)).any()
    assert not Linear(3, 2).bias.any() and Linear(3, 2, bias=False).bias is None
    layer = TransformerSentenceEncoderLayer(8, 12, 2, 0.0, 0.0, 0.0)
    out, nothing = layer(torch.randn(4, 2, 8))
    assert out.shape == (4, 2, 8) and nothing is None

    @with_incremental_state
    class Remembers(nn.Module):
        pass

    one, other, state = Remembers(), Remembers(), dict[str, Any]()
    one.set_incremental_state(state, "x", {"a": torch.ones(1)})
    assert one.get_incremental_state(state, "x")["a"].item() == 1
    assert other.get_incremental_state(state, "x") is None
    assert one.get_incremental_state(None, "x") is None


def table_row(table: nn.Embedding) -> Tensor:
    return table.weight[1].detach()


def test_a_flat_namespace_may_be_given_by_its_name() -> None:
    flat, table = settings(), Embedding(len(DICTIONARY), 8, PAD)
    for stack in (TransformerEncoder, TransformerDecoder):
        assert stack(args=flat, dictionary=DICTIONARY, embed_tokens=table).args is flat
    for layer in (TransformerEncoderLayer, TransformerDecoderLayer):
        assert layer(args=flat).args is flat


def sentence_encoder(**more: Any) -> TransformerSentenceEncoder:
    torch.manual_seed(1)
    sizes = {"embedding_dim": 8, "ffn_embedding_dim": 12, "num_attention_heads": 2}
    words = {"padding_idx": PAD, "vocab_size": len(DICTIONARY), "num_encoder_layers": 3}
    return TransformerSentenceEncoder(**words, **sizes, **more).eval()


def test_sentence_encoder_has_two_segments_unless_told_otherwise() -> None:
    assert len(sentence_encoder().segment_embeddings.weight) == 2
    assert sentence_encoder(num_segments=0).segment_embeddings is None


def test_sentence_encoder_scales_its_words() -> None:
    tokens_BT = tokens()
    plain, scaled = sentence_encoder(), sentence_encoder(embed_scale=3.0)
    rows_BTC = 3 * plain.embed_tokens(tokens_BT)
    expected = plain(tokens_BT, token_embeddings=rows_BTC)[1]
    assert scaled(tokens_BT)[1].equal(expected)


def test_sentence_encoder_takes_positions() -> None:
    tokens_BT = tokens(padded=False)
    encoder = sentence_encoder(offset_positions_by_padding=False, max_seq_len=9)
    assert encoder.embed_positions.weight.shape[0] == 9
    places_BT = torch.arange(6).expand(3, 6)
    assert encoder(tokens_BT, positions=places_BT)[1].equal(encoder(tokens_BT)[1])
    # without a mask, a layer knows the order by the positions alone
    back = encoder(tokens_BT.flip(1), positions=places_BT.flip(1))[0][-1]
    torch.testing.assert_close(back.flip(0), encoder(tokens_BT)[0][-1])


def test_sentence_encoder_freezes_and_stacks() -> None:
    encoder = sentence_encoder(
        freeze_embeddings=True, n_trans_layers_to_freeze=2, encoder_normalize_before=True,
        traceable=True,
    )  # fmt: skip
    learnt = {name.split(".")[1] for name, p in encoder.named_parameters() if p.requires_grad}
    assert learnt == {"2"}
    states_LTBC, first_BC = encoder(tokens())
    assert states_LTBC.shape == (4, 6, 3, 8) and states_LTBC[-1, 0].equal(first_BC)


@pytest.mark.parametrize("build", [sentence_encoder, TransformerSentenceEncoderLayer])
def test_what_a_sentence_encoder_cannot_do_is_an_error(build: Any) -> None:
    build(export=True, q_noise=0.0, qn_block_size=8)
    with pytest.raises(UnsupportedError, match="quantisation noise"):
        build(q_noise=0.1)
    with pytest.raises(TypeError, match="no_such_flag"):
        build(no_such_flag=1)


def test_a_layer_calls_its_init_fn() -> None:
    called: list[int] = []
    TransformerSentenceEncoderLayer(8, 12, 2, init_fn=lambda: called.append(1))
    assert called == [1]
