"""report.html: the report as one page without scripts, fonts or pictures from elsewhere."""

from html import escape
from typing import Any

from .splits import SPLITS

_STYLE = """<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2530; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid #dde3ea; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; }
rect { fill: #2f6fb0; }
text { font-size: 11px; fill: #51606f; }
</style>"""
_WIDTH, _HEIGHT, _MARGIN = 720, 200, 24


def render_page(report: dict[str, Any]) -> str:
    """The page as HTML text; its numbers are those of ``report`` and its charts are inline SVG."""
    parts = [_summary(report), _sources(report)]
    parts += [f"<h2>Row lengths: {split}</h2>{_histogram(report[split])}" for split in SPLITS]
    parts.append(_drops(report))
    if report["notes"]:
        parts.append("<h2>Damaged files</h2>" + "".join(f"<p>{escape(note)}</p>" for note in report["notes"]))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Shards</title>{_STYLE}'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body><h1>Token shards</h1>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _summary(report: dict[str, Any]) -> str:
    rows = []
    for split in SPLITS:
        numbers = report[split]
        balance = numbers.get("random_next_share")
        cells = [
            numbers["documents"],
            numbers["shards"],
            numbers["rows"],
            numbers["tokens"],
            _percent(numbers["padding_share"]),
        ]
        rows.append([split, *cells, "no pairs" if balance is None else _percent(balance)])
    return _table(["", "documents", "shards", "rows", "tokens", "padding", "random next"], rows)


def _sources(report: dict[str, Any]) -> str:
    rows = [
        [
            entry["source"],
            entry["license"],
            entry["weight"],
            entry["documents_after_cleaning"],
            entry["text_tokens"],
            _percent(entry["share_of_tokens"]),
        ]
        for entry in report["sources"]
    ]
    return "<h2>Sources</h2>" + _table(["source", "licence", "weight", "documents", "tokens", "share"], rows)


def _drops(report: dict[str, Any]) -> str:
    rows = [[reason.replace("_", " "), count] for reason, count in report["dropped"].items()]
    return "<h2>Documents left out</h2>" + (_table(["reason", "documents"], rows) if rows else "<p>None.</p>")


def _histogram(numbers: dict[str, Any]) -> str:
    counts, longest = numbers["length_histogram"], numbers["max_length"]
    top = max(counts) or 1
    step = (_WIDTH - 2 * _MARGIN) / len(counts)
    bars = []
    for position, count in enumerate(counts):
        height = (_HEIGHT - 2 * _MARGIN) * count / top
        low, high = (round(edge * longest / len(counts), 1) for edge in (position, position + 1))
        bars.append(
            f'<rect x="{_MARGIN + position * step:.1f}" y="{_HEIGHT - _MARGIN - height:.1f}" '
            f'width="{step * 0.9:.1f}" height="{height:.1f}">'
            f"<title>{low:g} to {high:g} tokens: {count:,} rows</title></rect>"
        )
    labels = "".join(
        f'<text x="{_MARGIN + share * (_WIDTH - 2 * _MARGIN):.0f}" y="{_HEIGHT - 6}" '
        f'text-anchor="middle">{longest * share:g}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    caption = f'<text x="{_MARGIN}" y="14">rows by tokens a row; the longest bar is {top:,} rows</text>'
    frame = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Histogram of row lengths"'
    return f"<svg {frame}>{caption}{''.join(bars)}{labels}</svg>"


def _table(header: list[str], rows: list[list[Any]]) -> str:
    def cell(tag: str, value: Any, is_number: bool) -> str:
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        return f"<{tag}{' class=number' if is_number else ''}>{escape(shown)}</{tag}>"

    is_number = [not isinstance(value, str) or value.endswith("%") for value in rows[0]]
    lines = [[cell("th", title, is_number[place]) for place, title in enumerate(header)]]
    lines += [[cell("td", value, is_number[place]) for place, value in enumerate(row)] for row in rows]
    return "<table>" + "".join(f"<tr>{''.join(line)}</tr>" for line in lines) + "</table>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
