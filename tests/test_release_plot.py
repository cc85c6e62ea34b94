"""The README's picture shows the figures of the committed records."""

from pathlib import Path

import pytest

from benchmarks.release_plot import measures, plot
from bitbert.files import read_json
from bitbert.released import FOLDER
from tests.conftest import REPOSITORY

RECORDS = [
    REPOSITORY / "benchmarks/results" / f"release-{name}.json"
    for name in ("runtime", "sentences", "glue", "references")
]


def test_panels_are_the_records_figures_and_are_drawn(tmp_path: Path) -> None:
    panels = measures(*RECORDS)
    assert [title for title, *_ in panels] == [
        "file, MiB",
        "an answer of 128 tokens, ms",
        "SST-2 dev, %",
        "STS-B dev, Spearman x 100",
    ]
    bits = [found for _, found, *_ in panels]
    assert bits[0] == pytest.approx(
        (FOLDER / "bitbert-l6-h384" / "model.safetensors").stat().st_size / 2**20, rel=0.001
    )
    assert bits[2] == 100 * read_json(RECORDS[2], "results")["tasks"]["sst2"]["mean"]["dev"]["accuracy"]
    assert all(full > found for _, found, full, _ in panels)
    plot(panels, tmp_path / "release.png")
    assert (tmp_path / "release.png").read_bytes().startswith(b"\x89PNG")
