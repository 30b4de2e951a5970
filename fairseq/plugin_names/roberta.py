"""Published relatives of RoBERTa, under the names that plug-ins and notebooks load them by."""

from __future__ import annotations

from os import PathLike
from typing import Any

from fairseq.models.roberta.model import PUBLISHED, RobertaModel


class _Published(RobertaModel):
    """RoBERTa with addresses and a text encoder of its own."""

    names: dict[str, str] = {}
    text_encoder = "sentencepiece"

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {name: f"{PUBLISHED}/{file}.tar.gz" for name, file in cls.names.items()}

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | PathLike[str],
        checkpoint_file: str = "model.pt",
        data_name_or_path: str | PathLike[str] = ".",
        bpe: str | None = None,
        **kwargs: object,
    ) -> Any:
        """See :meth:`RobertaModel.from_pretrained`; ``bpe`` is the family's if None."""
        return super().from_pretrained(
            model_name_or_path,
            checkpoint_file,
            data_name_or_path,
            bpe or cls.text_encoder,
            **kwargs,
        )


class XLMRModel(_Published):
    """XLM-R. Source: Conneau et al. 2020."""

    names = {
        "xlmr.base": "xlmr.base",
        "xlmr.large": "xlmr.large",
        "xlmr.xl": "xlmr/xlmr.xl",
        "xlmr.xxl": "xlmr/xlmr.xxl",
    }


class CamembertModel(_Published):
    """CamemBERT. Source: Martin et al. 2020."""

    names = {
        "camembert": "camembert-base",
        "camembert.v0": "camembert-base",
        **{
            name: name
            for name in (
                "camembert-base",
                "camembert-large",
                "camembert-base-ccnet",
                "camembert-base-ccnet-4gb",
                "camembert-base-wikipedia-4gb",
                "camembert-base-oscar-4gb",
            )
        },
    }


class GottbertModel(_Published):
    """GottBERT, whose text encoder, ``hf_byte_bpe``, a plug-in has to register."""

    text_encoder = "hf_byte_bpe"

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {"gottbert-base": "https://dl.gottbert.de/fairseq/models/gottbert-base.tar.gz"}
