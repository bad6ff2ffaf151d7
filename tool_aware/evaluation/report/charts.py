"""Charts as SVG text. Colours are CSS classes, so that they follow the page's theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tool_aware.evaluation.report.line_breaks import wrapped
from tool_aware.evaluation.scoring.calibration import Calibration
from tool_aware.evaluation.scoring.intervals import Estimate
from tool_aware.evaluation.scoring.metrics import Metrics

_LINE = 13  # height of a line of a label
_PLOT = (46, 14, 300, 300)  # left, top, width, height of the square charts


def tool_bars(systems: Mapping[str, Metrics]) -> str:
    """Draw the F1 of each tool, one bar per system with its 95 % interval."""
    tools = list(next(iter(systems.values())).per_tool)
    labels = [wrapped(tool, 22) for tool in tools]
    left, width, bar, gap = 184, 420, 16, 14
    block = max(len(systems) * bar, _LINE * max(map(len, labels))) + gap
    height = len(tools) * block + 44
    parts = [_vertical_grid(left, width, height - 36)]
    for index, tool in enumerate(tools):
        top = 8 + index * block + (block - gap - len(systems) * bar) // 2
        parts.append(_lines(left - 10, top + len(systems) * bar / 2 + 4, labels[index], anchor="end"))
        for position, metrics in enumerate(systems.values()):
            figure, y = metrics.per_tool[tool].f1, top + position * bar
            if not isinstance(figure, Estimate):
                parts.append(_text(left + 6, y + 12, "n/a", kind="faint"))
                continue
            middle = y + bar / 2 - 1
            low, length, high = (f"{x * width:.1f}" for x in (figure.low, figure.value, figure.high))
            parts.append(
                f'<rect class="s{position}" x="{left}" y="{y}" width="{length}" height="{bar - 3}"/>'
                f'<path class="whisker" transform="translate({left} {middle})" d="M{low} 0H{high}"/>'
            )
    legend = "".join(
        f'<rect class="s{i}" x="{left + i * 170}" y="{height - 14}" width="11" height="11"/>'
        + _text(left + 17 + i * 170, height - 4, name)
        for i, name in enumerate(systems)
    )
    return _svg(left + width + 20, height + 4, "F1 by tool", "".join(parts) + legend)


def confusion(metrics: Metrics) -> str:
    """Draw a matrix whose cells are shaded by their share of the row."""
    beside, above = ([wrapped(label, width) for label in metrics.labels] for width in (18, 12))
    cell_w, cell_h, left = 84, max(40, _LINE * max(map(len, beside)) + 4), 150
    top = 16 + _LINE * max(map(len, above))
    parts = []
    for row, counts in enumerate(metrics.confusion):
        y, total = top + row * cell_h, sum(counts)
        parts.append(_lines(left - 8, y + cell_h / 2 + 4, beside[row], anchor="end"))
        for column, count in enumerate(counts):
            x, share = left + column * cell_w, count / total if total else 0.0
            kind = "cell-right" if row == column else "cell-wrong"
            parts.append(
                f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{cell_w - 2}" height="{cell_h - 2}" rx="4" '
                f'fill-opacity="{0.06 + 0.8 * share if count else 0.04:.2f}"/>'
            )
            parts.append(_text(x + cell_w / 2, y + cell_h / 2 + 5, str(count), anchor="middle", kind="count"))
    for column, lines in enumerate(above):
        middle, lowest = left + column * cell_w + cell_w / 2, top - 10
        parts.append(_lines(middle, lowest - _LINE * (len(lines) - 1) / 2, lines, anchor="middle", kind="small"))
    height = top + len(metrics.confusion) * cell_h + 6
    return _svg(left + len(above) * cell_w + 6, height, "confusion matrix", "".join(parts))


def reliability(calibration: Calibration) -> str:
    """Draw accuracy against confidence with Wilson intervals; the diagonal is perfect calibration."""
    left, top, width, height = _PLOT
    parts = [
        _axes("confidence", "share right"),
        f'<path class="diagonal" d="M{left} {top + height}L{left + width} {top}"/>',
    ]
    most = max(b.rows for b in calibration.reliability)
    for b in calibration.reliability:
        x, y = left + b.confidence * width, top + (1 - b.accuracy.value) * height
        parts.append(
            f'<path class="whisker" d="M{x:.1f} {top + (1 - b.accuracy.low) * height:.1f}'
            f'V{top + (1 - b.accuracy.high) * height:.1f}"/>'
            f'<circle class="s1" cx="{x:.1f}" cy="{y:.1f}" r="{3 + 7 * (b.rows / most) ** 0.5:.1f}">'
            f"<title>{b.rows} rows: confidence {b.confidence:.2f}, right {b.accuracy.value:.2f}</title></circle>"
        )
    return _svg(left + width + 14, top + height + 44, "reliability diagram", "".join(parts))


def risk_coverage(calibration: Calibration) -> str:
    """Draw the error rate of the rows acted on against their share; the vertical line is the threshold."""
    left, top, width, height = _PLOT
    worst = max(risk for _, risk in calibration.risk_coverage)
    highest = next(top for top in (0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if top >= worst)
    points = " ".join(
        f"{left + coverage * width:.1f},{top + (1 - risk / highest) * height:.1f}"
        for coverage, risk in calibration.risk_coverage
    )
    parts = [_axes("share of rows acted on", "error rate", highest), f'<polyline class="line" points="{points}"/>']
    if calibration.threshold.confidence is not None:
        x = left + calibration.threshold.test_coverage * width
        parts.append(f'<path class="diagonal" d="M{x:.1f} {top}V{top + height}"/>')
        parts.append(_text(x - 5, top + 12, "threshold", anchor="end", kind="small"))
    return _svg(left + width + 14, top + height + 44, "risk against coverage", "".join(parts))


# ---- parts ------------------------------------------------------------------------------------------------


def _svg(width: float, height: float, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _lines(x: float, y: float, lines: Sequence[str], *, anchor: str, kind: str = "label") -> str:
    """Draw lines of text one below the other, their middle at `y`."""
    first = y - _LINE * (len(lines) - 1) / 2
    return "".join(_text(x, first + _LINE * n, line, anchor=anchor, kind=kind) for n, line in enumerate(lines))


def _vertical_grid(left: float, width: float, height: float) -> str:
    lines = (
        f'<path class="grid" d="M{left + width * step / 4:.1f} 4V{height}"/>'
        + _text(left + width * step / 4, height + 14, f"{step / 4:g}", anchor="middle", kind="small")
        for step in range(5)
    )
    return "".join(lines)


def _axes(x_label: str, y_label: str, highest: float = 1.0) -> str:
    left, top, width, height = _PLOT
    parts = [f'<rect class="frame" x="{left}" y="{top}" width="{width}" height="{height}"/>']
    for step in range(5):
        x, y = left + width * step / 4, top + height * (1 - step / 4)
        parts.append(f'<path class="grid" d="M{left} {y}H{left + width}"/>')
        parts.append(_text(x, top + height + 16, f"{step / 4:g}", anchor="middle", kind="small"))
        parts.append(_text(left - 6, y + 4, f"{highest * step / 4:.2g}", anchor="end", kind="small"))
    parts.append(_text(left + width / 2, top + height + 36, x_label, anchor="middle"))
    parts.append(
        f'<text class="label" transform="translate(12 {top + height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)
