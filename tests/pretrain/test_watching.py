"""What a run leaves for the person who watches it: metrics, environment, status, MLflow, and the report of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from bitbert.distributed import Topology
from bitbert.errors import UserError
from bitbert.files import read_json
from bitbert.pretrain import __main__ as door
from bitbert.pretrain import loop
from bitbert.pretrain.environment import describe_environment
from bitbert.pretrain.report import write_report
from bitbert.pretrain.sync import sync_run
from bitbert.tracking import read_metrics, read_status
from tests.pretrain.runs import run_here
from tests.pretrain.settings import SMOKE, tiny_overrides

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def overrides(tiny_shards: Path, tiny_teacher: Path) -> list[str]:
    return [
        *tiny_overrides(tiny_shards, tiny_teacher),
        "steps=4",
        "eval_every=2",
        "tracking.peak_tflops=0.001",
        "optimizer.gradient_clipping=1.0",
        "optimizer={name: lamb, schedule: cosine, learning_rate: 0.01, warmup_steps: 1, gradient_clipping: 1.0}",
        "loss={value_relation: 1.0, relation_layers: [0, 1]}",
    ]


@pytest.fixture(scope="module")
def finished(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of LAMB with relation distillation, without MLflow."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    run_here(folder, *overrides)
    return folder


def test_what_is_left_of_a_package_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_removed-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    packages = describe_environment(Topology(0, 1, 0, "127.0.0.1", 0))["packages"]
    assert packages["torch"]
    assert not any(name is None or "half" in name for name in packages)


def test_metrics(finished: Path) -> None:
    lines = read_metrics(finished / "metrics.jsonl")
    evaluations = [line for line in lines if "eval/nsp_accuracy" in line]
    steps = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    expected = {"loss/value_relation", "learning_rate", "tokens_per_s", "mfu", "gradient_norm"}
    for metric in ("flip_ratio", "saturation", "attention_ones"):
        expected |= {metric, f"{metric}/layer_00", f"{metric}/layer_01"}
    expected |= {
        "binarizer_step/layer_01/attention.query",
        "binarizer_step/layer_00/output.input",
        "binarizer_step/pooler/dense.input",
    }
    for line in steps:
        assert expected <= set(line)
        assert line["mfu"] > 0
    terms = [steps[0][f"loss/{name}"] for name in ("mlm", "nsp", "hidden", "nsp_distillation", "value_relation")]
    assert steps[0]["loss/total"] == pytest.approx(sum(terms))


def test_environment_and_status(finished: Path) -> None:
    (start,) = read_json(finished / "environment.json", "environment")
    assert (start["step"], start["world_size"]) == (0, 1)
    assert start["packages"]["torch"]
    assert start["hardware"]["cpus"] >= 1
    assert start["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40,64}", start["git_commit"])
    assert read_status(finished) == "FINISHED"


def test_a_run_that_fails_or_is_interrupted_says_so(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, status in ((RuntimeError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")):

        def raises(*arguments: Any, error: BaseException = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr(loop, "evaluate", raises)
        with pytest.raises(type(error)):
            run_here(tmp_path / status, *overrides)
        assert read_status(tmp_path / status) == status


def test_sync_replays_a_run_and_does_nothing_the_second_time(finished: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    lines = read_metrics(finished / "metrics.jsonl")
    total = sum(len(line) - 2 for line in lines)
    assert f"FINISHED: sent {total} of {total} metric values" in sync_run(finished, uri)
    assert f"FINISHED: sent 0 of {total} metric values" in sync_run(finished, uri)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("bitbert-pretrain").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.name"] == "lamb"
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [metric.value for metric in sorted(history, key=lambda metric: metric.step)] == [
        line["loss/total"] for line in lines if "loss/total" in line
    ]
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "environment.json", "final"}
    assert "final/model.safetensors" in {entry.path for entry in client.list_artifacts(run.info.run_id, "final")}
    (finished / "mlflow.json").unlink()


@pytest.mark.parametrize(
    ("uri", "message"),
    [(None, "give --mlflow-uri"), ("./runs", "use sqlite:///"), ("http://127.0.0.1:9", "try again later")],
)
def test_sync_names_what_is_wrong(
    finished: Path, uri: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=message):
        sync_run(finished, uri)
    with pytest.raises(UserError, match="is no run folder"):
        sync_run(finished / "final", uri)


def test_report(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    names = {"loss", "evaluation", "optimization", "speed", "binary", "step_sizes"}
    assert {path.name for path in page.parent.iterdir()} == {"index.html", *(f"{name}.png" for name in names)}
    assert all((page.parent / f"{name}.png").read_bytes().startswith(PNG) for name in names)
    assert text.count("data:image/png;base64,") == len(names)
    assert not re.search(r"(src|href)='(?!data:)", text), "the page needs nothing beside it"
    assert "FINISHED at step 4" in text
    assert "name: lamb" in text


def test_report_of_a_run_that_goes_on_and_of_values_that_are_none(tmp_path: Path) -> None:
    lines = [{"step": 1, "time_s": 0.0, "loss/total": None, "loss/<mlm>": 1.0}, {"step": 2, "time_s": 3600.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    page = write_report(tmp_path, tmp_path / "report").read_text(encoding="utf-8")
    assert "1.00 hours" in page
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"index.html", "loss.png"}


@pytest.mark.parametrize(("content", "message"), [(None, "holds no metrics"), ("", "has logged nothing yet")])
def test_report_without_metrics(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path, tmp_path / "report")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["bitbert-pretrain", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        door.main()
    return caught.value.code


def test_door(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Commands by name; a first word that is none of them is a config, as before there were commands."""
    assert call(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    for text in ("report", "sync", "CONFIG [KEY=VALUE]", "RUN_DIR", "--dry-run"):
        assert text in said
    assert call(monkeypatch, "report", finished, "--output", tmp_path / "r") == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/r/index.html\n"
    assert call(monkeypatch, "sync", finished) == 2
    assert "give --mlflow-uri" in capsys.readouterr().err
    for arguments in ([SMOKE, "stesp=1"], ["run", SMOKE, "stesp=1"], ["--dry-run", SMOKE, "stesp=1"]):
        assert call(monkeypatch, *arguments) == 2
        assert "stesp: unknown key; did you mean 'steps'?" in capsys.readouterr().err
