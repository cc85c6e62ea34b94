"""Where a finetuning starts: a pretraining run, a latent model, a packed checkpoint, or a full-precision BERT."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import read_json_object
from bitbert.model import SHAPE_FIELDS, BitBertConfig, BitBertPreTrainedModel
from bitbert.model.configuration import DROPOUT_FIELDS, binary_config, inherited_fields
from bitbert.model.convert import from_full_precision
from bitbert.model.export import unpack_model
from bitbert.model.latent import spread_latent_weights
from bitbert.model.loading import loading, refuse_other_types
from bitbert.packed import is_packed, load_packed
from bitbert.presets import METHOD_FIELDS
from bitbert.released import find_model
from bitbert.resources import require_local_or_hub, resolve
from bitbert.tokenizer import Tokenizer, load_tokenizer

from .head import Head

_FINAL = "final"
_LATENT_SEED = 0
_IDENTITY_FIELDS = (*METHOD_FIELDS, *SHAPE_FIELDS, "attention_head_size", *DROPOUT_FIELDS)


@dataclass(frozen=True)
class Source:
    """An encoder to finetune: its config, its encoder weights by name, its tokenizer."""

    config: BitBertConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    calibrated: bool

    def __post_init__(self) -> None:
        _check_vocabulary(self.tokenizer, self.config.vocab_size)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a training's start besides the weights: shape, method, dropout, and which ids a text gets."""
        return describe_start(self.config, _IDENTITY_FIELDS, self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the weights that training starts from."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(self.tensors[name].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def build(self, head: Head[Any], seed: int, dropout: float | None = None) -> BitBertPreTrainedModel:
        """A model with this encoder and a fresh head drawn from ``seed``; ``dropout`` None keeps the config's."""
        dropouts = {} if dropout is None else dict.fromkeys(DROPOUT_FIELDS, dropout)
        config = BitBertConfig(**{**self.config.to_diff_dict(), **head.config_fields(), **dropouts})
        torch.manual_seed(seed)
        model = head.model_class(config)
        load_encoder(model, self.tensors, head)
        return model


def open_source(name: str, method: str | None, *, spread: bool = True) -> Source:
    """Open what ``name`` points to.

    A packed checkpoint has no latent weights. They are made from its bits (see ``bitbert.model.latent``), always the
    same ones, so that seeds and runs compare.

    Args:
        name: folder of a bitbert-pretrain run, of a saved model or of a packed checkpoint; the name of a released
            checkpoint; or a full-precision BERT (folder, package://DIST/PATH or Hugging Face id), which ``method``
            binarizes without pretraining.
        spread: latent weights of a packed checkpoint get spread magnitudes; False leaves every one at its scale.

    Raises:
        UserError: nothing usable is there, or ``method`` is given or missing where it should not be.
    """
    path = find_model(require_local_or_hub(name, "model"))
    path = path / _FINAL if (path / _FINAL).is_dir() else path
    if is_packed(path):
        _refuse_method(name, method)
        packed = load_packed(path)
        encoder = unpack_model(packed)
        if spread:
            spread_latent_weights(encoder, _LATENT_SEED)
        return Source(encoder.config, _encoder_tensors(encoder.state_dict()), packed.tokenizer, calibrated=True)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"model {name!r} has neither {_FINAL}/ nor config.json nor packed weights; give a finished run, "
            "a saved model or a packed checkpoint"
        )
    if path.is_dir() and is_bitbert(path):
        _refuse_method(name, method)
        with loading("model", name, "it is damaged, make or copy it again"):
            config: Any = BitBertConfig.from_pretrained(path)
        return Source(config, _encoder_tensors(read_weights(path)), load_tokenizer(str(path)), calibrated=True)
    return _open_full_precision(name, str(path) if path.exists() else name, method)


def is_bitbert(path: Path) -> bool:
    """Whether config.json in a model folder is one of ours, of latent or of packed weights."""
    found = read_json_object(path / "config.json", "model config").get("model_type")
    return bool(found == BitBertConfig.model_type)


def load_encoder(model: Any, tensors: dict[str, Tensor], head: Head[Any]) -> None:
    """Load ``tensors`` into ``model``, which has exactly these and the head's parameters, in these shapes.

    Raises:
        UserError: a tensor is missing, one too many, or of another shape.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(tensors) - set(head.parameters))
    unexpected = sorted(set(tensors) - set(own))
    misshapen = sorted(name for name in set(own) & set(tensors) if own[name].shape != tensors[name].shape)
    if missing or unexpected or misshapen:
        raise UserError(
            f"the checkpoint does not fit its config: missing {missing[:3]}, unexpected {unexpected[:3]}, of another "
            f"shape {misshapen[:3]}; it is damaged, make it again"
        )
    model.load_state_dict(tensors, strict=False)


def load_bert(name: str, path: str) -> tuple[transformers.BertModel, Tokenizer]:
    """A full-precision BERT and its tokenizer; one without a pooler gets a random one, always the same.

    Word tables are often padded to a round number of rows. Rows without a token are cut off: nothing reads them, and
    the packed format wants as many rows as tokens.

    Args:
        name: what the user gave, for the message.
        path: folder or Hugging Face id.

    Raises:
        UserError: it cannot be loaded, is not a complete BERT, or its tokenizer has ids beyond the word table.
    """
    transformers.logging.set_verbosity_error()  # what is missing is checked and said here
    torch.manual_seed(0)
    with loading("model", name, "give a folder or a Hugging Face id of a BERT"):
        refuse_other_types("model", name, path)
        loaded: Any = transformers.BertModel.from_pretrained(
            path, output_loading_info=True, dtype=torch.float32, use_safetensors=True
        )
    model, info = loaded
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"model {name!r} lacks {len(missing)} encoder tensors, e.g. {missing[0]}; it is not a complete BERT"
        )
    tokenizer = load_tokenizer(path)
    num_rows = model.config.vocab_size
    if tokenizer.vocab_size < num_rows:
        log(f"model {name!r}: {num_rows - tokenizer.vocab_size} rows of its word table have no token and are cut off")
        model.resize_token_embeddings(tokenizer.vocab_size)
    _check_vocabulary(tokenizer, model.config.vocab_size)
    return model, tokenizer


def describe_start(config: Any, names: Iterable[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """:attr:`Source.identity` of a config of which ``names`` count."""
    return {
        "model_fields": {name: getattr(config, name) for name in names},
        "tokenizer_sha256": tokenizer.fingerprint,
    }


def unknown_start(name: str, advice: str) -> str:
    """Why ``name``, which is nothing binary, cannot start without a method: a full-precision BERT, or a typing error.

    Args:
        advice: how a method is given.
    """
    if Path(resolve(name)).exists():
        return f"{name!r} is a full-precision BERT; {advice}"
    return f"{name!r} is no folder here and no released checkpoint; if it is a full-precision BERT on the hub, {advice}"


def _check_vocabulary(tokenizer: Tokenizer, num_rows: int) -> None:
    if tokenizer.vocab_size != num_rows:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's word table {num_rows} rows; "
            "use the tokenizer the model was trained with"
        )


def _open_full_precision(name: str, path: str, method: str | None) -> Source:
    if method is None:
        advice = "pass --method baseline to binarize it without pretraining, or give a pretrained BitBERT"
        raise UserError(f"model {unknown_start(name, advice)}")
    model, tokenizer = load_bert(name, path)
    config = binary_config(inherited_fields(model.config), method, {}, f"model {name!r}")
    student = from_full_precision(model.state_dict(), config)
    return Source(student.config, _encoder_tensors(student.state_dict()), tokenizer, calibrated=False)


def _encoder_tensors(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """The encoder's tensors under the prefix that task models use, in float32; heads are left behind."""
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    if any(name.startswith("bitbert.") for name in tensors):
        return {name: tensor for name, tensor in tensors.items() if name.startswith("bitbert.")}
    return {f"bitbert.{name}": tensor for name, tensor in tensors.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a saved model's folder.

    Raises:
        UserError: it has no weights in one file, or they are damaged.
    """
    if not (path / "model.safetensors").is_file():
        raise UserError(f"model {str(path)!r} has no model.safetensors; save it with save_pretrained in one file")
    with loading("model", str(path), "it is damaged, make or copy it again"):
        return load_file(path / "model.safetensors")


def _refuse_method(name: str, method: str | None) -> None:
    if method is not None:
        raise UserError(f"--method {method} is for full-precision models; {name!r} is binary already, leave it out")
