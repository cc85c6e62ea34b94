"""Where a stage of a method starts: full precision kept, halved or binarized; ternary weights split; bits changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, PreTrainedModel

from bitbert.errors import UserError
from bitbert.model import SHAPE_FIELDS, BitBertConfig, BitBertForSequenceClassification, BitBertPreTrainedModel
from bitbert.model.calibrate import set_activation_bits
from bitbert.model.configuration import DROPOUT_FIELDS, binary_config, inherited_fields
from bitbert.model.convert import from_full_precision
from bitbert.model.loading import loading
from bitbert.model.splitting import half_width, split_ternary
from bitbert.released import find_model
from bitbert.resources import require_local_or_hub
from bitbert.tokenizer import load_tokenizer

from .full_precision import FullPrecisionClassifier
from .head import Head
from .source import (
    Source,
    describe_start,
    is_bitbert,
    load_bert,
    load_encoder,
    open_source,
    read_weights,
    unknown_start,
)
from .stages import FULL_PRECISION, StageConfig


@dataclass(frozen=True)
class StageSource(Source):
    """A :class:`Source` whose head may come along, as a student's does from its teacher (BiBERT, BiT)."""

    head_tensors: dict[str, Tensor]

    def build(self, head: Head[Any], seed: int, dropout: float | None = None) -> BitBertPreTrainedModel:
        """As in :class:`Source`; the head is drawn from ``seed`` only where the start has none of its size."""
        model = super().build(head, seed, dropout)
        _load_head(model, self.head_tensors)
        return model


@dataclass(frozen=True)
class FullPrecisionSource(StageSource):
    """HF's BERT as it is: the teacher stage, and the reference that binary models are compared with."""

    bert_config: BertConfig

    @property
    def identity(self) -> dict[str, Any]:
        names = (*SHAPE_FIELDS, *DROPOUT_FIELDS, "pad_token_id", "hidden_act")
        return describe_start(self.bert_config, names, self.tokenizer)

    def build(self, head: Head[Any], seed: int, dropout: float | None = None) -> Any:
        """A :class:`FullPrecisionClassifier` with this encoder."""
        dropouts = {} if dropout is None else dict.fromkeys(DROPOUT_FIELDS, dropout)
        labels = head.config_fields()
        fields = {key: value for key, value in self.bert_config.to_diff_dict().items() if "label" not in key}
        torch.manual_seed(seed)
        model = FullPrecisionClassifier(BertConfig(**{**fields, **labels, **dropouts}))
        load_encoder(model, self.tensors, head)
        _load_head(model, self.head_tensors)
        return model


def open_stage(name: str, stage: StageConfig, start: str) -> Source:
    """Open what a stage starts from.

    Args:
        name: of the stage, for messages.
        start: what ``bitbert-finetune`` takes as MODEL, or the ``model`` folder of an earlier stage.

    Raises:
        UserError: nothing usable is there, or it does not go with the stage's method or fields.
    """
    if _is_bitbert(start):
        if stage.method == "binarybert":
            return _split(name, stage, start)
        if stage.method is not None or stage.half_width:
            raise UserError(
                f"stage {name!r}: method {stage.method!r} is for full-precision models, and {start!r} is binary; "
                "leave it out (binarybert alone follows a ternarybert stage)"
            )
        return _change_bits(name, stage, start)
    if stage.method is None:
        raise UserError(f"stage {name!r}: {unknown_start(start, 'name a method for it')}")
    return _from_full_precision(name, stage, start)


def load_classifier(folder: Path) -> PreTrainedModel:
    """The classifier that an earlier stage saved, full-precision or binary, in eval mode."""
    is_ours = _is_bitbert(str(folder))
    model_class: Any = BitBertForSequenceClassification if is_ours else FullPrecisionClassifier
    with loading("model", str(folder), "remove the folder of its stage to train it again"):
        model: PreTrainedModel = model_class.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def _folder(start: str) -> Path:
    """Where the model lies that ``start`` names; of a pretraining run its final one."""
    path = find_model(require_local_or_hub(start, "model"))
    return path / "final" if (path / "final").is_dir() else path


def _is_bitbert(start: str) -> bool:
    path = _folder(start)
    return (path / "config.json").is_file() and is_bitbert(path)


def _change_bits(name: str, stage: StageConfig, start: str) -> Source:
    """A binary start as it is, or with other activation_bits; its classifier comes along where it has one."""
    other = sorted(set(stage.fields) - {"activation_bits"})
    if other:
        raise UserError(
            f"stage {name!r}: {', '.join(other)} of a binary model cannot change; activation_bits alone can"
        )
    source = open_source(start, None)
    config, tensors = source.config, source.tensors
    if stage.fields:
        model: Any = BitBertForSequenceClassification(config)
        model.load_state_dict(tensors, strict=False)
        set_activation_bits(model, stage.fields["activation_bits"])
        config, tensors = model.config, _encoder(model.state_dict())
    return StageSource(config, tensors, source.tokenizer, source.calibrated, _saved_head(start))


def _split(name: str, stage: StageConfig, start: str) -> Source:
    if stage.fields or stage.half_width:
        raise UserError(
            f"stage {name!r}: splitting keeps the function; give fields and half_width to the ternarybert stage"
        )
    folder = _folder(start)
    model: Any = split_ternary(load_classifier(folder))
    tensors = model.state_dict()
    return StageSource(model.config, _encoder(tensors), load_tokenizer(str(folder)), True, _saved_head(start))


def _from_full_precision(name: str, stage: StageConfig, start: str) -> Source:
    path = require_local_or_hub(start, "model")
    bert, tokenizer = load_bert(start, path)
    inherited = inherited_fields(bert.config)
    tensors = dict(bert.state_dict())
    head = _saved_head(start)
    if stage.method == FULL_PRECISION:
        if stage.fields or stage.half_width:
            raise UserError(f"stage {name!r}: full precision has neither fields nor half width; leave them out")
        named = {f"bert.{key}": tensor for key, tensor in tensors.items()}
        return FullPrecisionSource(BitBertConfig(**inherited), named, tokenizer, True, head, bert.config)
    assert stage.method is not None  # open_stage
    config = binary_config(inherited, stage.method, stage.fields, f"stage {name!r}, fields")
    if stage.half_width:
        tensors, changed = half_width(tensors, config)
        config = BitBertConfig(**{**config.to_diff_dict(), **changed})
    student = from_full_precision(tensors, config)
    return StageSource(config, _encoder(student.state_dict()), tokenizer, False, head)


def _encoder(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("bitbert.")}


def _saved_head(start: str) -> dict[str, Tensor]:
    """The classifier in a saved model; empty where it has none."""
    path = _folder(start)
    if not (path / "model.safetensors").is_file():
        return {}
    return {name: tensor for name, tensor in read_weights(path).items() if name.startswith("classifier.")}


@torch.no_grad()
def _load_head(model: Any, tensors: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    if all(name in own and own[name].shape == tensor.shape for name, tensor in tensors.items()):
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
