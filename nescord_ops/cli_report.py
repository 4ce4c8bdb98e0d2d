"""The command that runs the notebooks and publishes what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Notebooks at once; default one a core, if memory allows.",
            metavar="N",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a notebook may take.", metavar="SECONDS")
    ] = 600,
) -> None:
    """Run the notebooks and write HTML and JSON reports with an index."""
    from nescord_ops import report as capability

    call: Invocation = context.obj
    with progress() as say:
        made = capability.run(
            names or (),
            options=call.options,
            depth=depth,
            parameters=dict(_pair(text) for text in parameter or ()),
            out=out,
            keep=keep,
            demo=demo,
            jobs=jobs,
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
