"""The README's picture: what a released model keeps of its teacher.

    python benchmarks/release_plot.py docs/images/release.png RUNTIME SENTENCES OURS REFERENCES

Files of JSON: RUNTIME of bench_runtime.py, SENTENCES of sentence_encoder.py, OURS results.json of bitbert-finetune for
some tasks, SST-2 among them, and REFERENCES that of bitbert-method with a stage full-precision. Those of the release
are benchmarks/results/release-{runtime,sentences,glue,references}.json.
"""

import sys
from pathlib import Path

from bitbert.errors import UserError
from bitbert.files import read_json, write_atomically

WIDTH, HEIGHT = 8.0, 2.6


def measures(runtime: Path, sentences: Path, ours: Path, references: Path) -> list[tuple[str, float, float, str]]:
    """(title, 1 bit, full precision, format of the figures) of each panel."""
    speed, encoder = read_json(runtime, "runtime's measurements"), read_json(sentences, "sentence encoder's results")
    results, stages = read_json(ours, "results"), read_json(references, "results of stages")["stages"]
    found, full = (tasks["sst2"] for tasks in (results["tasks"], stages["full-precision"]["tasks"]))
    bits, floats = encoder["rows"]
    return [
        ("file, MiB", speed["file_mib"], speed["ort_fp32_file_mib"], "{:.1f}"),
        (f"an answer of {speed['tokens']} tokens, ms", speed["total_ms"], speed["ort_fp32_ms"], "{:.1f}"),
        ("SST-2 dev, %", *(100 * scores["mean"]["dev"]["accuracy"] for scores in (found, full)), "{:.1f}"),
        (f"{encoder['set']}, Spearman x 100", 100 * bits["spearman"], 100 * floats["spearman"], "{:.1f}"),
    ]


def plot(panels: list[tuple[str, float, float, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(WIDTH, HEIGHT), layout="constrained")
    for axis, (title, bits, floats, shape) in zip(axes, panels, strict=True):
        bars = axis.bar(["1 bit", "float32"], [bits, floats], color=["tab:orange", "tab:gray"])
        axis.bar_label(bars, labels=[shape.format(bits), shape.format(floats)], fontsize=8)
        axis.set_title(title, fontsize=8)
        axis.set_ylim(0, 1.15 * max(bits, floats))
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
    pyplot.close(figure)


def main() -> None:
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    out, *files = map(Path, sys.argv[1:])
    try:
        plot(measures(*files), out)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(out)


if __name__ == "__main__":
    main()
