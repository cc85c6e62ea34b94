"""Answers to test sets: of a model just trained, and of a finished one whose test files came or changed later."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import write_json_atomically
from bitbert.model import BitBertPreTrainedModel
from bitbert.model.export import unpack_model
from bitbert.model.loading import loading
from bitbert.packed import load_packed
from bitbert.tokenizer import Tokenizer

from .batches import run_model
from .config import FinetuneConfig
from .data import TaskData, hash_examples
from .seed_folder import RESULT
from .submission import write_answers


def answer_tests(
    model: BitBertPreTrainedModel,
    task: TaskData,
    names: Iterable[str],
    tokenizer: Tokenizer,
    config: FinetuneConfig,
    folder: Path,
) -> dict[str, str]:
    """Write ``folder/NAME.tsv`` for each of the task's test sets in ``names``; returns the sets' hashes."""
    hashes = {}
    for name in names:
        assert task.glue is not None  # only GLUE's tasks have test sets
        examples = task.test[name]
        features = task.head.encode(examples, tokenizer, config.max_length)
        outputs = run_model(model, task.head, features, config.eval_batch_size, tokenizer.pad_id)
        write_answers(folder / f"{name}.tsv", task.glue, task.head.predict(examples, features, outputs))
        hashes[name] = hash_examples(examples)
    return hashes


def answer_late(
    folder: Path, result: dict[str, Any], task: TaskData, tokenizer: Tokenizer, config: FinetuneConfig
) -> dict[str, Any]:
    """Let the saved model of a finished seed answer test sets that it has not seen; returns the seed's new result.

    A result from before the sets' hashes were recorded counts as one of the same sets.

    Raises:
        UserError: there are such sets, and the saved model is gone.
    """
    known = result.get("test_sha256", {})
    late = [
        name
        for name, examples in task.test.items()
        if name not in result["answers"] or (name in known and known[name] != hash_examples(examples))
    ]
    if not late:
        return result
    path = folder / ("packed" if result["packed"] else "model")
    if not path.is_dir():
        raise UserError(
            f"{str(path)!r} is gone, which {', '.join(late)} of other test files needs; "
            f"remove {str(folder)!r} to finetune again"
        )
    log(f"{task.title} seed {result['seed']}: its saved model answers {', '.join(late)}")
    with loading("model", str(path), f"remove {str(folder)!r} to finetune again"):
        model: Any = (
            unpack_model(load_packed(path))
            if result["packed"]
            else task.head.model_class.from_pretrained(path, dtype=torch.float32)
        )
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    hashes = answer_tests(model, task, late, tokenizer, config, folder)
    answers = [*result["answers"], *(name for name in late if name not in result["answers"])]
    result = result | {"answers": answers, "test_sha256": known | hashes}
    write_json_atomically(folder / RESULT, result)
    return result
