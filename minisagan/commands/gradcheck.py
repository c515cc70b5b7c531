"""`minisagan gradcheck`: the table of selfcheck, a row for each case."""

import json
import math

import click

from minisagan import selfcheck
from minisagan.commands import hardware

ROW = "{:4}  {:52}  {:13}  {:>7}  {:>7}  {:>7}  {}"


@click.command(short_help="Compare the backward pass of every op with finite differences.")
@click.option("--op", metavar="NAME", show_default="all ops", help="Check this op alone.")
@click.option("--json", "as_json", is_flag=True, show_default=False, help="Print a list of JSON objects instead.")
@hardware.device_option(default="cpu")
def command(op, as_json, where):
    """Compare the backward pass of every op with finite differences of its forward pass, in float64.

    Each row is a case: ERROR, the worst relative error over all of its inputs, must not exceed ALLOWED; METHOD says in
    which directions it was measured. The exit code is 5 if one does; the worst element is then shown with both values.
    """
    results = []
    for result in selfcheck.run(op, gpu=hardware.choose(where) != "cpu"):
        if not results and not as_json:
            click.echo(ROW.format("", "CASE", "METHOD", "ERROR", "ALLOWED", "SECONDS", "SHAPES"))
        results.append(result)
        if not as_json:
            click.echo(_row(result))
    failed = [result for result in results if not result.passed]
    if as_json:
        click.echo("[" + ",\n ".join(json.dumps(_facts(result)) for result in results) + "]")
    elif not failed:
        click.echo(f"all {len(results)} checks passed")
    for result in failed:
        name, there = result.name.split(":")[0], "" if where == "cpu" else f" --device {where}"
        click.echo(f"{result}\n  again: minisagan gradcheck --op {name}{there}", err=as_json)
    return 5 if failed else 0


def _row(r):
    verdict, shapes = "PASS" if r.passed else "FAIL", " ".join("x".join(map(str, s)) or "()" for s in r.shapes)
    return ROW.format(verdict, r.name, r.method, f"{r.error:.1e}", f"{r.tolerance:.0e}", f"{r.seconds:.2f}", shapes)


def _facts(r):
    """A result for JSON, which has no NaN and no infinity: they become null."""
    facts = {**vars(r), "passed": r.passed}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
