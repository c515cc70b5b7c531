"""`minisagan inspect`: what a run or a checkpoint holds, and whether every byte is as it was written."""

import json
from pathlib import Path

import click

from minisagan.errors import DataError
from minisagan.look.words import duration
from minisagan.run import checkpoint
from minisagan.run import folder as runs


@click.command(short_help="Show what a run or a checkpoint holds, and if it is intact.")
@click.argument("run")
@click.option("--tensors", is_flag=True, show_default=False, help="List every tensor with its shape and type.")
@click.option("--json", "as_json", is_flag=True, show_default=False, help="Print one JSON object instead.")
def command(run, tensors, as_json):
    """Show what is in RUN, a run's folder or a checkpoint file. All of it is read, and its hashes are checked.

    The exit code is 3 if a checkpoint is damaged; of a run, the newest intact one is shown.
    """
    files = _files(Path(run))
    state, intact = {}, None
    for file in files:
        try:
            loaded = checkpoint.load(file)
            state[file.name] = "intact"
            intact = intact or (file, *loaded)
        except DataError as error:
            if not file.exists() and len(files) > 1:  # no damage: a training deleted it meanwhile
                continue
            state[file.name] = f"damaged: {error}"
    if not intact:
        why = next(iter(state.values()), "a training has deleted them meanwhile").removeprefix("damaged: ")
        raise DataError(f"{run}: no intact checkpoint: {why}")
    facts = _facts(*intact, state, tensors)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _show(facts)
    return 3 if set(state.values()) != {"intact"} else 0


def _files(path):
    """The checkpoint file, or those of the run folder, newest first, with those too damaged to have a step."""
    newest = runs.find(path)
    if path.is_file():
        return [path]
    return [newest, *sorted(set((path / "checkpoints").glob("*.safetensors")) - {newest}, reverse=True)]


def _facts(file, tensors, about, state, listed):
    config = runs.read_config(about, file)
    runs.check_has({"adam_g.m", "adam_d.m"}, tensors, file)
    log = file.absolute().parent.parent / "log.jsonl"
    facts = {
        "checkpoint": str(file),
        "step": int(about["step"]),
        "seconds": float(about["seconds"]),
        "config": config.to_dict(),
        "data": json.loads(about["data"]),
        "versions": json.loads(about["versions"]),
        "parameters": {"G": tensors["adam_g.m"].size, "D": tensors["adam_d.m"].size},
        "log": (runs.read_log(log.parent) or [None])[-1] if log.is_file() else None,
        "checkpoints": state,
    }
    if listed:
        facts["tensors"] = {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in tensors.items()}
    return facts


def _show(facts):
    config = dict(facts["config"])
    arch, about = config.pop("architecture"), facts["data"]
    rows = {
        "checkpoint": facts["checkpoint"],
        "step": f"{facts['step']} of {config['steps']}, {duration(facts['seconds'])} of training",
        "data set": f"{config['dataset']}, {about['image_size']} pixels, {len(about['classes'])} classes",
        "weights": f"{facts['parameters']['G']:,} in G, {facts['parameters']['D']:,} in D",
        "networks": _pairs(arch),
        "training": _pairs(config),
        "versions": _pairs(facts["versions"]),
        "last log": _pairs(facts["log"]) if facts["log"] else "none",
    }
    for name, text in rows.items():
        click.echo(f"{name:11} {text}")
    for name, state in facts["checkpoints"].items():
        click.echo(f"{'file':11} {name}: {state}")
    for name, x in facts.get("tensors", {}).items():
        click.echo(f"{'tensor':11} {name}  {'x'.join(map(str, x['shape'])) or '()'}  {x['dtype']}")


def _pairs(values):
    return ", ".join(f"{key} {f'{x:.6g}' if isinstance(x, float) else x}" for key, x in values.items())
