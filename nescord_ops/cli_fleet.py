"""What `nescord-ops report --fleet` does: the same notebooks for every volume of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nescord_ops.errors import SettingsError
from nescord_ops.show import printable
from nescord_ops.terminal import Invocation, as_text, log, progress, write_json, write_table

if TYPE_CHECKING:
    from nescord_ops.fleet import Fleet
    from nescord_ops.notify import Outlets


def make(
    call: Invocation, file: Path, options: Mapping[str, Any], *, dask: str, demo: bool
) -> Fleet:
    """Run the notebooks for every volume of `file`, here or on a Dask cluster."""
    from nescord_ops import fleet

    given = [f"--{name.replace('_', '-')}" for name, value in call.options.items() if value]
    given += ["--demo"] if demo else []
    if given:
        said = ", ".join(given)
        raise SettingsError(f"a fleet's volumes have their own places: {said}", f"leave out {said}")
    if dask and options["jobs"]:
        raise SettingsError("a Dask cluster has its own number of jobs", "leave out --jobs")
    volumes = fleet.read(file)
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(fleet.dask(dask)) if dask else None
        say = stack.enter_context(progress())
        given_or_one = {**options, "jobs": options["jobs"] or 1}
        return fleet.run(volumes, executor=executor, progress=say, **given_or_one)


def show(call: Invocation, made: Fleet, outlets: Outlets) -> None:
    """Tell of the fleet once, show it, and exit with the code of its worst volume."""
    from nescord_ops import fleet_index

    for line in outlets.tell(fleet_index.message(made)):
        log(f"warning: {line}")
    if call.json:
        write_json(made.to_dict())
    else:
        typer.echo(printable(made.headline))
        rows = []
        for each in made.volumes:
            text = as_text(each.headline)
            for check in each.checks[:1] if each.status.exit_code else ():
                text.append(f"\n→ {printable(check.hint)}", style="dim")
            rows.append((each.status, each.name, text))
        write_table(rows)
        typer.echo(f"Report: {printable(str(made.index))}")
    raise typer.Exit(made.exit_code)
