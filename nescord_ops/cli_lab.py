"""The command that opens the notebooks in JupyterLab."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nescord_ops.checks import plain
from nescord_ops.show import printable
from nescord_ops.terminal import Demo, Invocation, progress, write_json

if TYPE_CHECKING:
    from nescord_ops.lab import Lab


def lab(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Your copy of the notebooks; default nescord-ops-lab."),
    ] = None,
    demo: Demo = False,
    port: Annotated[
        int | None,
        typer.Option(
            help="0: any free one; default 8888 or the next.", metavar="N", min=0, max=65535
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.")
    ] = False,
) -> None:
    """Open a copy of the notebooks in JupyterLab; Ctrl-C ends it."""
    from nescord_ops import lab as capability

    call: Invocation = context.obj
    with contextlib.ExitStack() as stack:
        with progress() as say:
            made = stack.enter_context(
                capability.running(
                    directory,
                    options=call.options,
                    demo=demo,
                    port=port,
                    browser=not no_browser,
                    progress=say,
                )
            )
        _tell(call, made)
        with contextlib.suppress(KeyboardInterrupt):
            made.wait()


def _tell(call: Invocation, made: Lab) -> None:
    """Say where the notebooks are and how they are opened, at once: the command goes on."""
    if call.json:
        write_json(
            {
                "url": made.url,
                "directory": printable(str(made.directory)),
                "notebooks": [plain(each) for each in made.notebooks],
            }
        )
    else:
        typer.echo(f"Notebooks: {shlex.quote(printable(str(made.directory)))}")
        for each in made.notebooks:
            if each.beside:
                mine, yours = printable(each.path.name), printable(each.beside.name)
                typer.echo(f"  {mine} is the present one; {yours} is yours, and was left as it is")
        typer.echo(f"JupyterLab: {made.url}")
        typer.echo("Ctrl-C here ends it.")
    sys.stdout.flush()
