"""The command that runs the notebooks and publishes what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nescord_ops import cli_fleet
from nescord_ops.errors import SettingsError
from nescord_ops.show import printable
from nescord_ops.terminal import (
    Demo,
    Depth,
    Invocation,
    as_text,
    progress,
    write_json,
    write_table,
)


def report(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Notebooks to run; all of them if none is named."),
    ] = None,
    demo: Demo = False,
    depth: Depth = "full",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="A notebook's parameter.", metavar="NAME VALUE"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where reports go; default reports/.", metavar="DIR")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Remove all but the newest N runs.", metavar="N")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a notebook may take.", metavar="SECONDS")
    ] = 600,
    fleet: Annotated[
        Path | None, typer.Option(help="Do it for every volume of a TOML file.", metavar="FILE")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Volumes of a fleet at once; default 1.", metavar="N")
    ] = None,
    deadline: Annotated[
        float, typer.Option(help="Seconds that a volume of a fleet may take.", metavar="SECONDS")
    ] = 1800,
    dask: Annotated[
        str, typer.Option(help="Dask scheduler that shares a fleet out.", metavar="ADDRESS")
    ] = "",
) -> None:
    """Run the notebooks and write HTML and JSON reports with an index."""
    call: Invocation = context.obj
    if fleet:
        options = {
            "depth": depth,
            "parameters": dict(_pair(text) for text in parameter or ()),
            "out": out,
            "keep": keep,
            "timeout_seconds": timeout,
            "deadline_seconds": deadline,
        }
        cli_fleet.report(call, fleet, names or (), dask=dask, demo=demo, jobs=jobs, options=options)
    if jobs or dask:
        raise SettingsError("--jobs and --dask are for a fleet", "name its file with --fleet")
    from nescord_ops import report as capability

    with progress() as say:
        made = capability.run(
            names or (),
            options=call.options,
            depth=depth,
            parameters=dict(_pair(text) for text in parameter or ()),
            out=out,
            keep=keep,
            demo=demo,
            timeout_seconds=timeout,
            progress=say,
        )
    if call.json:
        write_json(made.to_dict())
    else:
        rows = [(page.status, page.name, as_text(page.headline)) for page in made.pages]
        write_table(rows)
        typer.echo(f"Report: {printable(str(made.index))}")
    raise typer.Exit(made.exit_code)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise SettingsError(f"the parameter {text!r} has no value", "write -p NAME VALUE")
    return name, value
