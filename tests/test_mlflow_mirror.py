"""The mirror never holds a run up, keeps one MLflow run over resumes, and sync fills in what is missing, once."""

import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from bitbert.mlflow_mirror import MlflowMirror, MlflowRun
from bitbert.tracking import Tracker


class FakeRun:
    """Stands for a server that fails so many times, or that hangs."""

    def __init__(self, failures: int = 0, hangs: threading.Event | None = None) -> None:
        self.failures, self.hangs = failures, hangs
        self.records, self.statuses = [], []

    def open(self) -> "FakeRun":
        if self.hangs is not None:
            self.hangs.wait(30)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no\nroute")
        return self

    def log(self, records: list) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("gone")
        self.records += records

    def add(self, path: Path) -> None:
        pass

    def set_status(self, status: str) -> None:
        self.statuses.append(status)


def test_an_outage_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun(failures=3)
    mirror = MlflowMirror(run.open, pause_s=0.001)
    for step in range(50):
        mirror.log((step, 0.0, {"loss": 1.0}))
    deadline = time.monotonic() + 10
    while len(run.records) < 50 and time.monotonic() < deadline:
        time.sleep(0.005)
    mirror.close("FINISHED", tmp_path)
    assert [step for step, _, _ in run.records] == list(range(50))
    assert run.statuses == ["RUNNING", "FINISHED"]
    said = capsys.readouterr().err
    assert said.count("MLflow failed (ConnectionError: no route)") == 1
    assert "answers again" in said
    assert "lacks" not in said


def test_a_server_that_hangs_costs_no_step_and_little_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    started = time.monotonic()
    mirror = MlflowMirror(FakeRun(hangs=release).open, patience_s=0.2)
    mirror.log((1, 0.0, {"loss": 1.0}))
    mirror.add(tmp_path)
    logged = time.monotonic() - started
    mirror.close("FINISHED", tmp_path)
    ended = time.monotonic() - started
    release.set()
    assert logged < 0.2
    assert ended < 5
    assert f"bitbert-pretrain sync {tmp_path} --mlflow-uri URI" in capsys.readouterr().err


def test_a_dead_server_is_said_at_the_end_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path, mlflow_uri="http://127.0.0.1:9")
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("MLflow failed") == 1
    assert "bitbert-pretrain sync" in said


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def open_run(folder: Path, uri: str) -> MlflowRun:
    return MlflowRun(folder, uri, experiment="e", name="n", parameters={"steps": 3})


def test_replay_sends_what_is_missing_and_nothing_twice(tmp_path: Path, uri: str) -> None:
    records = [(step, 10.0 + step, {"loss": 1.0 / step, "rate": float("nan")}) for step in (1, 2, 3)]
    run = open_run(tmp_path, uri)
    run.log(records[:1])
    again = open_run(tmp_path, uri)
    assert again.run_id == run.run_id
    assert again.replay(records) == 4
    assert again.replay(records) == 0
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.run_id, "loss")
    assert sorted((metric.step, metric.value, metric.timestamp) for metric in history) == [
        (1, 1.0, 11000),
        (2, 0.5, 12000),
        (3, 1.0 / 3, 13000),
    ]


def test_artifacts_are_sent_once_and_again_when_they_changed(tmp_path: Path, uri: str) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "model.safetensors").write_bytes(b"bits")
    (tmp_path / "config.yaml").write_text("a: 1\n")
    run = open_run(tmp_path, uri)
    client = MlflowClient(tracking_uri=uri)

    def stored() -> dict[str, int]:
        entries = [*client.list_artifacts(run.run_id), *client.list_artifacts(run.run_id, "final")]
        return {entry.path: entry.file_size for entry in entries if not entry.is_dir}

    for _ in range(2):
        run.add(tmp_path / "final")
        run.add(tmp_path / "config.yaml")
        assert stored() == {"final/model.safetensors": 4, "config.yaml": 5}
    (tmp_path / "config.yaml").write_text("a: 12\n")
    run.add(tmp_path / "config.yaml")
    assert stored()["config.yaml"] == 6


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_status_and_parameters(tmp_path: Path, uri: str, status: str) -> None:
    tracker = Tracker(tmp_path, mlflow_uri=uri, experiment="statuses", parameters={"steps": 2})
    tracker.close(status)
    resumed = Tracker(tmp_path, mlflow_uri=uri, experiment="statuses", parameters={"steps": 2, "added": 1})
    resumed.close(status)
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("statuses").experiment_id])
    (run,) = [run for run in runs if run.info.run_name == tmp_path.name]
    assert (run.info.status, run.data.params) == (status, {"steps": "2", "added": "1"})
