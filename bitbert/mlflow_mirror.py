"""The one door to MLflow: a mirror of what a run folder records, in a thread of its own.

Training never waits for a server. Records queue up in memory; a thread sends them, tries again when a call fails, and
gives up at the end of the run after a while. Whatever was not sent is in metrics.jsonl, for ``replay`` to fill in.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bitbert.distributed import log
from bitbert.files import read_json_object, write_json_atomically

RUNS_FILE = "mlflow.json"
_QUEUE_RECORDS = 20_000  # about a day of logging; older ones are dropped first
_BATCH_METRICS = 900  # a server takes 1000 a request
_LONGEST_PAUSE_S = 60.0
_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}

Record = tuple[int, float, Mapping[str, float]]
"""A line of metrics.jsonl: step, seconds since 1970, values."""


def forget_runs_of(original: Path, copy: Path) -> None:
    """Give the copy of a run folder MLflow runs of its own, as long as the original is still there to log to them.

    A folder that was moved has no original left, and goes on in its runs.
    """
    path, others = copy / RUNS_FILE, original / RUNS_FILE
    if path.exists() and others.exists() and not path.samefile(others):
        theirs = read_json_object(others, "MLflow run ids")
        known = read_json_object(path, "MLflow run ids")
        write_json_atomically(path, {uri: run_id for uri, run_id in known.items() if theirs.get(uri) != run_id})


class MlflowRun:
    """One MLflow run, made or found again by the id that the run folder keeps for each tracking URI.

    Every method talks to the server and raises what its client raises.
    """

    def __init__(self, folder: Path, uri: str, *, experiment: str, name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        path = folder / RUNS_FILE
        known = read_json_object(path, "MLflow run ids") if path.exists() else {}
        if uri not in known:
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = (
                found.experiment_id
                if found
                else self._client.create_experiment(experiment, artifact_location=_artifact_location(uri))
            )
            known[uri] = self._client.create_run(experiment_id, run_name=name).info.run_id
            write_json_atomically(path, known)
        self.run_id: str = known[uri]
        have = self._client.get_run(self.run_id).data.params
        missing = [Param(key, str(value)[:5000]) for key, value in parameters.items() if key not in have]
        for first in range(0, len(missing), 100):  # as many as a server takes a request
            self._client.log_batch(self.run_id, params=missing[first : first + 100])

    def log(self, records: Iterable[Record]) -> None:
        """Send all values of the records."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), int(time_s * 1000), step)
            for step, time_s, values in records
            for key, value in values.items()
        ]
        for first in range(0, len(metrics), _BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + _BATCH_METRICS])

    def add(self, path: Path) -> None:
        """Upload a file, or a folder under its name, unless it is there in the same size."""
        present = {
            entry.path: entry.file_size
            for entry in self._client.list_artifacts(self.run_id, path.name if path.is_dir() else None)
        }
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            within = f"{path.name}/{file.relative_to(path)}" if path.is_dir() else path.name
            if file.is_file() and present.get(within) != file.stat().st_size:
                self._client.log_artifact(self.run_id, str(file), path.name if path.is_dir() else None)

    def set_status(self, status: str) -> None:
        """RUNNING, or the end: FINISHED, FAILED or KILLED."""
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status=status)

    def replay(self, records: Iterable[Record]) -> int:
        """Send the values that the server lacks; returns how many. Doing it again sends none."""
        by_key: dict[str, list[Record]] = {}
        for step, time_s, values in records:
            for key, value in values.items():
                by_key.setdefault(key, []).append((step, time_s, {key: value}))
        missing = []
        for key, entries in by_key.items():
            there = {metric.step for metric in self._client.get_metric_history(self.run_id, key)}
            missing += [entry for entry in entries if entry[0] not in there]
        self.log(missing)
        return len(missing)


def _artifact_location(uri: str) -> str | None:
    """Beside a database file; left to itself MLflow would write into the working directory."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


class MlflowMirror:
    """Sends records to an :class:`MlflowRun` from a thread; no method blocks or raises.

    Args:
        open_run: makes the run; called in the thread, again after a failure.
        patience_s: how long :meth:`close` waits for what is queued.
        pause_s: before the first new attempt after a failure; doubles up to a minute.
    """

    def __init__(self, open_run: Callable[[], MlflowRun], *, patience_s: float = 30.0, pause_s: float = 1.0) -> None:
        for name, value in _RETRIES.items():
            os.environ.setdefault(name, value)  # MLflow's own retries would hold the thread for minutes
        self._open_run, self._patience_s, self._pause_s = open_run, patience_s, pause_s
        self._records: deque[Record] = deque(maxlen=_QUEUE_RECORDS)
        self._pending: list[Record] = []  # taken by the thread, not yet sent
        self._actions: deque[Callable[[MlflowRun], None]] = deque()
        self._news, self._closing = threading.Event(), threading.Event()
        self._num_sent = self._num_queued = 0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._do(lambda run: run.set_status("RUNNING"))
        self._thread.start()

    def log(self, record: Record) -> None:
        """Queue a line of metrics."""
        self._num_queued += 1
        self._records.append(record)
        self._news.set()

    def add(self, path: Path) -> None:
        """Queue the upload of a file or folder."""
        self._do(lambda run: run.add(path))

    def close(self, status: str, folder: Path) -> None:
        """Send what is queued and ``status``, as far as that goes within ``patience_s``."""
        self._actions.append(lambda run: run.set_status(status))
        self._closing.set()  # before the news, or the thread might wait for more of it
        self._news.set()
        self._thread.join(self._patience_s)
        if self._thread.is_alive() or self._actions or self._num_sent < self._num_queued:
            log(
                f"tracking: MLflow lacks a part of this run; metrics.jsonl is complete, send the rest with "
                f"bitbert-pretrain sync {folder} --mlflow-uri URI"
            )

    def _do(self, action: Callable[[MlflowRun], None]) -> None:
        self._actions.append(action)
        self._news.set()

    def _work(self) -> None:
        run: MlflowRun | None = None
        pause, failing = self._pause_s, False
        while True:
            closing = self._closing.is_set()
            try:
                run = run or self._open_run()
                self._send(run)
                if failing:
                    log("tracking: MLflow answers again")
                pause, failing = self._pause_s, False
            except Exception as error:  # whatever the client raises, training goes on
                if not failing:
                    log(
                        f"tracking: MLflow failed ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
                        "the run goes on and tries again, metrics.jsonl is complete"
                    )
                failing = True
                if not closing:
                    self._closing.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
            if closing:
                return
            if not failing:
                self._news.wait()
                self._news.clear()

    def _send(self, run: MlflowRun) -> None:
        while self._records or self._pending:
            while self._records:
                self._pending.append(self._records.popleft())
            run.log(self._pending)
            self._num_sent += len(self._pending)
            self._pending.clear()
        while self._actions:
            self._actions[0](run)
            self._actions.popleft()
