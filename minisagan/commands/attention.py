"""`minisagan attention`: maps of what self-attention looks at, their measures, and the images without it."""

import json
from pathlib import Path

import click
import numpy as np

from minisagan.commands import choices
from minisagan.errors import DataError, UsageError
from minisagan.judge.evaluation import Judge
from minisagan.look import attention_maps, pictures
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.sampling import in_turn, latents
from minisagan.stderr import note

MEASURED = 256  # images that the measures and the causal test are taken over


@click.command(short_help="Show what self-attention looks at, and what is lost without it.")
@click.argument("run")
@click.option("--network", type=click.Choice(["generator", "discriminator"]), default="generator",
              help="Whose attention: the generator's, on images it makes, or the discriminator's, on real ones.")
@click.option("--count", type=choices.COUNT, show_default="one for each class, of at most 10; 8 without classes",
              help="How many images to show.")
@choices.classes_option
@click.option("--seed", type=int, default=0, help="Of the noise, as in minisagan sample; or of which real images.")
@click.option("--point", "points", metavar="Y,X", multiple=True, show_default="three that stand out from the border",
              help="A pixel to look from, counted from the upper left corner; may be given several times.")
@click.option("-o", "--output", metavar="FILE", default="attention.png", help="The picture to write.")
@click.option("--gif", metavar="FILE", help="Write a film, too: the same at each checkpoint that the run has kept.")
@click.option("--metrics", type=choices.COUNT, metavar="N", show_default="not measured",
              help="Evaluate N images of the generator, too, with gamma and without, as minisagan evaluate does.")
@click.option("--dataset", metavar="PLACE", show_default="as in config.json", help="Where its images are now.")
@click.option("--data-dir", metavar="DIR", show_default="$MINISAGAN_DATA", help="Where the real images lie.")
@click.option("--json", "as_json", is_flag=True, show_default=False, help="Print one JSON object instead.")
def command(run, network, count, classes, seed, points, output, gif, metrics, dataset, data_dir, as_json):
    """Show what self-attention looks at in RUN, a run's folder (its newest checkpoint) or a checkpoint file.

    For each of a few images, with points marked in it, the picture has a map for each point: how much the output there
    takes from every place (beta of the paper's eq. 1). The numbers are means over 256 images and all positions, and
    the causal test sets gamma to 0 and computes the same images again.
    """
    choices.check_suffix("-o", output, ".png")
    if gif:
        choices.check_suffix("--gif", gif, ".gif")
    if metrics and network == "discriminator":
        raise UsageError("--metrics measures images that are made: it is for the generator alone")
    load = runs.load_generator if network == "generator" else runs.load_discriminator
    net, config, about, file = load(run)
    attention_maps.check(net, file)
    size, names = about["image_size"], about["classes"]
    asked = choices.points(points, size)
    chosen = choices.classes(classes, names, config.architecture.classes)
    count = count or (min(len(chosen), 10) if chosen else 8)
    if gif and not Path(run).is_dir():
        raise UsageError(f"--gif shows all checkpoints of a run: name its folder instead of {run}")
    steps = checkpoint.of_steps(Path(run, "checkpoints")) if gif else {}
    if network == "generator":
        inputs = latents(net, max(count, MEASURED), seed), in_turn(chosen, max(count, MEASURED))
    else:
        images = runs.load_data(config, about, run, data_dir, dataset)
        inputs = attention_maps.real_images(images, max(count, MEASURED), chosen, seed)
    shown = [None if x is None else x[:count] for x in inputs]
    legible = pictures.legible({k: names[k] for k in chosen or ()})
    captions = None if chosen is None else [legible[k] for k in shown[1]]
    judge = Judge(runs.load_data(config, about, run, data_dir, dataset), metrics, seed, data_dir) if metrics else None

    where = np.broadcast_to(asked, (count, len(asked), 2)) if asked else None
    picture, where = attention_maps.figure(net, shown, where, size, captions)
    pictures.write_png(output, picture)
    if gif:
        frames = {}
        for step, path in steps.items():
            try:
                frames[f"step {step:,}"] = attention_maps.figure(load(path)[0], shown, where, size, captions)[0]
            except (DataError, UsageError) as error:  # damaged; or a training has deleted it meanwhile
                note(f"not in the film: {error}")
        pictures.write_gif(gif, list(frames.values()), 800, last=2400, captions=list(frames))

    facts = {"checkpoint": str(file), "network": network, "points": where.tolist()}
    facts |= attention_maps.measure(net, *inputs) | {"without": attention_maps.causal_test(net, size, *inputs)}
    if judge:
        facts |= {"metrics": judge.judged(net, seed, size), "floor": judge.floor()}
        with attention_maps.without(net):
            facts["without"]["metrics"] = judge.judged(net, seed, size)
        by = judge.classifier
        facts["classifier"] = {"hash": by.hash, "accuracy": by.accuracy, "features": judge.features.shape[1]}
    if as_json:
        click.echo(json.dumps(facts))
        return
    _show(facts, config.architecture)
    click.echo(f"picture    {output}: {count} images, {where.shape[1]} points in each")
    if gif:
        click.echo(f"film       {gif}: the {len(frames)} checkpoints that {run} has; train --keep N keeps more")


def _show(facts, arch):
    click.echo(f"network    {facts['network']} of {facts['checkpoint']}")
    for name, text in attention_maps.in_words(facts, facts["without"], arch).items():
        click.echo(f"{name:10} {text}")
    if "metrics" in facts:
        whole, bare, net = facts["metrics"], facts["without"]["metrics"], facts["classifier"]
        if "accuracy" in whole:
            click.echo(f"           class asked for {whole['accuracy']:.2%} -> {bare['accuracy']:.2%}")
        click.echo(
            f"           Frechet distance {whole['frechet']:.2f} -> {bare['frechet']:.2f}, "
            f"real images {facts['floor']['frechet']:.2f} "
            f"({net['features']} features of classifier {net['hash']}, accuracy {net['accuracy']:.2%})"
        )
