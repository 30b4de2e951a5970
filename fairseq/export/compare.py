"""What two models say of the same texts: logits, log-probabilities, perplexity, continuations.

Shapes: B rows, T tokens, N positions, V logits of ours (theirs may have more), C channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.errors import CheckpointError

TOLERANCE = 1e-5
STEPS = 8
PROMPTS = 3
MASK_EVERY = 7
Logits = Callable[[Tensor], Tensor]

# Texts that tokenizers differ on: accents (composed and not), other scripts, emoji and their
# joiners, white space of all kinds, case without a pair, digits, code, very long words.
ODD_TEXTS = (
    "",
    " ",
    "a",
    "Ünïcode bytes  and blanks",
    "schöner Bär, été, naïve café",
    "scho\u0308ner Ba\u0308r, e\u0301te\u0301",
    "Straße STRASSE ẞ ß",
    "İstanbul ıİ iI",
    "Ǆ ǅ ǆ ﬁ ﬂ ﬃ",
    "Ångström Å \u212b K \u212a",
    "Łódź, Żółć, Čeština, Đorđe",
    "Tiếng Việt có dấu",
    "Ελληνικά: σίγμα τελικός ς",
    "Привет, мир! Ёлка й",
    "Українська мова їжак",
    "שלום עולם שָׁלוֹם",
    "مرحبا بالعالم العَرَبِيَّة",
    "हिन्दी में क्षत्रिय",
    "தமிழ் மொழி",
    "ภาษาไทยไม่มีช่องว่าง",
    "မြန်မာ ဘာသာ",
    "ქართული ენა",
    "Հայերեն լեզու",
    "አማርኛ ቋንቋ",
    "我们 hi",
    "中文没有空格。全角，标点！",
    "日本語のテキスト、カタカナとひらがな",
    "ｆｕｌｌ ｗｉｄｔｈ １２３ ﾊﾝｶｸ",
    "한국어 문장입니다",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "𠮷野家 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "😀",
    "the cat 😀😃 sees 🐦",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷",
    "❤️ ❤ ☺️ ⌚︎",
    "tab\there\t\ttwice",
    "  two blanks before, two after  ",
    "no\u00a0break, thin\u2009space, ideographic\u3000space",
    "zero\u200bwidth, joiner\u200d, soft\u00adhyphen, bom\ufeff",
    "replacement \ufffd and private \ue000",
    "quotes “curly” ‘single’ «guillemets» „low“",
    "dashes - – — ― … ‥ · •",
    "math ∑ᵢ xᵢ² ≤ √2 ± ∞ ≠ ½ ¾ ⅓",
    "units 5µm 5μm 20℃ №5 ™ ® © €100 £5 ¥3 ₿",
    "CamelCase snake_case kebab-case SCREAMING",
    "don't can't I'll we've she's they'd o'clock 'tis",
    "1234567890 3.14159 1,000,000 0x1F 1e-5",
    "def f(x): return x**2  # code",
    'if (a[i] != b["k"]) { c += 1; } // ok',
    "<b>bold</b> &amp; <br/>",
    "https://example.org/a?b=c&d=%20e#f user@example.org",
    "a" * 150,
    "antidisestablishmentarianismpseudopneumono",
    "!!!??? ... ;;; ((())) [[]] {{}} ~~~ ^^^ ```",
    "\\ / | @ # $ % ^ & * _ + = < >",
    "mixed Кириллица and латиница in oдин",
    "ǝpısdn uʍop, s̶t̶r̶u̶c̶k̶, Z̷͓͒a̸l̵g̶o̴",
    "Æsop œuvre þorn ðeta ŋ ʃ ə ɪ",
    "ASCII only, plain and long enough to have a few words.",
    "the CAT Sees THE old house",
)


@dataclasses.dataclass
class Agreement:
    """How far two models are apart.

    Attributes:
        logits: the greatest absolute difference of logits, or of features where there is no head.
        greatest: the greatest absolute logit, with which rounding errors grow.
        log_probabilities: the greatest absolute difference of log-probabilities.
        perplexities: of ours and of theirs; None where there is no head.
    """

    logits: float = 0.0
    greatest: float = 0.0
    log_probabilities: float = 0.0
    perplexities: tuple[float, float] | None = None

    def add(self, ours_NV: Tensor, theirs_NV: Tensor, headless: bool) -> None:
        """Compare what both say at N positions; V of theirs may be greater."""
        if not len(ours_NV):
            return
        width = ours_NV.shape[-1]
        difference = float((theirs_NV[..., :width] - ours_NV).abs().max())
        self.logits = max(self.logits, difference)
        self.greatest = max(self.greatest, float(ours_NV.abs().max()))
        if not headless:
            apart_NV = theirs_NV.log_softmax(-1)[..., :width] - ours_NV.log_softmax(-1)
            self.log_probabilities = max(self.log_probabilities, float(apart_NV.abs().max()))

    def check(self) -> None:
        """Raise unless both say the same.

        Raises:
            CheckpointError: if not; it says which figure differs.
        """
        check_difference(self.logits, self.greatest)
        allowed = 2 * TOLERANCE * max(1.0, self.greatest)
        if not self.log_probabilities <= allowed:
            raise CheckpointError(
                f"log-probabilities of the converted model differ by {self.log_probabilities:.2e} "
                f"(at most {allowed:.0e} is allowed); nothing was written"
            )
        if self.perplexities is not None:
            ours, theirs = self.perplexities
            if not abs(math.log(theirs / ours)) <= allowed:
                raise CheckpointError(
                    f"the converted model has perplexity {theirs:.6f}, the checkpoint {ours:.6f}; "
                    "nothing was written"
                )

    def facts(self) -> dict[str, Any]:
        """Return what a command says of it."""
        told: dict[str, Any] = {"max_abs_difference": self.logits}
        if self.perplexities is not None:
            told["log_probability_difference"] = self.log_probabilities
            told["perplexity"] = round(self.perplexities[0], 4)
        return told


def check_difference(worst: float, greatest: float = 1.0) -> None:
    """Raise if two models differ.

    Args:
        worst: their greatest absolute difference.
        greatest: the greatest absolute logit; above 1 rounding errors grow with it.

    Raises:
        CheckpointError: if they do.
    """
    allowed = TOLERANCE * max(1.0, greatest)
    if not worst <= allowed:
        raise CheckpointError(
            f"the converted model differs by {worst:.2e} (at most {allowed:.0e} is allowed); "
            "nothing was written"
        )


def same_tokens(
    tokenizer: Callable[[str], Mapping[str, list[int]]],
    sentences: Sequence[str],
    tokens: Sequence[Tensor],
    unknown: int,
    last: int,
) -> list[Tensor]:
    """Return the tokens that a tokenizer of theirs makes of sentences, int64 (T,) each.

    Args:
        tokenizer: theirs.
        sentences: what is split.
        tokens: how ours splits them, perhaps cut.
        unknown: our id of what is unknown.
        last: the greatest id of ours; greater ones of theirs read as unknown.

    Raises:
        CheckpointError: if they are not ours.
    """
    mapped = []
    longest = max((len(row) for row in tokens), default=0)
    for text, ours_T in zip(sentences, tokens, strict=True):
        theirs_T = torch.tensor(tokenizer(text)["input_ids"][:longest], dtype=torch.int64)
        if not torch.equal(theirs_T.masked_fill(theirs_T > last, unknown), ours_T):
            raise CheckpointError(
                f"the tokenizer of Hugging Face splits {text!r} into {theirs_T.tolist()}, the "
                f"checkpoint's into {ours_T.tolist()}; nothing was written"
            )
        mapped.append(theirs_T)
    return mapped


def batches(tokens: Sequence[Tensor], pad: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield padded batches, and where their tokens are."""
    for first in range(0, len(tokens), 10):
        rows = list(tokens[first : first + 10])
        lengths_B1 = torch.tensor([[len(row)] for row in rows])
        tokens_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        yield tokens_BT, torch.arange(tokens_BT.shape[1]) < lengths_B1


def masked(tokens_BT: Tensor, kept_BT: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """Return tokens with every seventh one masked, and where."""
    hidden_BT = torch.zeros_like(kept_BT)
    hidden_BT[:, 1::MASK_EVERY] = True
    hidden_BT &= kept_BT
    return tokens_BT.masked_fill(hidden_BT, mask), hidden_BT


def nats(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the cross-entropy of targets, (N,)."""
    return -logits_NV.log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]


def perplexities(lost: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float] | None:
    """Return both perplexities of cross-entropies of ours and theirs, (N,) each."""
    if not sum(len(ours_N) for ours_N, _ in lost):
        return None
    means = [float(torch.cat(list(part)).mean()) for part in zip(*lost, strict=True)]
    return math.exp(means[0]), math.exp(means[1])


@torch.inference_mode()
def check_continuations(
    our_logits: Logits, their_logits: Logits, prompts: Sequence[Tensor], pad: int
) -> None:
    """Raise unless both continue prompts alike, each time with the likeliest token.

    Args:
        our_logits: tokens (1, T) -> logits (1, T, V), of our model.
        their_logits: the same of theirs, whose V may be greater.
        prompts: int64 (T,) each.
        pad: a continuation ends before it: no generator chooses it, and here it is nothing to
            attend to, while there it is a word until an attention mask says otherwise.

    Raises:
        CheckpointError: if they differ where one token is clearly likelier than the others.
    """
    for prompt_T in prompts:
        tokens_1T = prompt_T[None]
        for _ in range(STEPS):
            logits_V = our_logits(tokens_1T)[0, -1]
            best, second = logits_V.topk(2).values.tolist()
            if best - second <= 10 * TOLERANCE * max(1.0, abs(best)):
                break
            token, other = int(logits_V.argmax()), int(their_logits(tokens_1T)[0, -1].argmax())
            if token != other:
                raise CheckpointError(
                    f"after {tokens_1T[0].tolist()} the likeliest token is {token} in the "
                    f"checkpoint, {other} in the converted model; nothing was written"
                )
            if token == pad:
                break
            tokens_1T = torch.cat([tokens_1T, torch.tensor([[token]])], dim=1)
