"""Metrics of a run: ``metrics.jsonl`` always, MLflow on rank 0 when configured; nothing here stops training.

metrics.jsonl is the record and MLflow a mirror of it, fed by a thread (bitbert/mlflow_mirror.py): a dead or slow server
costs no training step, and ``bitbert-pretrain sync`` fills in what it missed.
"""

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import read_json_object, write_json_atomically, write_text_atomically
from bitbert.mlflow_mirror import MlflowMirror, MlflowRun, Record

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
METRICS_FILE, STATUS_FILE = "metrics.jsonl", "status.json"


class Tracker:
    """Append metrics to ``folder/metrics.jsonl`` and mirror them to MLflow; on other ranks than 0, do nothing.

    ``folder/status.json`` says RUNNING until :meth:`close` says how it ended; a run killed at once stays RUNNING.

    Args:
        mlflow_uri: tracking URI (``sqlite:///mlflow.db``, ``https://...``), or None for no MLflow.
        resume_step: drop recorded lines above this step, which a resumed run will write again.

    Raises:
        UserError: ``mlflow_uri`` is a plain folder, which MLflow 3.13 and later refuse.
    """

    def __init__(
        self,
        folder: Path,
        *,
        enabled: bool = True,
        mlflow_uri: str | None = None,
        experiment: str = "bitbert",
        run_name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ) -> None:
        self._folder, self._enabled = folder, enabled
        self._mirror: MlflowMirror | None = None
        self._unwritten: list[str] = []
        if not enabled:
            return
        check_mlflow_uri(mlflow_uri)
        folder.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            self.rewind(resume_step)
        self._write_status("RUNNING")
        if mlflow_uri:
            uri, fixed = mlflow_uri, dict(parameters or {})
            self._mirror = MlflowMirror(
                lambda: MlflowRun(folder, uri, experiment=experiment, name=run_name or folder.name, parameters=fixed)
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` at ``step`` (one optimizer step = one step). NaN and infinity are recorded as null."""
        if not self._enabled:
            return
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        time_s = round(time.time(), 3)
        self._unwritten.append(json.dumps({"step": step, "time_s": time_s, **finite}) + "\n")
        self._write_lines()
        if self._mirror is not None:
            self._mirror.log((step, time_s, dict(values)))

    def rewind(self, step: int) -> None:
        """Forget what was recorded above ``step``: the run goes on from there and will write it again."""
        path = self._folder / METRICS_FILE
        self._unwritten = [line for line in self._unwritten if json.loads(line)["step"] <= step]
        if self._enabled and path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= step]
            write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, *paths: Path) -> None:
        """Mirror files and folders of the run folder as artifacts; those that are not there are left out."""
        for path in paths:
            if self._mirror is not None and path.exists():
                self._mirror.add(path)

    def close(self, status: RunStatus = "FINISHED") -> None:
        """End the run with ``status``."""
        if self._enabled:
            self._write_lines()
            try:
                self._write_status(status)
            except OSError as error:
                log(f"tracking: {STATUS_FILE} could not be written ({error})")
        if self._mirror is not None:
            self._mirror.close(status, self._folder)

    def _write_lines(self) -> None:
        """Append what is not yet on disk. A full disk costs no step: the lines wait in memory for the next call."""
        if not self._unwritten:
            return
        path, data = self._folder / METRICS_FILE, "".join(self._unwritten).encode()
        try:
            with open(path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                except OSError:
                    file.truncate(size)  # no half line, and none twice
                    raise
        except OSError as error:
            if len(self._unwritten) == 1 or len(self._unwritten) % 100 == 0:
                log(f"tracking: {METRICS_FILE} could not be written ({error}); the run goes on and tries again")
            return
        self._unwritten = []

    def _write_status(self, status: RunStatus) -> None:
        write_json_atomically(self._folder / STATUS_FILE, {"status": status, "time_s": round(time.time(), 3)})


def check_mlflow_uri(uri: str | None) -> None:
    """Refuse MLflow URIs that cannot work before a run starts."""
    if uri and "://" not in uri:
        raise UserError(
            f"mlflow_uri {uri!r} is a folder, which MLflow no longer supports; "
            f"use sqlite:///{uri.strip('./') or 'mlflow'}.db or a server's address"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl; what a kill or a lost disk left of others is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"step", "time_s"} <= set(line):
            lines.append(line)
    return lines


def read_status(folder: Path) -> RunStatus:
    """How the run in ``folder`` ended, or RUNNING."""
    return read_json_object(folder / STATUS_FILE, "run status", ("status",))["status"]


def as_record(line: Mapping[str, Any]) -> Record:
    """A line of metrics.jsonl as MLflow takes it; null, which was not finite, becomes NaN."""
    values = {key: math.nan if value is None else value for key, value in line.items() if key not in ("step", "time_s")}
    return int(line["step"]), float(line["time_s"]), values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> one level with dotted keys, as MLflow wants parameters."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
