"""A packed model as a sentence encoder, without finetuning: python benchmarks/sentence_encoder.py MODEL --json PATH

Each sentence of STS-B's dev set becomes the mean of its token states, [CLS] and [SEP] included; a pair's score is the
cosine of its two vectors. The number is Spearman's correlation with the people's scores, x 100. MODEL (a folder, or a
released name) answers through the runtime, from bits; beside it stands its full-precision teacher, in torch.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from places import GLUE, MINILM

from bitbert.errors import UserError
from bitbert.files import write_json_atomically
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.metrics import pearson, spearman
from bitbert.finetune.sequence import TextExamples
from bitbert.finetune.tasks import find_tasks
from bitbert.packed import checkpoint_bytes
from bitbert.released import find_model
from bitbert.resources import require_local_or_hub
from bitbert.runtime import Runtime
from bitbert.tokenizer import Tokenizer, load_tokenizer

Encode = Callable[[list[str]], np.ndarray]
MAX_LENGTH, BATCH = 128, 32


def read_pairs(glue_dir: Path) -> TextExamples:
    """STS-B's dev set."""
    (task,) = read_glue_tasks(find_tasks("stsb"), glue_dir)
    return task.evaluation["dev"]


def correlations(encode: Encode, pairs: TextExamples) -> dict[str, float]:
    """Spearman's and Pearson's correlation of the pairs' cosines with their scores."""
    assert pairs.second_texts is not None
    assert pairs.labels is not None
    first, second = encode(pairs.texts), encode(pairs.second_texts)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return {"spearman": spearman(cosines, pairs.labels), "pearson": pearson(cosines, pairs.labels)}


def torch_encoder(states: Callable[..., torch.Tensor], tokenizer: Tokenizer, max_length: int = MAX_LENGTH) -> Encode:
    """Mean-pooled encodings of a torch model; ``states`` maps its inputs to the last layer's token states."""

    @torch.no_grad()
    def encode(texts: list[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), BATCH):
            ids = [tokenizer.encode_pair(text, None, max_length)[0] for text in texts[start : start + BATCH]]
            inputs = torch.full((len(ids), max(map(len, ids))), tokenizer.pad_id)
            mask = torch.zeros_like(inputs)
            for row, tokens in enumerate(ids):
                inputs[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
            found = states(input_ids=inputs, attention_mask=mask, token_type_ids=torch.zeros_like(inputs))
            vectors.append((found * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))
        return torch.cat(vectors).numpy()

    return encode


def teacher_encoder(name: str) -> tuple[Encode, int]:
    """A full-precision BERT's encoder, and the bytes of its parameters in float32."""
    path = require_local_or_hub(name, "teacher")
    transformers.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True).eval()

    def states(**inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(**inputs).last_hidden_state
        return found

    return torch_encoder(states, load_tokenizer(path)), 4 * sum(each.numel() for each in model.parameters())


def measure(name: str, encode: Encode, num_bytes: int, pairs: TextExamples) -> dict[str, Any]:
    started = time.process_time()
    found = correlations(encode, pairs)
    return {"model": name, **found, "bytes": num_bytes, "cpu_s": round(time.process_time() - started, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| model | Spearman x 100 | Pearson x 100 | MiB | CPU s |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['model']} | {100 * row['spearman']:.2f} | {100 * row['pearson']:.2f} | {row['bytes'] / 2**20:.2f} "
        f"| {row['cpu_s']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="packed checkpoint: folder or released name")
    parser.add_argument("--teacher", default=MINILM)
    parser.add_argument("--glue-dir", type=Path, default=GLUE)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        pairs = read_pairs(arguments.glue_dir)
        folder = find_model(arguments.model)
        rows = [
            measure(arguments.model, Runtime.load(folder).encode, checkpoint_bytes(folder), pairs),
            measure(f"teacher {arguments.teacher}", *teacher_encoder(arguments.teacher), pairs),
        ]
    except UserError as error:
        sys.exit(f"error: {error}")
    write_json_atomically(arguments.json, {"set": "STS-B dev", "num_pairs": len(pairs), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
