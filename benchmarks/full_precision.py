"""What bench_runtime.py compares with: a full-precision BERT of the same shape in ONNX Runtime, fp32 and int8."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FIRST_ANSWER = """
import sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
ids = np.array([Tokenizer.from_file(sys.argv[2]).encode(sys.argv[3]).ids], dtype=np.int64)
print(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids})[0])
"""
"""A process that answers one text in full precision: arguments model, tokenizer.json, text."""


def export_onnx(shape: dict[str, int], folder: Path) -> dict[str, Path]:
    """Write a random BERT classifier of this shape as ONNX: ``{"fp32": path, "int8": path}``.

    int8 is ONNX Runtime's dynamic quantization, the choice of a person who wants speed without retraining.
    """
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import BertConfig, BertForSequenceClassification

    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits

    torch.manual_seed(0)
    model = Logits(BertForSequenceClassification(BertConfig(attn_implementation="eager", **shape)).eval())
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones((1, 16), dtype=torch.int64)
    paths = {kind: folder / f"{kind}.onnx" for kind in ("fp32", "int8")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (ids, ids, 0 * ids),
            str(paths["fp32"]),
            input_names=names,
            dynamic_axes={name: {0: "batch", 1: "positions"} for name in names},
            opset_version=17,
            dynamo=False,
        )
    quantize_dynamic(paths["fp32"], paths["int8"], weight_type=QuantType.QInt8)
    return paths


def onnx_runner(path: Path, input_ids: np.ndarray, num_threads: int) -> Callable[[], object]:
    """A function that answers ``input_ids`` (batch, positions) once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {
        "input_ids": input_ids.astype(np.int64),
        "attention_mask": np.ones(input_ids.shape, np.int64),
        "token_type_ids": np.zeros(input_ids.shape, np.int64),
    }
    return lambda: session.run(None, feed)
