"""Metrics of a run: ``metrics.jsonl`` always, MLflow on rank 0 when configured; nothing here stops training.

metrics.jsonl is the record. MLflow is a mirror: an exception of its client is reported once and the mirror is
switched off, because a dead tracking server must not cost a training step.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bitbert.distributed import log
from bitbert.errors import UserError

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Append metrics to ``folder/metrics.jsonl`` and mirror them to MLflow; on other ranks than 0, do nothing.

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
        self._path = folder / "metrics.jsonl" if enabled else None
        self._client: Any = None
        self._run_id = ""
        if not enabled:
            return
        check_mlflow_uri(mlflow_uri)
        folder.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            self._drop_after(resume_step)
        if mlflow_uri:
            self._mirror(lambda: self._start_mlflow(folder, mlflow_uri, experiment, run_name, dict(parameters or {})))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` at ``step`` (one optimizer step = one step)."""
        if self._path is None:
            return
        line = json.dumps({"step": step, "time_s": round(time.time(), 3), **values})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._client is not None:
            self._mirror(lambda: self._log_mlflow(step, values))

    def rewind(self, step: int) -> None:
        """Forget what was recorded above ``step``: the run went back there and will write it again."""
        if self._path is not None:
            self._drop_after(step)

    def close(self, status: RunStatus = "FINISHED") -> None:
        """End the MLflow run with ``status``."""
        if self._client is not None:
            self._mirror(lambda: self._client.set_terminated(self._run_id, status=status))

    def _drop_after(self, step: int) -> None:
        if self._path is None or not self._path.exists():
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def _start_mlflow(
        self, folder: Path, uri: str, experiment: str, run_name: str | None, parameters: dict[str, Any]
    ) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        id_file = folder / "mlflow_run_id"
        if id_file.exists():  # a resumed run goes on in the same MLflow run
            self._run_id = id_file.read_text(encoding="utf-8").strip()
            client.update_run(self._run_id, status="RUNNING")
        else:
            found = client.get_experiment_by_name(experiment)
            experiment_id = found.experiment_id if found else client.create_experiment(experiment)
            self._run_id = client.create_run(experiment_id, run_name=run_name).info.run_id
            client.log_batch(self._run_id, params=[Param(key, str(value)[:5000]) for key, value in parameters.items()])
            id_file.write_text(self._run_id, encoding="utf-8")
        self._client = client

    def _log_mlflow(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id, metrics=[Metric(key, float(value), now_ms, step) for key, value in values.items()]
        )

    def _mirror(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # whatever the client raises, training goes on
            log(
                f"tracking: MLflow failed ({type(error).__name__}: {error}); the run goes on, metrics.jsonl is complete"
            )
            self._client = None


def check_mlflow_uri(uri: str | None) -> None:
    """Refuse MLflow URIs that cannot work before a run starts."""
    if uri and "://" not in uri:
        raise UserError(
            f"mlflow_uri {uri!r} is a folder, which MLflow no longer supports; "
            f"use sqlite:///{uri.strip('./') or 'mlflow'}.db or a server's address"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl; a line cut off by a kill is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


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
