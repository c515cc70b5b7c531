"""Charts: series of numbers as lines between axes, in pixels or as SVG.

A chart is laid out once, as marks in pixels from the upper left corner; each of the two has a way to write a mark.
Pixels are drawn at twice their size and shrunk with Lanczos' filter, for smooth lines and letters. SVG gives marks
classes, for a style sheet: their kind, and for the colour l0, l1, ... of a line and f0, f1, ... of an area.
"""

from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from minisagan.look.pictures import SERIES, draw_text, length, strip

AXIS, RULE = "#999999", "#E8E8E8"
DENSE = 200  # points: a series of as many is drawn pale, with its running mean over it
POINTS = 400  # of a line in SVG: beyond, it is thinned
TEXTS = {"title": ("lm", 28), "start": ("lm", 24), "middle": ("mm", 24), "end": ("rm", 24)}  # anchor, doubled size
WIDTHS = {"rule": 1, "axis": 1, "pale": 1, "line": 2, "key": 4}  # the kinds of lines

# What is drawn of a run's log: title, ylabel, series. A series is a label and a key, or three: a middle, low and high.
CHARTS = (
    ("Losses", "loss", (("discriminator", "loss_d"), ("generator", "loss_g"))),
    ("Scores", "mean D", (("D(real)", "d_real"), ("D(fake)", "d_fake"))),
    ("Attention: the gate", "gamma", (("discriminator", "gamma_d"), ("generator", "gamma_g"))),
    ("Attention: what comes through", "|gamma o| / |x|", (("discriminator", "ratio_d"), ("generator", "ratio_g"))),
    ("Gradients", "norm", (("discriminator", "grad_d"), ("generator", "grad_g"))),
    ("Spectral norm", "sigma", (("discriminator", "sigma_d_median sigma_d_min sigma_d_max"),
                                ("generator", "sigma_g_median sigma_g_min sigma_g_max"))),
    ("Variety", "of the data's", (("a class", "variety"), ("the least varied class", "variety_min"),
                                  ("between classes", "contrast"))),
    ("Frechet distance", "distance", (("few images", "frechet"),)),
    ("Asked-for class", "accuracy", (("few images", "accuracy"),)),
)  # fmt: skip
ALWAYS, WHERE_LOGGED = ("Losses", "Scores"), ("Attention: the gate", "Frechet distance")  # in curves.png


class Panel(NamedTuple):
    """A pair of axes. A series is (label, xs, ys) or, with an error band, (label, xs, ys, low, high)."""

    title: str
    xlabel: str
    ylabel: str
    series: list


class Mark(NamedTuple):
    """A part of a chart: a kind of line or text, or a band or dots; its points (x, y); of which series it is."""

    kind: str
    points: list
    text: str = ""
    series: int | None = None


def of_log(records, title, ylabel, series):
    """The Panel of one of CHARTS, of a log, a list of dicts.

    What a record lacks, or has as None, is left out; a NaN leaves a gap, in a band and its middle together.
    """
    found = []
    for label, keys in series:
        keys = ["step", *keys.split()]
        rows = [[r[key] for key in keys] for r in records if all(r.get(key) is not None for key in keys)]
        table = np.array(rows, float).reshape(-1, len(keys)).T  # (2 or 4, n)
        table[1:, ~np.isfinite(table).all(0)] = np.nan
        found.append((label, *table))
    return Panel(title, "step", ylabel, found)


def curves(records):
    """Draws a run's log, a list of dicts, as a picture, uint8 (H, W, 3).

    A run that logs no gamma, or no Frechet distance, has no panel for it.
    """
    panels = [of_log(records, *chart) for chart in CHARTS]
    logged = lambda panel: any(len(xs) for _, xs, *_ in panel.series)
    return plot([p for p in panels if p.title in ALWAYS or p.title in WHERE_LOGGED and logged(p)])


def plot(panels, columns=1, width=900, height=250):
    """Draws panels, each `width` / `columns` by `height` pixels, row by row; uint8 (H, width, 3).

    Panels with one xlabel share its range. What is not finite leaves a gap. A series of 200 points or more,
    and without a band, is drawn pale under its running mean.
    """
    rows, wide = -(-len(panels) // columns), width // columns
    scales = _scales(panels, wide)
    left = 38 + max(length(label, 24) for _, _, y_axis in scales for label in y_axis.labels) / 2  # the same for all
    image = Image.new("RGB", (2 * width, 2 * rows * height), "white")
    pen = ImageDraw.Draw(image, "RGBA")  # with this mode it blends
    for k, (panel, scale) in enumerate(zip(panels, scales, strict=True)):
        x, y = k % columns * wide, k // columns * height
        header, top = _header(panel, x + left, y + 20, x + wide - 32)
        for mark in [*header, *_layout(panel.xlabel, *scale, x + left, top, x + wide - 32, y + height - 40)]:
            _draw(pen, mark)
        side = Image.fromarray(strip(32, 1 + length(panel.ylabel, 24), 3, 24, "lm", [(0, 16, panel.ylabel)]))
        image.paste(side.rotate(90, expand=True), (2 * x + 16, top + y + height - 40 - side.width // 2))
    return np.asarray(image.resize((width, rows * height), Image.LANCZOS))


def svg(panel, width=440, height=220):
    """The panel as the text of an SVG element, without its title and legend: those are the page's."""
    (scale,) = _scales([panel], width)
    name = escape(f"{panel.title}: {panel.ylabel} by {panel.xlabel}")
    marks = _layout(panel.xlabel, *scale, 58, 10, width - 24, height - 36)
    inside = "".join(map(_element, marks))
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{inside}</svg>'


def _scales(panels, width):
    """(series, x axis, y axis) of each panel of this width."""
    tables = [[_table(s) for s in panel.series] for panel in panels]
    values = lambda name: [x for p, s in zip(panels, tables, strict=True) if p.xlabel == name for x, _ in s]
    return [
        (series, Axis(values(panel.xlabel), width // 110, 0), Axis([y.ravel() for _, y in series], 6, 0.05))
        for panel, series in zip(panels, tables, strict=True)
    ]


def _table(series):
    """x (n,) and y (1 or 3, n) of a series, in float64; what cannot be drawn is NaN."""
    table = np.array(series[1:], float)
    table[~(np.abs(table) < 1e30)] = np.nan
    table[1:, np.isnan(table[0])] = np.nan
    return table[0], table[1:]


class Axis:
    """A range around values, never empty, with about `most` round ticks and a label for each."""

    def __init__(self, arrays, most, margin):
        values = np.concatenate([[], *arrays])
        values = values[np.abs(values) < 1e30]  # what is more, or NaN, is not drawn
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        low = 0.0 if 0 < low < high / 10 else low  # when 0 is near, show it
        size, pad = max(abs(low), abs(high)), margin * (high - low)
        if high - low <= max(1e-9 * size, 1e-30):  # a constant
            pad = size / 10 if size > 1e-30 else 1.0
        self.low, self.high = low - pad, high + pad
        counts = (values == np.round(values)).all()  # no ticks between them
        least = max((self.high - self.low) / most, 1.0 if counts else 0.0)
        steps = 10.0 ** np.floor(np.log10(least)) * np.array([1, 2, 2.5, 5, 10])
        step = next(step for step in steps if step > 0.999 * least and not (counts and step % 1))
        self.ticks = np.arange(np.ceil(self.low / step - 1e-6), self.high / step + 1e-6) * step + 0.0  # no -0
        self.labels = [f"{tick:,.12g}" for tick in self.ticks]

    def place(self, values, begin, end):
        return begin + (values - self.low) / (self.high - self.low) * (end - begin)


def _layout(xlabel, series, x_axis, y_axis, left, top, right, bottom):
    """The marks of a chart between axes at these places, in the order in which they are drawn."""
    for y, label in zip(y_axis.place(y_axis.ticks, bottom, top), y_axis.labels, strict=True):
        yield Mark("rule", [(left, y), (right, y)])
        yield Mark("end", [(left - 6, y)], label)
    for x, label in zip(x_axis.place(x_axis.ticks, left, right), x_axis.labels, strict=True):
        yield Mark("axis", [(x, bottom), (x, bottom + 4)])
        yield Mark("middle", [(x, bottom + 13)], label)
    yield Mark("middle", [((left + right) / 2, bottom + 28)], xlabel)
    placed = [(x_axis.place(x, left, right), y_axis.place(y, bottom, top)) for x, y in series]
    marks = [mark for k, (x, y) in enumerate(placed) for mark in _drawn(k, x, y)]
    yield from sorted(marks, key=lambda mark: mark.kind in ("line", "dots"))  # over what is pale
    if all(np.isnan(y).all() for _, y in placed):
        yield Mark("middle", [((left + right) / 2, (top + bottom) / 2)], "no values yet")
    yield Mark("axis", [(left, top), (left, bottom), (right, bottom)])


def _drawn(k, x, y):
    """The marks of series k: its error band, or if it is dense its values, then its lines."""
    dense = len(y) == 1 and len(x) >= DENSE
    for run in _runs(y) if dense or len(y) > 1 else ():
        middle, *band = [list(zip(x[run], row[run], strict=True)) for row in y]
        yield Mark("band", band[0] + band[1][::-1], series=k) if band else Mark("pale", middle, series=k)
    for run in _runs(y[:1]):
        row = running_mean(y[0, run], len(x) // 40) if dense else y[0, run]
        points = list(zip(x[run], row, strict=True))
        yield Mark("line", points if len(run) > 1 else 2 * points, series=k)
        if len(run) == 1 or len(x) <= 30:
            yield Mark("dots", points, series=k)


def _header(panel, left, y, right):
    """The marks of the title and, behind it, of the legend, which wraps; and where below them the axes begin."""
    x, marks = left + length(panel.title, 28) / 2 + 28, [Mark("title", [(left, y)], panel.title)]
    for k, (label, *_) in enumerate(panel.series):
        wide = length(label, 24) / 2
        if x + 26 + wide > right:
            x, y = left, y + 18
        marks += Mark("key", [(x, y), (x + 20, y)], series=k), Mark("start", [(x + 26, y)], label)
        x += 46 + wide
    return marks, y + 18


def _draw(pen, mark):
    kind, points = mark.kind, [(2 * x, 2 * y) for x, y in mark.points]
    colour = SERIES[mark.series % len(SERIES)] if mark.series is not None else RULE if kind == "rule" else AXIS
    if kind in TEXTS:
        anchor, size = TEXTS[kind]
        draw_text(pen, *points[0], mark.text, size, anchor)
    elif kind == "band":
        pen.polygon(points, colour + "40")
    elif kind == "dots":
        for x, y in points:
            pen.ellipse((x - 6, y - 6, x + 6, y + 6), colour)
    else:
        if kind == "pale":
            colour = tuple(255 - (255 - value) // 3 for value in ImageColor.getrgb(colour))
        smooth = kind == "line" and len(points) < DENSE
        pen.line(points, colour, 2 * WIDTHS[kind], joint="curve" if smooth else None)


def _element(mark):
    """The mark as an element of SVG."""
    kind, k = mark.kind, mark.series
    if kind in TEXTS:
        ((x, y),) = mark.points
        return f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{kind}">{escape(mark.text)}</text>'
    kept = np.linspace(0, len(mark.points) - 1, min(len(mark.points), POINTS)).astype(int)
    points = [f"{x:.1f},{y:.1f}" for x, y in (mark.points[i] for i in kept)]
    way = "M" + ("h0M".join(points) + "h0" if kind == "dots" else "L".join(points) + "Z" * (kind == "band"))
    colour = "" if k is None else f" f{k}" if kind == "band" else f" l{k}"
    return f'<path class="{kind}{colour}" d="{way}"/>'


def _runs(ys):
    """The stretches of indices on which no row of ys (k, n) has a NaN."""
    where = np.flatnonzero(np.isfinite(ys).all(0))
    return np.split(where, np.flatnonzero(np.diff(where) > 1) + 1) if len(where) else []


def running_mean(ys, width):
    """Each value averaged with `width` // 2 on either side, or as many as there are."""
    total, at = np.append(0, np.cumsum(ys)), np.arange(len(ys))
    begin, end = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(ys))
    return (total[end] - total[begin]) / (end - begin)
