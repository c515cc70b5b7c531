"""`minisagan evaluate`: a generator's images, measured beside real ones."""

import json
from pathlib import Path

import click

from minisagan import cpu
from minisagan.commands import choices, hardware
from minisagan.judge.evaluation import ROWS, Judge
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.stderr import note

ROW = "{:28} {:>11} {:>11}"


@click.command(short_help="Measure images: distances, precision, recall, class asked for.")
@click.argument("run")
@click.option("--count", type=choices.COUNT, show_default="10,000, or as many as are trained on",
              help="How many images to draw and measure.")
@click.option("--seed", type=int, default=0, help="Of the noise, as in sample; and of the choice of real images.")
@click.option("--dataset", metavar="PLACE", show_default="as in config.json", help="Where its images are now.")
@click.option("--data-dir", metavar="DIR", show_default="$MINISAGAN_DATA", help="Where the data set lies.")
@hardware.threads_option
@click.option("--json", "as_json", is_flag=True, show_default=False, help="Print one JSON object instead.")
def command(run, count, seed, dataset, data_dir, threads, as_json):
    """Measure the images of RUN: a run's folder (its newest checkpoint), RUN/best, or a checkpoint file.

    They have the classes of the test images of the run's data set, as often as these do, and are compared with them by
    the features of a small classifier, trained by minisagan on the training images. Beside each number stands that of
    real images: of training images for distances, precision and recall, of test images for score and accuracy. Writes
    evaluation.json into the run's folder.
    """
    cpu.set_threads(threads)
    generator, config, about, file = runs.load_generator(run)
    step = int(checkpoint.read_metadata(file)["step"])  # now: a training may delete the file meanwhile
    judge = Judge(runs.load_data(config, about, run, data_dir, dataset), count, seed, data_dir)
    count, real = judge.count, len(judge.train_indices)
    if real < count:
        note(
            f"only {real:,} training images stand for real ones beside {count:,} generated: that alone makes their "
            "distance larger"
        )
    found, floor = judge.judged(generator, seed, about["image_size"]), judge.floor()
    net = judge.classifier
    facts = {
        "checkpoint": str(file),
        "step": step,
        "dataset": config.dataset,
        "count": count,
        "train_count": real,
        "test_count": len(judge.test_indices),
        "seed": seed,
        "metrics": found,
        "floor": floor,
        "classifier": {
            "hash": net.hash,
            "accuracy": net.accuracy,
            "tested": net.tested,
            "features": judge.features.shape[1],
        },
    }
    try:
        written = runs.write_evaluation(file, facts)  # first: who reads stdout may go away
    finally:  # if that fails, the numbers are there all the same
        click.echo(json.dumps(facts)) if as_json else _show(facts)
    if written and not as_json:
        click.echo(f"Written to {written}")


def _show(facts):
    net, name = facts["classifier"], Path(facts["dataset"]).name
    click.echo(f"{facts['checkpoint']}: {facts['count']:,} images of seed {facts['seed']}\n")
    click.echo(ROW.format("", "generated", "real"))
    for metric, (title, form) in ROWS.items():
        if metric in facts["metrics"]:
            click.echo(ROW.format(title, *(form.format(facts[kind][metric]) for kind in ("metrics", "floor"))))
    click.echo(
        f"\nAgainst {facts['test_count']:,} test images of {name}, on {net['features']} features of "
        f"classifier {net['hash']}, which names {net['accuracy']:.2%} of {net['tested']:,} test images right.\n"
        f"Real: {facts['train_count']:,} training images against the same; score and accuracy of the test images."
    )
