"""A run as one page of HTML: pictures, curves, attention, metrics, configuration.

The page needs nothing else: pictures are data URIs, curves inline SVG, style a few lines of CSS; there is no script.
Its colours follow the reader's light or dark setting, its columns the width of the window.
"""

import base64
import html
import json
from pathlib import Path

import numpy as np

from minisagan.errors import DataError, UsageError
from minisagan.judge import evaluation
from minisagan.look import attention_maps, pictures, plot
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.sampling import latents

SHOWN, MEASURED = 6, 64  # images in the picture of attention; that its numbers are means over

STYLE = """
:root { color-scheme: light dark; --page: #fafaf8; --card: #fff; --ink: #222; --soft: #667; --rule: #ddd;
  --s0: #0072b2; --s1: #d55e00; --s2: #00805f; --s3: #a8447f; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --card: #1f2228; --ink: #e6e6e3; --soft: #a3a8b0;
  --rule: #3a3e46; --s0: #56b4e9; --s1: #e69f00; --s2: #2fc79a; --s3: #e191bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1rem clamp(0.75rem, 3vw, 2.5rem) 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 1rem 0 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 0; } p { margin: 0.25rem 0 0.75rem; } .soft, .legend { color: var(--soft); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 0.9rem; min-width: 0; }
.wide { grid-column: 1 / -1; }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 4px; }
.scroll { overflow-x: auto; } .scroll img { max-width: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.2rem 1.2rem 0.2rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 500; color: var(--soft); min-width: 8.5rem; } td { overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.1rem; font-size: 0.85rem; }
.legend i { display: inline-block; width: 1.1rem; height: 3px; vertical-align: middle; margin-right: 0.35rem; }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.rule, .axis, .pale, .line, .dots { fill: none; } .rule { stroke: var(--rule); } .axis { stroke: var(--soft); }
.line { stroke-width: 2; stroke-linejoin: round; } .dots { stroke-width: 6; stroke-linecap: round; }
.pale { opacity: 0.35; } .band { opacity: 0.18; }
""" + "".join(
    f".i{k} {{ background: var(--s{k}); }} .l{k} {{ stroke: var(--s{k}); }} .f{k} {{ fill: var(--s{k}); }}\n"
    for k in range(4)
)


def page(folder):
    """The report of the run in `folder`, as the text of an HTML page.

    UsageError if the folder holds no run; DataError if what it holds is damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "log.jsonl").is_file():
        raise UsageError(f"{folder}: a report is about a run's folder, with its config.json and log.jsonl")
    generator, config, about, file = runs.load_generator(folder)
    metadata = checkpoint.read_metadata(file)
    log = runs.read_log(folder)
    title = f"{folder.resolve().name}: {Path(config.dataset).name}, step {int(metadata['step']):,} of {config.steps:,}"
    parts = [
        _pictures(folder),
        _charts(log),
        _attention(generator, about) if config.architecture.attention else "",
        _evaluation(folder),
        _facts(config, about, metadata, file),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        f'<p class="soft">minisagan, after {float(metadata["seconds"]) / 60:.1f} minutes of training</p>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _section(name, title, text, *cards):
    """A part of the page: its cards stand side by side where there is room."""
    return (
        f'<section id="{name}">\n<h2>{title}</h2>\n<p class="soft">{text}</p>\n'
        f'<div class="grid">\n{"".join(cards)}</div>\n</section>'
    )


def _card(title, inside, wide=False):
    return f'<div class="card{" wide" if wide else ""}">\n<h3>{title}</h3>\n{inside}\n</div>\n'


def _image(data, kind, alt):
    return f'<img src="{_uri(data, kind)}" alt="{html.escape(alt)}">'


def _uri(data, kind):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _pictures(folder):
    frames, cards = runs.sampled(folder), []
    if frames:
        step, last = frames[-1][0], frames[-1][1].read_bytes()
        cards.append(_card(f"Step {step:,}", _image(last, "png", f"a grid of samples at step {step}")))
    film = folder / "progress.gif"
    if film.is_file():
        inside = _image(film.read_bytes(), "gif", "the samples during training, as a film")
        if frames:  # for those who want nothing to move
            still = f'<source media="(prefers-reduced-motion: reduce)" srcset="{_uri(last, "png")}">'
            inside = f"<picture>{still}{inside}</picture>"
        cards.append(_card("The way there", inside))
    text = "The same latents each time, a row for each class: drawn, not chosen." if cards else "None yet."
    return _section("samples", "Samples", text, *cards)


def _charts(log):
    text = (
        "Pale: every one of many logged values; full: their running mean. Behind a name: its last value. Spectral "
        "norm: the median of the layers, from the least to the greatest, before the weights are divided by it."
    )
    return _section("curves", "Curves", text, *(_chart(plot.of_log(log, *chart)) for chart in plot.CHARTS))


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


def _attention(generator, about):
    classes = generator.arch.classes
    z = latents(generator, MEASURED, 0)
    labels = np.arange(MEASURED) % classes if classes else None
    shown = z[:SHOWN], None if labels is None else labels[:SHOWN]
    names = None if labels is None else [about["classes"][k] for k in shown[1]]
    size = about["image_size"]
    picture, _ = attention_maps.figure(generator, shown, None, size, names)
    image = _image(pictures.png(picture), "png", "images with marked points, and a map for each point")
    facts = attention_maps.measure(generator, z, labels)
    change = attention_maps.causal_test(generator, size, z, labels)
    side = lambda count: f"{count**0.5:.0f}x{count**0.5:.0f}"
    rows = {
        "queries, keys": f"{side(facts['queries'])}, {side(facts['keys'])} ({generator.arch.attention_form} form)",
        "gamma": f"{facts['gamma']:+.4f}",
        "|gamma o| / |x|": f"{facts['ratio']:.3f}",
        "entropy": f"{facts['entropy_bits']:.2f} bits; {facts['entropy_uniform']:.2f} if all keys were alike",
        "distance": f"{facts['distance_pixels']:.1f} pixels; {facts['distance_uniform']:.1f} if all keys were alike",
        "with gamma = 0": f"the images change by {change['grey_levels']:.1f} of 255 grey levels on the mean, "
        f"{change['changed_pixels']:.1%} of their pixels by {attention_maps.VISIBLE} or more",
    }
    text = "Where the generator looks from the marked points, and the means over "
    return _section(
        "attention", "Attention", f"{text}{MEASURED} images.",
        _card("Maps", f'<div class="scroll">{image}</div>', wide=True),
        _card("Measures", _table(rows), wide=True),
    )  # fmt: skip


def _evaluation(folder):
    path = folder / "evaluation.json"
    if not path.is_file():
        return ""
    try:
        facts = json.loads(path.read_text())
        found, floor, net = facts["metrics"], facts["floor"], facts["classifier"]
        rows = [
            (html.escape(name), *(form.format(part[key]) if key in part else "" for part in (found, floor)))
            for key, (name, form) in evaluation.ROWS.items()
            if key in found
        ]
        text = (
            f"{int(facts['count']):,} images at step {int(facts['step']):,}, beside as many real ones; by the "
            f"{int(net['features'])} features of classifier {html.escape(str(net['hash'])[:16])}, "
            f"accuracy {net['accuracy']:.2%}."
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: not written by minisagan evaluate ({error!r}); measure again, or delete it") from None
    body = "".join(f"<tr><th>{name}</th><td>{a}</td><td>{b}</td></tr>\n" for name, a, b in rows)
    head = "<tr><th></th><th>generated</th><th>real</th></tr>\n"
    table = f'<div class="scroll"><table>\n{head}{body}</table></div>'
    return _section("metrics", "Metrics", text, _card("Generated beside real", table))


def _facts(config, about, metadata, file):
    values = config.to_dict()
    arch = values.pop("architecture")
    dataset = {
        "data set": config.dataset,
        "images": f"{about['image_size']}x{about['image_size']} pixels",
        "classes": ", ".join(map(str, about["classes"])),
        **{f"sha256 of {name}": value for name, value in about["hashes"].items()},
    }
    return _section(
        "configuration", "Configuration", f"Of {html.escape(str(file))}. config.json beside the log replays the run.",
        _card("Training", _table(values)), _card("Networks", _table(arch)),
        _card("Data", _table(dataset)), _card("Versions", _table(json.loads(metadata["versions"]))),
    )  # fmt: skip


def _table(rows):
    cells = "".join(f"<tr><th>{html.escape(str(a))}</th><td>{html.escape(str(b))}</td></tr>\n" for a, b in rows.items())
    return f'<div class="scroll"><table>\n{cells}</table></div>'
