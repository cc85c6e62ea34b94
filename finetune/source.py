"""Where a finetuning starts: a pretraining run, a latent model, a packed checkpoint, or a full-precision BERT."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from bitbert.errors import UserError
from bitbert.files import read_json
from bitbert.model import BitBertConfig, BitBertPreTrainedModel, preset_fields
from bitbert.model.convert import from_full_precision
from bitbert.model.export import unpack_model
from bitbert.model.latent import spread_latent_weights
from bitbert.packed import is_packed, load_packed
from bitbert.released import find_model
from bitbert.resources import require_local_or_hub
from bitbert.tokenizer import Tokenizer, load_tokenizer

from .head import Head

_FINAL = "final"
_LATENT_SEED = 0


@dataclass(frozen=True)
class Source:
    """An encoder to finetune: its config, its encoder weights by name, its tokenizer."""

    config: BitBertConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    calibrated: bool

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
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        dropouts = {} if dropout is None else dict.fromkeys(names, dropout)
        config = BitBertConfig(**{**self.config.to_diff_dict(), **head.config_fields(), **dropouts})
        torch.manual_seed(seed)
        model = head.model_class(config)
        missing, unexpected = model.load_state_dict(self.tensors, strict=False)
        if unexpected or set(missing) != set(head.parameters):
            raise UserError(
                f"the checkpoint does not fit its config: missing {missing[:3]}, unexpected {unexpected[:3]}; "
                "it is damaged, make it again"
            )
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
    if path.is_dir() and read_json(path / "config.json", "model config").get("model_type") == BitBertConfig.model_type:
        _refuse_method(name, method)
        config: Any = BitBertConfig.from_pretrained(path)
        return Source(config, _encoder_tensors(_read_weights(path)), load_tokenizer(str(path)), calibrated=True)
    return _open_full_precision(name, str(path) if path.exists() else name, method)


def load_bert(name: str, path: str) -> transformers.BertModel:
    """A full-precision BERT; one without a pooler gets a random one, always the same.

    Args:
        name: what the user gave, for the message.
        path: folder or Hugging Face id.

    Raises:
        UserError: it cannot be loaded.
    """
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    try:
        return transformers.BertModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}; "
            "give a folder or a Hugging Face id of a BERT"
        ) from error


def _open_full_precision(name: str, path: str, method: str | None) -> Source:
    if method is None:
        raise UserError(
            f"model {name!r} is a full-precision BERT; pass --method baseline to binarize it without pretraining, "
            "or give a pretrained BitBERT"
        )
    fields = preset_fields(method)
    model = load_bert(name, path)
    shape = {
        key: value
        for key, value in model.config.to_diff_dict().items()
        if key in BitBertConfig().to_dict() and key not in ("model_type", "architectures", "hidden_act")
    }
    student = from_full_precision(model.state_dict(), BitBertConfig(**(shape | fields)))
    return Source(student.config, _encoder_tensors(student.state_dict()), load_tokenizer(path), calibrated=False)


def _encoder_tensors(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """The encoder's tensors under the prefix that task models use; heads are left behind."""
    if any(name.startswith("bitbert.") for name in tensors):
        return {name: tensor for name, tensor in tensors.items() if name.startswith("bitbert.")}
    return {f"bitbert.{name}": tensor for name, tensor in tensors.items()}


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not (path / "model.safetensors").is_file():
        raise UserError(f"model {str(path)!r} has no model.safetensors; save it with save_pretrained in one file")
    return load_file(path / "model.safetensors")


def _refuse_method(name: str, method: str | None) -> None:
    if method is not None:
        raise UserError(f"--method {method} is for full-precision models; {name!r} is binary already, leave it out")
