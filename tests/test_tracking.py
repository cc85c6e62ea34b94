"""Metrics are always on disk, and MLflow never stops a run."""

import json
import math
import resource
import signal
from pathlib import Path

import pytest

from bitbert.errors import UserError
from bitbert.tracking import Tracker, as_record, flatten, read_metrics, read_status


def test_lines_survive_and_a_resumed_run_rewrites_the_rest(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1.0 / step})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'3\n{}\n\0\0\xff\n{"step": 4, "lo')  # what a lost disk and a kill leave
    Tracker(tmp_path, resume_step=2).log(3, {"loss": 9.0})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_a_full_disk_loses_no_line_and_writes_none_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path)
    tracker.log(1, {"loss": 1.0})
    full = (tmp_path / "metrics.jsonl").stat().st_size + 10
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
    try:
        tracker.log(2, {"loss": 0.5})
        tracker.log(3, {"loss": 0.4})
        assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert capsys.readouterr().err.count("metrics.jsonl could not be written") == 1
    tracker.log(4, {"loss": 0.3})
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_damaged_status_is_named(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"run status .* lacks status; the file is damaged"):
        read_status(tmp_path)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", enabled=False)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert not (tmp_path / "run").exists()


def test_mlflow_sqlite_gets_metrics_and_keeps_the_run_over_a_resume(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for resume_step in (None, 1):
        tracker = Tracker(
            tmp_path / "run",
            mlflow_uri=uri,
            run_name="name",
            parameters={"steps": 2},
            resume_step=resume_step,
        )
        tracker.log(1 if resume_step is None else 2, {"loss/mlm": 0.5})
        tracker.close("FINISHED")
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("bitbert").experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "name", {"steps": "2"})
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/mlm")] == [1, 2]


def test_numbers_that_are_none_are_null_on_disk_and_nan_in_memory(tmp_path: Path) -> None:
    Tracker(tmp_path).log(1, {"loss": math.nan, "rate": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert '"loss": null' in text  # NaN is no JSON
    step, _, values = as_record(read_metrics(tmp_path / "metrics.jsonl")[0])
    assert (step, values["rate"], math.isnan(values["loss"])) == (1, 1.0, True)


def test_status_says_how_the_run_ended(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    assert read_status(tmp_path) == "RUNNING"
    tracker.close("KILLED")
    assert read_status(tmp_path) == "KILLED"


def test_folder_as_uri_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use sqlite:///mlruns\.db"):
        Tracker(tmp_path, mlflow_uri="./mlruns")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
