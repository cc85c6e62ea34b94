"""bitbert-pretrain sync: fill in what an MLflow server missed of a run, from its run folder."""

from pathlib import Path

from bitbert.errors import UserError
from bitbert.mlflow_mirror import MlflowRun
from bitbert.tracking import METRICS_FILE, as_record, check_mlflow_uri, flatten, read_metrics, read_status

from .run_folder import CONFIG_FILE, read_recorded_config

ARTIFACTS = (CONFIG_FILE, "environment.json", "final")


def sync_run(folder: Path, mlflow_uri: str | None = None, experiment: str | None = None) -> str:
    """Send parameters, metrics, artifacts and status that the server lacks; returns a line that says what was done.

    Args:
        mlflow_uri, experiment: those of the run's config where they are None.

    Raises:
        UserError: ``folder`` is no run folder, there is no URI, or the server cannot be reached.
    """
    config = read_recorded_config(folder)
    uri = mlflow_uri or config["tracking"]["mlflow_uri"]
    if not uri:
        raise UserError("the run was not tracked by MLflow; give --mlflow-uri, e.g. sqlite:///runs/mlflow.db")
    check_mlflow_uri(uri)
    metrics = folder / METRICS_FILE
    records = [as_record(line) for line in read_metrics(metrics)] if metrics.exists() else []
    status = read_status(folder)
    try:
        name = experiment or config["tracking"]["experiment"]
        run = MlflowRun(folder, uri, experiment=name, name=folder.name, parameters=flatten(config))
        sent = run.replay(records)
        for artifact in ARTIFACTS:
            if (folder / artifact).exists():
                run.add(folder / artifact)
        run.set_status(status)
    except Exception as error:  # the client's own, of which there are dozens
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"MLflow at {uri!r} failed ({type(error).__name__}: {reason}); try again later") from error
    total = sum(len(values) for _, _, values in records)
    return f"run {run.run_id}, {status}: sent {sent} of {total} metric values, the others were there"
