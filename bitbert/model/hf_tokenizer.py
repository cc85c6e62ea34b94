"""The tokenizer of a saved model as transformers' pipelines and Trainer want it."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import LARGE_INTEGER

from bitbert.errors import UserError
from bitbert.files import read_json_object
from bitbert.packed import CONFIG_FILE
from bitbert.tokenizer import SPECIAL_TOKENS, WORDPIECE_FILE, WordPieceTokenizer, load_tokenizer
from bitbert.tokenizer_reference import REFERENCE_FILE


class BitBertTokenizer(PreTrainedTokenizerFast):
    """``tokenizer.json`` with BERT's special tokens named, and [CLS] and [SEP] put around texts.

    A ``tokenizer.json`` of ours need not say how texts are joined, since ``encode_pair`` of
    :class:`bitbert.tokenizer.Tokenizer` does that; transformers wants it said. How text is cut is the file's own rule.
    """

    # The name is one that transformers reads.
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """What transformers builds the tokenizer from; a subclass with an ``__init__`` would lose the file's rules."""
        file = kwargs.pop("tokenizer_file", None)
        folder = Path(str(kwargs.get("name_or_path", "")))
        if file is not None:
            backend = Tokenizer.from_file(file)
        elif (folder / REFERENCE_FILE).is_file() and isinstance(
            found := load_tokenizer(str(folder)), WordPieceTokenizer
        ):
            backend = Tokenizer.from_str(found.to_json())
        else:
            raise UserError(
                f"the model folder has no {WORDPIECE_FILE}, which transformers' tokenizer reads; a SentencePiece model "
                "works with bitbert-finetune and bitbert-predict, not with transformers' pipelines"
            )
        if backend.post_processor is None:
            backend.post_processor = TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
            )
        # Without a limit of its own truncation would cut nothing, and positions beyond the model's fail.
        if kwargs.get("model_max_length", LARGE_INTEGER) >= LARGE_INTEGER and (folder / CONFIG_FILE).is_file():
            config = read_json_object(folder / CONFIG_FILE, "model config")
            kwargs["model_max_length"] = config.get("max_length", config.get("max_position_embeddings", LARGE_INTEGER))
        names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
        return {**names, **kwargs, "tokenizer_object": backend}
