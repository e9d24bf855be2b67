"""The page of `lorkd drift --html`: each measure's spread now beside the held-out images'."""

from __future__ import annotations

from html import escape
from pathlib import Path

from lorkd_deploy.clinic.drift import Drift, Drifted
from lorkd_deploy.storage import write_atomic

_WIDTH = 360  # px
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .3em .8em; text-align: left }
tr + tr { border-top: 1px solid #ccc } .over { font-weight: bold }
"""


def write_page(found: Drift, path: Path) -> None:
    """Write the page, which needs no network, to `path`."""
    rows = "\n".join(map(_row, found.measures))
    outside = "".join(
        f"<p>{escape(task)}: {share:.1%} of the pictures were answered outside.</p>"
        for task, share in found.outside.items()
    )
    few = "".join(
        f"<p>{escape(task)} has {count} answers: too few to compare.</p>"
        for task, count in found.too_few.items()
    )
    verdict = "Over the limit" if found.over else "Within the limit"
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Drift: {verdict.lower()}</title>
<style>{_STYLE}</style>
<h1>{verdict}</h1>
<p>Answers beside the validation images that were held out. Over is what has a population stability
index above {found.limit:g} and a Kolmogorov-Smirnov p value below 0.01. A bar goes from the 5th to
the 95th percentile, its thick part from the 25th to the 75th, the mark is the median; above the
held-out images, below the answers.</p>
<table><tr><th>task</th><th>what</th><th>spread</th><th>answers</th><th>held out</th><th>PSI</th>
<th>KS</th><th>p</th></tr>
{rows}
</table>
{outside}{few}
</html>
"""
    write_atomic(path, page.encode())


def _row(measure: Drifted) -> str:
    style = ' class="over"' if measure.over else ""
    return (
        f"<tr{style}><td>{escape(measure.task)}</td><td>{escape(measure.what)}</td>"
        f"<td>{_spread(measure)}</td><td>{measure.answers}</td><td>{measure.held_out}</td>"
        f"<td>{measure.psi:.3f}</td><td>{measure.ks:.3f}</td><td>{measure.p:.3g}</td></tr>"
    )


def _spread(measure: Drifted) -> str:
    """Both distributions on one axis, from 0 to the largest percentile."""
    largest = max(max(side) for side in measure.quantiles) or 1.0
    parts = []
    for place, (side, colour) in enumerate(zip(measure.quantiles, ("#888", "#06c"), strict=True)):
        low, first, median, third, high = (value / largest * _WIDTH for value in side)
        y = 10 + 20 * place
        parts += [
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}"/>',
            f'<line x1="{first:.1f}" x2="{third:.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="8"/>',
            f'<circle cx="{median:.1f}" cy="{y}" r="3" fill="white" stroke="{colour}"/>',
        ]
    return (
        f'<svg width="{_WIDTH + 10}" height="40" viewBox="-5 0 {_WIDTH + 10} 40" role="img" '
        f'aria-label="percentiles of {escape(measure.what)}">{"".join(parts)}</svg>'
    )
