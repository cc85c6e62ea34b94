"""bitbert-pretrain report: a run's curves as PNG files and one HTML page that needs nothing beside it."""

import base64
import html
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bitbert.errors import UserError
from bitbert.files import read_json, write_atomically, write_text_atomically
from bitbert.tracking import METRICS_FILE, STATUS_FILE, read_metrics, read_status

from .curves import Curve, Series, draw_curves, read_series

PAGE = "index.html"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } figure { margin: 0; } figcaption { color: #555; }
pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; font-size: 12px; }
"""
_SUMMARY = (
    "loss/total",
    "loss/mlm",
    "eval/mlm_loss",
    "eval/mlm_accuracy",
    "eval/nsp_accuracy",
    "eval/hidden_error",
    "tokens_per_s",
    "mfu",
    "flip_ratio",
    "saturation",
    "attention_ones",
    "gradient_norm",
)


def write_report(folder: Path, output: Path) -> Path:
    """Write ``output/*.png`` and ``output/index.html`` for the run in ``folder``; returns the page's path.

    Raises:
        UserError: ``folder`` holds no metrics.
    """
    metrics = folder / METRICS_FILE
    if not metrics.is_file():
        raise UserError(f"{str(folder)!r} holds no {METRICS_FILE}; give the folder of a run's output")
    lines = read_metrics(metrics)
    if not lines:
        raise UserError(f"{str(metrics)!r} is empty: the run has logged nothing yet; wait for its first steps")
    series = read_series(lines)
    curves = draw_curves(series)
    output.mkdir(parents=True, exist_ok=True)
    for curve in curves:
        write_atomically(output / f"{curve.name}.png", partial(Path.write_bytes, data=curve.png))
    write_text_atomically(output / PAGE, _page(folder, lines, series, curves))
    return output / PAGE


def _page(folder: Path, lines: Sequence[Mapping[str, Any]], series: Series, curves: Sequence[Curve]) -> str:
    status = read_status(folder) if (folder / STATUS_FILE).exists() else "unknown"
    last = max(line["step"] for line in lines)
    hours = (lines[-1]["time_s"] - lines[0]["time_s"]) / 3600
    title = f"Run {folder.resolve().name}"
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(status)} at step {last:,}; {hours:.2f} hours from the first record to the last. "
        f"Drawn {time.strftime('%Y-%m-%d %H:%M')}.</p>",
        _summary(series),
    ]
    for curve in curves:
        image = base64.b64encode(curve.png).decode("ascii")
        parts.append(
            f"<h2>{html.escape(curve.title)}</h2><figure><img alt='{html.escape(curve.title)} over steps' "
            f"src='data:image/png;base64,{image}'><figcaption>{html.escape(curve.caption)}</figcaption></figure>"
        )
    parts += [_details("Config", folder / "config.yaml"), _environment(folder / "environment.json")]
    return "\n".join(part for part in parts if part) + "\n"


def _summary(series: Series) -> str:
    """First, best and last value of the figures that matter most."""
    rows = []
    for name in _SUMMARY:
        values = [value for value in series[name][1] if value == value] if name in series else []
        if values:
            best = "-"
            if name.startswith(("loss/", "eval/")):
                best = f"{(max if name.endswith('accuracy') else min)(values):.6g}"
            cells = "".join(f"<td class='number'>{cell}" for cell in (f"{values[0]:.6g}", best, f"{values[-1]:.6g}"))
            rows.append(f"<tr><td>{html.escape(name)}{cells}")
    return f"<table><tr><th>metric<th>first<th>best<th>last{''.join(rows)}</table>"


def _environment(path: Path) -> str:
    """The last start's machine, and how often the run was started."""
    if not path.exists():
        return ""
    starts = read_json(path, "environment record")
    packages = starts[-1].pop("packages")
    shown = json.dumps({"starts": len(starts), **starts[-1], "packages": len(packages)}, indent=2)
    return f"<details><summary>Environment of the last start</summary><pre>{html.escape(shown)}</pre></details>"


def _details(title: str, path: Path) -> str:
    if not path.exists():
        return ""
    text = html.escape(path.read_text(encoding="utf-8"))
    return f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>"
