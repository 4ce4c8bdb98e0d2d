"""The command that runs the notebooks and publishes what they found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nescord_ops import cli_fleet
from nescord_ops.errors import SettingsError
from nescord_ops.show import printable
from nescord_ops.terminal import (
    Demo,
    Depth,
    Invocation,
    as_text,
    log,
    progress,
    write_gone,
    write_json,
    write_table,
)

if TYPE_CHECKING:
    from nescord_ops.notify import Outlets

NEXT_STEPS = 3  # in the log; the page has them all


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
            help="Notebooks at once, by default one a core, if memory allows; of a fleet, volumes.",
            metavar="N",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a notebook may take.", metavar="SECONDS")
    ] = 600,
    fleet: Annotated[
        Path | None, typer.Option(help="Do it for every volume of a TOML file.", metavar="FILE")
    ] = None,
    deadline: Annotated[
        float, typer.Option(help="Seconds that a volume of a fleet may take.", metavar="SECONDS")
    ] = 1800,
    dask: Annotated[
        str, typer.Option(help="Dask scheduler that shares a fleet out.", metavar="ADDRESS")
    ] = "",
    notify: Annotated[
        list[str] | None,
        typer.Option(help="Discord webhook, or an address of apprise's.", metavar="URL"),
    ] = None,
    notify_on: Annotated[
        str,
        typer.Option(
            help="failure and recovery; change of the verdict; always.",
            metavar="failure|change|always",
        ),
    ] = "failure",
    ping: Annotated[
        str, typer.Option(help="GET on success, URL/fail on failure.", metavar="URL")
    ] = "",
) -> None:
    """Run the notebooks and write HTML and JSON reports with an index."""
    from nescord_ops import notify as notices
    from nescord_ops import report as capability
    from nescord_ops.settings import addresses

    call: Invocation = context.obj
    if dask and not fleet:
        raise SettingsError("--dask is for a fleet", "name its file with --fleet")
    places = {name: call.options.get(name) for name in ("app_dir", "env_file")}
    known = {} if demo else addresses(**places)
    outlets = notices.outlets(notify or (), ping, notify_on, known)
    given = dict(_pair(text) for text in parameter or ())
    if fleet:
        options = {
            **{"names": names or (), "depth": depth, "parameters": given, "out": out, "keep": keep},
            **{"timeout_seconds": timeout, "deadline_seconds": deadline, "jobs": jobs},
        }
        with _errors_told(outlets):
            all_made = cli_fleet.make(call, fleet, options, dask=dask, demo=demo)
        cli_fleet.show(call, all_made, outlets)
    with _errors_told(outlets), progress() as say:
        made = capability.run(
            names or (),
            options=call.options,
            depth=depth,
            parameters=given,
            out=out,
            keep=keep,
            demo=demo,
            jobs=jobs,
            timeout_seconds=timeout,
            progress=say,
        )
        message = notices.of_run(made, notices.before(made))
        for problem in message.problems[:NEXT_STEPS]:
            say(f"next: {problem.name}: {problem.summary} → {problem.hint}")
    for line in outlets.tell(message):
        log(f"warning: {line}")
    if call.json:
        write_json(made.to_dict())
    else:
        rows = [(page.status, page.name, as_text(page.headline)) for page in made.pages]
        write_table(rows)
        typer.echo(printable(made.changed))
        typer.echo(f"Report: {printable(str(made.index))}")
        if demo:
            write_gone()
    raise typer.Exit(made.exit_code)


@contextlib.contextmanager
def _errors_told(outlets: Outlets) -> Iterator[None]:
    """Tell of whatever keeps a report from being made, and let it go on."""
    from nescord_ops import notify

    try:
        yield
    except Exception as error:
        for line in outlets.tell(notify.of_error(error)):
            log(f"warning: {line}")
        raise


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise SettingsError(f"the parameter {text!r} has no value", "write -p NAME VALUE")
    return name, value
