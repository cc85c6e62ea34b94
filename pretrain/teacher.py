"""The full-precision teacher: HF's BERT in eval mode, frozen, with only the heads that the loss asks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BertForPreTraining

from bitbert.config import Precision
from bitbert.errors import UserError
from bitbert.model.loading import loading, refuse_other_types
from bitbert.model.precision import products_in
from bitbert.model.taps import Projections, ProjectionTap
from bitbert.resources import require_local_or_hub
from bitbert.tokenizer import SENTENCEPIECE_FILE, WORDPIECE_FILE, Tokenizer, load_tokenizer

from .config import LossSection
from .data import Batch


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher says.

    Attributes:
        hidden_states: L + 1 tensors (batch, positions, hidden).
        nsp_logits: (batch, 2), or None without the head.
        mlm_logits: (num_masked, vocabulary), at the masked positions, or None without the head.
        projections: queries, keys and values of the layers of the relation terms; none without such a term.
    """

    hidden_states: tuple[Tensor, ...]
    nsp_logits: Tensor | None
    mlm_logits: Tensor | None
    projections: tuple[Projections, ...] = ()


class Teacher(nn.Module):
    """A frozen BERT. ``tensors`` is its state dict, from which the student is initialised.

    Its products run in ``precision``; what it returns is float32.
    """

    def __init__(
        self, model: BertForPreTraining, heads: frozenset[str], loss: LossSection, precision: Precision = "fp32"
    ) -> None:
        super().__init__()
        self._precision = precision
        self.config = model.config
        self.tensors = {name: tensor for name, tensor in model.state_dict().items() if _belongs(name, heads)}
        self.bert = model.bert
        self.nsp_head = model.cls.seq_relationship if loss.nsp_distillation else None
        self.mlm_head = model.cls.predictions if loss.mlm_distillation else None
        if self.nsp_head is None:
            self.bert.pooler = None
        self.tap = ProjectionTap(self.bert, loss.relation_layers if loss.relations else ())
        if precision == "bf16":  # once, instead of at every product of every step
            for module in self.bert.encoder.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: dropout in the teacher would make its targets noisy."""
        return self

    @torch.no_grad()
    def forward(self, batch: Batch) -> TeacherOutput:
        with products_in(self._precision, batch.input_ids.device):
            with self.tap:
                output = self.bert(**batch.inputs(), output_hidden_states=True)
            nsp_logits = self.nsp_head(output.pooler_output).float() if self.nsp_head is not None else None
            mlm_logits = None
            if self.mlm_head is not None:
                masked = output.last_hidden_state.flatten(0, 1)[batch.masked_positions]
                mlm_logits = self.mlm_head(masked).float()
        hidden_states = tuple(states.float() for states in output.hidden_states)
        return TeacherOutput(hidden_states, nsp_logits, mlm_logits, tuple(self.tap.take()))


def load_teacher(name: str, loss: LossSection, tokenizer: Tokenizer, precision: Precision = "fp32") -> Teacher:
    """Load a BERT and check that it fits the loss and the tokenizer.

    Raises:
        UserError: it is not there, is not a BERT, lacks the encoder or a head that the loss needs, or has another
            vocabulary than ``tokenizer``.
    """
    path = require_local_or_hub(name, "teacher")
    transformers.logging.set_verbosity_error()  # what is missing is checked and said here
    transformers.logging.disable_progress_bar()
    with loading("teacher", name, "give a folder with a BERT in safetensors, or a Hugging Face id"):
        refuse_other_types("teacher", name, path)
        loaded: Any = BertForPreTraining.from_pretrained(
            path, output_loading_info=True, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
        )
    model, info = loaded
    config, missing = model.config, set(info["missing_keys"])
    absent = sorted(key for key in missing if key.startswith("bert.") and ".pooler." not in key)
    if absent:
        raise UserError(
            f"teacher {name!r} lacks {len(absent)} encoder tensors, e.g. {absent[0]}; it is not a complete BERT"
        )
    heads = frozenset(head for head, prefix in _PREFIXES.items() if not any(key.startswith(prefix) for key in missing))
    for head, weight in (("nsp", "nsp_distillation"), ("mlm", "mlm_distillation")):
        needed = {head, "pooler"} if head == "nsp" else {head}
        if getattr(loss, weight) and not needed <= heads:
            raise UserError(
                f"teacher {name!r} has no {head.upper()} head, which loss.{weight}={getattr(loss, weight)} needs; "
                f"set loss.{weight}=0 or use a teacher with it"
            )
    if loss.relations and loss.relation_heads and config.hidden_size % loss.relation_heads:
        raise UserError(
            f"teacher {name!r} has a hidden size of {config.hidden_size}, which {loss.relation_heads} relation heads "
            "do not divide; change loss.relation_heads"
        )
    _check_tokenizer(name, path, config, tokenizer)
    return Teacher(model, heads, loss, precision)


_PREFIXES = {"pooler": "bert.pooler.", "mlm": "cls.predictions.transform.", "nsp": "cls.seq_relationship."}


def _belongs(name: str, heads: frozenset[str]) -> bool:
    """Whether a tensor was in the checkpoint: a head that was not would be random numbers."""
    if name.startswith("cls.predictions."):
        return "mlm" in heads
    if name.startswith("cls.seq_relationship."):
        return "nsp" in heads
    return not name.startswith("bert.pooler.") or "pooler" in heads


def _check_tokenizer(name: str, path: str, config: Any, tokenizer: Tokenizer) -> None:
    if config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"teacher {name!r} has {config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}; "
            "use the teacher's tokenizer for shards and training"
        )
    folder = Path(path)
    tokenizer_files = (WORDPIECE_FILE, SENTENCEPIECE_FILE, "vocab.txt")
    if not folder.is_dir() or not any((folder / file).is_file() for file in tokenizer_files):
        return  # the teacher brings no tokenizer; the vocabulary's size is all there is to compare
    theirs = load_tokenizer(path)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"teacher {name!r} has a tokenizer with fingerprint {theirs.fingerprint[:12]}, "
            f"the config's has {tokenizer.fingerprint[:12]}; use the teacher's tokenizer for shards and training"
        )
