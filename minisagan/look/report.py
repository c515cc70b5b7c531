"""A run as one page of HTML: pictures, curves, attention, metrics, configuration.

The page needs nothing else: pictures are data URIs, curves inline SVG, style a few lines of CSS; there is no script.
Its colours follow the reader's light or dark setting, its columns the width of the window.
"""

import html
import json
from functools import cached_property
from pathlib import Path

import numpy as np

from minisagan import variety
from minisagan.errors import DataError, UsageError
from minisagan.judge import evaluation
from minisagan.look import attention_maps, pictures, plot
from minisagan.look.words import duration
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.sampling import in_turn, latents

SHOWN, MEASURED = 6, 64  # images in the picture of attention; that its numbers are means over

ALLOWED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # to the browser: no script, nothing fetched
STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


class Report:
    """The run in `folder`, whose files are read when a section asks for them. UsageError if it holds no run."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file() or not (self.folder / "log.jsonl").is_file():
            raise UsageError(f"{folder}: a report is about a run's folder, with its config.json and log.jsonl")

    @cached_property
    def loaded(self):
        """The newest checkpoint's generator, its Config, what it says of the data, and its file."""
        return runs.load_generator(self.folder)

    @cached_property
    def metadata(self):
        return checkpoint.read_metadata(self.loaded[3])

    @property
    def title(self):
        config, step = self.loaded[1], int(self.metadata["step"])
        return f"{self.folder.resolve().name}: {Path(config.dataset).name}, step {step:,} of {config.steps:,}"

    def section(self, name):
        """One of SECTIONS as HTML, "" if the run has nothing for it. DataError if its files are damaged."""
        return SECTIONS[name](self)


def page(folder):
    """The report of the run in `folder`, as the text of an HTML page.

    UsageError if the folder holds no run; DataError if what it holds is damaged.
    """
    report = Report(folder)
    parts = [report.section(name) for name in SECTIONS]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{ALLOWED}">\n'
        f"<title>{html.escape(report.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def files_of(name, folder):
    """The files of the run in `folder` that a section shows: it changes when they do."""
    match name:
        case "samples":
            return [*(path for _, path in runs.sampled(folder)[-1:]), folder / "progress.gif"]
        case "curves":
            return [folder / "log.jsonl"]
        case "metrics":
            return [folder / "evaluation.json"]
    return [runs.find(folder)]


def trouble(name, error):
    """In place of a section what stands in its way."""
    return _section(name, html.escape(str(error)))


def _title(report):
    spent = duration(float(report.metadata["seconds"]))
    return (
        f"<h1>{html.escape(report.title)}</h1>\n"
        f'<p class="soft">minisagan, after {spent} of training</p>'
    )


def _section(name, text, *cards):
    """A part of the page: its cards stand side by side where there is room."""
    return (
        f'<section id="{name}">\n<h2>{name.capitalize()}</h2>\n<p class="soft">{text}</p>\n'
        f'<div class="grid">\n{"".join(cards)}</div>\n</section>'
    )


def _card(title, inside, wide=False):
    return f'<div class="card{" wide" if wide else ""}">\n<h3>{title}</h3>\n{inside}\n</div>\n'


def _image(data, kind, alt):
    return f'<img src="{pictures.uri(data, kind)}" alt="{html.escape(alt)}">'


def _pictures(report):
    folder = report.folder
    frames, cards = runs.sampled(folder), []
    if frames:
        step, last = frames[-1][0], frames[-1][1].read_bytes()
        cards.append(_card(f"Step {step:,}", _image(last, "png", f"a grid of samples at step {step}")))
    film = folder / "progress.gif"
    if film.is_file():
        inside = _image(film.read_bytes(), "gif", "the samples during training, as a film")
        if frames:  # for those who want nothing to move
            still = f'<source media="(prefers-reduced-motion: reduce)" srcset="{pictures.uri(last, "png")}">'
            inside = f"<picture>{still}{inside}</picture>"
        cards.append(_card("The way there", inside))
    rows = ", a row for each class" if cards and report.loaded[1].architecture.classes else ""
    text = f"The same latents each time{rows}: drawn, not chosen." if cards else "None yet."
    return _section("samples", text, *cards)


def _charts(report):
    text = (
        "Pale: every one of many logged values; full: their running mean. Behind a name: its last value. Spectral "
        "norm: the median of the layers, from the least to the greatest, before the weights are divided by it."
    )
    log = runs.read_log(report.folder)
    if found := variety.collapse(log):
        text = f"<strong>The generator has collapsed: {found}. Try {variety.advice(report.loaded[1])}.</strong> {text}"
    return _section("curves", text, *(_chart(plot.of_log(log, *chart)) for chart in plot.CHARTS))


def _chart(panel):
    """A card with the chart of this panel; "" if it has no values."""
    legend = [
        f'<span><i class="i{k}"></i>{html.escape(label)} {values[np.isfinite(values)][-1]:.4g}</span>'
        for k, (label, _, values, *_) in enumerate(panel.series) if np.isfinite(values).any()
    ]  # fmt: skip
    if not legend:
        return ""
    name = f'{html.escape(panel.title)} <span class="soft">({html.escape(panel.ylabel)})</span>'
    return _card(name, f'<div class="legend">{"".join(legend)}</div>\n{plot.svg(panel)}')


def _attention(report):
    generator, config, about, _ = report.loaded
    if not config.architecture.attention:
        return ""
    classes = generator.arch.classes
    z = latents(generator, MEASURED, 0)
    labels = in_turn(range(classes) or None, MEASURED)
    shown = z[:SHOWN], None if labels is None else labels[:SHOWN]
    legible = pictures.legible(dict(enumerate(about["classes"])) if classes else {})
    names = None if labels is None else [legible[k] for k in shown[1]]
    size = about["image_size"]
    picture, _ = attention_maps.figure(generator, shown, None, size, names)
    image = _image(pictures.png(picture), "png", "images with marked points, and a map for each point")
    facts = attention_maps.measure(generator, z, labels)
    without = attention_maps.causal_test(generator, size, z, labels)
    rows = attention_maps.in_words(facts, without, generator.arch)
    text = "Where the generator looks from the marked points, and the means over "
    return _section(
        "attention", f"{text}{MEASURED} images.",
        _card("Maps", f'<div class="scroll">{image}</div>', wide=True),
        _card("Measures", _table(rows.items()), wide=True),
    )  # fmt: skip


def _evaluation(report):
    path = report.folder / "evaluation.json"
    if not path.is_file():
        return ""
    try:
        facts = json.loads(path.read_text())
        found, floor, net = facts["metrics"], facts["floor"], facts["classifier"]
        rows = [
            (name, *(form.format(part[key]) if key in part else "" for part in (found, floor)))
            for key, (name, form) in evaluation.ROWS.items()
            if key in found
        ]
        text = (
            f"{int(facts['count']):,} images at step {int(facts['step']):,}, beside {int(facts['train_count']):,} real "
            f"ones; by the {int(net['features'])} features of classifier {html.escape(str(net['hash'])[:16])}, "
            f"accuracy {net['accuracy']:.2%}."
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: not written by minisagan evaluate ({error!r}); measure again, or delete it") from None
    head = "<tr><th></th><th>generated</th><th>real</th></tr>\n"
    return _section("metrics", text, _card("Generated beside real", _table(rows, head)))


def _facts(report):
    _, config, about, file = report.loaded
    values, versions = config.to_dict(), json.loads(report.metadata["versions"])
    arch = values.pop("architecture")
    dataset = {
        "data set": config.dataset,
        "images": f"{about['image_size']}x{about['image_size']} pixels",
        "classes": ", ".join(map(str, about["classes"])),
        **{f"sha256 of {name}": value for name, value in about["hashes"].items()},
    }
    more = runs.recorded(report.folder).keys() & runs.BESIDE_CONFIG
    replay = "replays the run"
    if more:
        replay = f"does not replay the run by itself: {' and '.join(sorted(more))} in it say why"
    return _section(
        "configuration", f"Of {html.escape(str(file))}. config.json beside the log {replay}.",
        _card("Training", _table(values.items())), _card("Networks", _table(arch.items())),
        _card("Data", _table(dataset.items())), _card("Versions", _table(versions.items())),
    )  # fmt: skip


def _table(rows, head=""):
    """Rows (name, value, ...) as they are to be read: nothing in them is taken for HTML."""
    rows = [[html.escape(str(cell)) for cell in row] for row in rows]
    body = "".join(f"<tr><th>{name}</th><td>{'</td><td>'.join(values)}</td></tr>\n" for name, *values in rows)
    return f'<div class="scroll"><table>\n{head}{body}</table></div>'


SECTIONS = {
    "title": _title, "samples": _pictures, "curves": _charts, "attention": _attention, "metrics": _evaluation,
    "configuration": _facts,
}  # fmt: skip
