"""Finetuning from bits against latent weights, at toy scale: runs are recorded once, and the table holds them all."""

import json
from pathlib import Path

import pytest

from tests.finetune.conftest import packed_model, saved_model, tiny_glue  # noqa: F401 (fixtures)


def test_every_start_and_rate_once(
    saved_model: Path,  # noqa: F811
    packed_model: Path,  # noqa: F811
    tiny_glue: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import finetune_from_packed as benchmark

    def run(*changes: str) -> list[dict]:
        options = {"json": tmp_path / "out.json", "latent": saved_model, "packed": packed_model, "glue-dir": tiny_glue}
        small = ["--tasks", "rte", "--seeds", "0", "--epochs", "1", "--rows", "12", "--batch-size", "4"]
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", ["finetune_from_packed.py", *given, *small, "--rates", "1e-9,1e-2", *changes])
        benchmark.main()
        return json.loads((tmp_path / "out.json").read_text())["runs"]

    runs = run()
    assert [(run["start"], run["learning_rate"]) for run in runs] == [
        (start, rate) for rate in (1e-9, 1e-2) for start in benchmark.STARTS
    ]
    flips = {(run["start"], run["learning_rate"]): run["flip_ratio"] for run in runs}
    assert all(flips[start, 1e-9] < 0.01 < flips[start, 1e-2] for start in ("latent", "packed"))
    assert flips["packed-constant", 1e-2] < flips["packed", 1e-2]  # all of its weights are as far from zero
    assert capsys.readouterr().out.count("| rte, accuracy") == 3

    def measure_again(*arguments: object) -> dict:
        raise AssertionError("measured again")

    monkeypatch.setattr(benchmark, "measure", measure_again)
    assert run() == runs
    with pytest.raises(SystemExit, match="holds runs of another recipe"):
        run("--max-length", "8")
