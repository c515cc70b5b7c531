"""Charts: series of numbers as lines in panels.

They are drawn at twice their size and shrunk with Lanczos' filter, for smooth lines and letters.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from minisagan.look.pictures import SERIES, draw_text, length, strip, write_png

AXIS, RULE = "#999999", "#E8E8E8"
DENSE = 200  # points: a series of as many is drawn pale, with its running mean over it


@dataclass
class Panel:
    """A pair of axes. A series is (label, xs, ys) or, with an error band, (label, xs, ys, low, high)."""

    title: str
    xlabel: str
    ylabel: str
    series: list


def curves(path, records):
    """Draws a run's log, a list of dicts, as a picture (H, W, 3); writes it to `path` unless that is None.

    Keys: step, loss_d, loss_g, d_real, d_fake, gamma_d, gamma_g, frechet. What a record lacks, or has as None, is
    left out; a NaN leaves a gap. A run that logs no gamma, or no Frechet distance, has no panel for it.
    """
    def series(label, key):
        points = [(r["step"], r[key]) for r in records if None not in (r.get("step"), r.get(key))]
        return label, *np.array(points, float).reshape(-1, 2).T

    losses = [series("discriminator", "loss_d"), series("generator", "loss_g")]
    outputs = [series("D(real)", "d_real"), series("D(fake)", "d_fake")]
    gammas = [series("discriminator", "gamma_d"), series("generator", "gamma_g")]
    panels = [Panel("Losses", "step", "loss", losses), Panel("Discriminator", "step", "mean output", outputs)]
    if any(len(xs) for _, xs, _ in gammas):
        panels.append(Panel("Attention", "step", "gamma", gammas))
    if len((distance := series("samples v. test images", "frechet"))[1]):
        panels.append(Panel("Frechet distance", "step", "distance", [distance]))
    image = plot(panels)
    if path is not None:
        write_png(path, image)
    return image


def plot(panels, columns=1, width=900, height=250):
    """Draws panels, each `width` / `columns` by `height` pixels, row by row; uint8 (H, width, 3).

    Panels with one xlabel share its range. What is not finite leaves a gap. A series of 200 points or more,
    and without a band, is drawn pale under its running mean.
    """
    rows, wide, high = -(-len(panels) // columns), 2 * width // columns, 2 * height
    drawn = [[_series(*s) for s in panel.series] for panel in panels]
    values = lambda name: [x for p, s in zip(panels, drawn, strict=True) if p.xlabel == name for x, _ in s]
    x_axes = [Axis(values(panel.xlabel), wide // 220, 0) for panel in panels]
    y_axes = [Axis([y.ravel() for _, y in series], 6, 0.05) for series in drawn]
    left = 76 + max(length(label, 24) for axis in y_axes for label in axis.labels)  # the same for all
    image = Image.new("RGB", (2 * width, rows * high), "white")
    for k, args in enumerate(zip(panels, drawn, x_axes, y_axes, strict=True)):
        image.paste(_draw_panel(*args, left, wide, high), (k % columns * wide, k // columns * high))
    return np.asarray(image.resize((width, rows * height), Image.LANCZOS))


def _series(label, xs, ys, *band):
    """x (n,) and y (1 or 3, n) in float64; what cannot be drawn is NaN."""
    table = np.array([xs, ys, *band], float)
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


def _draw_panel(panel, series, x_axis, y_axis, left, width, height):
    """The panel as an image of double size; the axes begin at x = `left`."""
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image, "RGBA")  # with this mode it blends
    right, bottom, y = width - 64, height - 80, 40
    draw_text(pen, left, y, panel.title, 28, "lm")
    x = left + length(panel.title, 28) + 56
    colours = [SERIES[k % len(SERIES)] for k in range(len(series))]
    for (label, *_), colour in zip(panel.series, colours, strict=True):  # the legend wraps
        if x + 52 + length(label, 24) > right:
            x, y = left, y + 36
        pen.line((x, y, x + 40, y), colour, 8)
        draw_text(pen, x + 52, y, label, 24, "lm")
        x += 92 + length(label, 24)
    top = y + 36
    for y, label in zip(y_axis.place(y_axis.ticks, bottom, top), y_axis.labels, strict=True):
        pen.line((left, y, right, y), RULE, 2)
        draw_text(pen, left - 12, y, label, 24, "rm")
    for x, label in zip(x_axis.place(x_axis.ticks, left, right), x_axis.labels, strict=True):
        pen.line((x, bottom, x, bottom + 8), AXIS, 2)
        draw_text(pen, x, bottom + 26, label, 24, "mm")
    draw_text(pen, (left + right) / 2, bottom + 56, panel.xlabel, 24, "mm")
    side = Image.fromarray(strip(32, 1 + length(panel.ylabel, 24), 3, 24, "lm", [(0, 16, panel.ylabel)]))
    image.paste(side.rotate(90, expand=True), (16, (top + bottom - side.width) // 2))

    placed = [(x_axis.place(x, left, right), y_axis.place(y, bottom, top)) for x, y in series]
    for draw in (_draw_below, _draw_line):
        for (x, y), colour in zip(placed, colours, strict=True):
            draw(pen, x, y, colour)
    if all(np.isnan(y).all() for _, y in placed):
        draw_text(pen, (left + right) / 2, (top + bottom) / 2, "no values yet", 24, "mb")
    pen.line((left, top, left, bottom, right, bottom), AXIS, 2)
    return image


def _draw_below(pen, x, y, colour):
    """What lies below the lines: the error band, or the values of a dense series."""
    pale = tuple(255 - (255 - value) // 3 for value in ImageColor.getrgb(colour))
    for run in _runs(y):
        middle, *band = [list(zip(x[run], row[run], strict=True)) for row in y]
        if band:
            pen.polygon(band[0] + band[1][::-1], colour + "40")
        elif len(x) >= DENSE:
            pen.line(middle, pale, 2)


def _draw_line(pen, x, y, colour):
    dense = len(y) == 1 and len(x) >= DENSE
    for run in _runs(y[:1]):
        row = running_mean(y[0, run], len(x) // 40) if dense else y[0, run]
        points = list(zip(x[run], row, strict=True))
        pen.line(points, colour, 4, joint=None if dense else "curve")
        for a, b in points if len(run) == 1 or len(x) <= 30 else ():
            pen.ellipse((a - 6, b - 6, a + 6, b + 6), colour)


def _runs(ys):
    """The stretches of indices on which no row of ys (k, n) has a NaN."""
    where = np.flatnonzero(np.isfinite(ys).all(0))
    return np.split(where, np.flatnonzero(np.diff(where) > 1) + 1) if len(where) else []


def running_mean(ys, width):
    """Each value averaged with `width` // 2 on either side, or as many as there are."""
    total, at = np.append(0, np.cumsum(ys)), np.arange(len(ys))
    begin, end = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(ys))
    return (total[end] - total[begin]) / (end - begin)
