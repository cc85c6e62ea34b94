"""The benchmark of finetuning steps times every method on both kinds of operations."""

import argparse

import pytest

from bitbert.model.kernels import SWITCH, load_kernels


def test_every_method_is_timed_with_kernels_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_finetune as benchmark

    monkeypatch.setenv(SWITCH, "native")
    options = {"shape": "tiny", "rows": 2, "tokens": 8, "precision": "bf16", "threads": 1, "rounds": 1, "steps": 1}
    try:
        rows = benchmark.measure(argparse.Namespace(**options))
    finally:
        load_kernels.cache_clear()
    assert [(row["method"], row["kernels"]) for row in rows] == [
        ("full precision", "torch"),
        *((method, kernels) for method in benchmark.METHODS for kernels in ("native", "torch")),
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[0]["ratio"] == 1
    lines = benchmark.table(rows).splitlines()
    assert len(lines) == 2 + 1 + len(benchmark.METHODS)
    assert lines[2].startswith("| full precision |  | ")
    assert lines[3].count("(") == 2
