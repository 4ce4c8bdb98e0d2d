"""The command line: one command a capability, the same words as the notebooks.

Nothing heavy is imported before a command runs, so `--help` answers at once. Every error of ours
is caught here, once.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nescord_ops import __version__, cli_backup, cli_lab, cli_offsite, cli_report, interrupts, show
from nescord_ops.errors import OpsError, SettingsError
from nescord_ops.show import printable
from nescord_ops.terminal import (
    Demo,
    Depth,
    Invocation,
    finish,
    progress,
    resolved,
    write_json,
)

INTERRUPTED = 130
# typer carries its own click in newer versions, and uses the real one in older ones.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="nescord-ops",
    help="Prove that NescordBot's data on its Railway volume is safe.",
    epilog="Exit codes: 0 healthy, 1 a check failed, 2 could not check, or misuse.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help needs half the imports
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and exit with its code. SIGTERM cleans up as Ctrl-C does."""
    interrupts.watch()
    os.umask(os.umask(0o022) | 0o022)  # nobody else writes to what this writes
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Given arguments (default: the process's), run one command and return the exit code."""
    try:
        code = _run(arguments)
    except OSError:  # nobody can be told what went wrong
        code = 2
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream and not stream.closed:
                stream.flush()
        except OSError:  # Python would try again, and exit with a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if interrupts.arrived() and code != INTERRUPTED:  # it came too late, or its exception was lost
        typer.echo("Error: interrupted", err=True)
        return INTERRUPTED
    return code


def _run(arguments: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Until the options are parsed, whoever wrote them anywhere meant them.
    call = Invocation(json="--json" in arguments, debug="--debug" in arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    try:
        code = app(_joined(arguments), obj=call, standalone_mode=False, prog_name="nescord-ops")
        if code == INTERRUPTED:  # newer typers make this of it, without a word
            _complain(call, "interrupted")
        typer.echo(nl=False)  # empties stdout, if there is one
    except (BrokenPipeError, SystemExit):
        return 2  # whoever read us has gone; click's answer to that is an exit code of 1
    except (KeyboardInterrupt, typer.Abort):
        _complain(call, "interrupted")
        return INTERRUPTED
    except OpsError as error:
        _complain(call, str(error), error.hint)
        return error.exit_code
    except _UsageError as error:
        name = getattr(error, "option_name", "")
        if any(name in option.opts for option in typer.main.get_command(app).params):
            hint = f"it goes before the command: nescord-ops {name} ..."
            _complain(call, error.format_message(), hint)
        elif call.json:
            _complain(call, error.format_message(), "nescord-ops --help")
        else:
            error.show()
        return 2
    except OSError as error:
        said = f"{error.filename}: " if error.filename else ""
        hint = "see that it is there, may be read and written, and has room"
        _complain(call, f"{said}{error.strerror or error}", hint)
        return 2
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        hint = "run again with --debug before the command, and report what it says"
        if isinstance(error, MemoryError) or "can't start new thread" in said:
            said = f"too little memory, or too few threads ({said})"
            hint = "give it more of both; ulimit -a and the container's settings say what it has"
        _complain(call, said, hint)
        return 2
    return code if isinstance(code, int) else 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """Make papermill's `-p NAME VALUE` one argument: typer has no repeatable option of two."""
    # these two are taken wherever they stand
    everywhere = [name for name in ("--json", "--debug") if name in arguments]
    rest = [argument for argument in arguments if argument not in everywhere]
    joined: list[str] = [*everywhere]
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] in ("-p", "--parameter") and len(rest) > 1 and "=" not in rest[0]:
            joined.append(f"{rest.pop(0)}={rest.pop(0)}")
    return joined


def _complain(call: Invocation, message: str, hint: str = "") -> None:
    """Say what went wrong: on stderr, or as the one JSON document on stdout.

    The error is being handled still; with --debug its traceback goes to stderr first.
    """
    message, hint = printable(message), printable(hint)
    if call.debug:
        traceback.print_exc()
    if call.json:
        write_json({"error": message, "hint": hint})
        return
    typer.echo(f"Error: {message}", err=True)
    if hint:
        typer.echo(f"Try: {hint}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nescord-ops {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    env_file: Annotated[str, typer.Option(help="The .env file to read.", metavar="FILE")] = "",
    app_dir: Annotated[
        str, typer.Option(help="The bot's working directory: /app, or this one.", metavar="DIR")
    ] = "",
    database_url: Annotated[
        str, typer.Option(help="DATABASE_URL as the bot has it.", metavar="URL")
    ] = "",
    chroma_dir: Annotated[str, typer.Option(help="Where Chroma persists.", metavar="DIR")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    call: Invocation = context.obj
    call.json, call.debug = as_json, debug
    call.options = {
        "env_file": env_file,
        "app_dir": app_dir,
        "database_url": database_url,
        "chroma_dir": chroma_dir,
    }


@app.command()
def verify(context: typer.Context, demo: Demo = False, depth: Depth = "full") -> None:
    """Is the data safe? Every check, from places to vectors."""
    from nescord_ops import verify as capability

    with resolved(context.obj, demo) as settings, progress() as say:
        findings = capability.run(settings, depth=depth, progress=say)
    finish(context.obj, findings)


@app.command()
def capacity(context: typer.Context, demo: Demo = False, depth: Depth = "full") -> None:
    """What fills the volume, and when it will be full."""
    from nescord_ops import capacity as capability

    with resolved(context.obj, demo) as settings, progress() as say:
        findings = capability.run(settings, depth=depth, progress=say)
    finish(context.obj, findings)


@app.command()
def cost(
    context: typer.Context,
    demo: Demo = False,
    usd_per_gb_month: Annotated[
        float, typer.Option(help="Price of one GB (10^9 bytes).", metavar="USD")
    ] = 0.25,
) -> None:
    """What the volume costs now and in a year, and what backups cost."""
    from nescord_ops import cost as capability

    with resolved(context.obj, demo) as settings, progress() as say:
        findings = capability.run(settings, usd_per_gb_month=usd_per_gb_month, progress=say)
    finish(context.obj, findings)


@app.command()
def deploy(
    context: typer.Context,
    repo: Annotated[
        Path | None, typer.Argument(metavar="REPO", help="The bot's checkout; default: app-dir.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write what works into a new directory.", metavar="DIR")
    ] = None,
    demo: Demo = False,
) -> None:
    """Does the deployment keep the data? Reads the bot's checkout and its variables."""
    call: Invocation = context.obj
    if write:
        from nescord_ops import configuration

        files = [printable(str(path)) for path in configuration.write(write)]
        if call.json:
            write_json({"files": files})
            return
        typer.echo("\n".join(files))
        typer.echo("Next: read STEPS.md. Where there are notes, back up first.")
        return
    from nescord_ops import deploy as capability

    if repo and not call.options["app_dir"]:
        call.options["app_dir"] = str(repo)
    with resolved(call, demo, required=False) as settings:
        findings = capability.run(settings, repo=repo)
    finish(call, findings)


@app.command()
def clean(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT",
            help="As `nescord-ops clean` lists them; default: all but strays, stale and unsynced.",
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it, with the bot stopped.")] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Remove what was replaced, once all is verified.")
    ] = False,
) -> None:
    """Give space back and repair what verify finds; without --apply, say what would go."""
    from nescord_ops import clean as capability

    with resolved(context.obj) as settings, progress() as say:
        cleaning = capability.run(
            *(settings, what or ()), apply=apply, discard=discard, progress=say
        )
    finish(context.obj, cleaning)


@app.command()
def troubleshoot(
    context: typer.Context,
    symptom: Annotated[
        str, typer.Option(help="What is wrong; without it, all that is found.", metavar="NAME")
    ] = "",
    logs: Annotated[
        list[Path] | None, typer.Option(help="Logs to read; default the bot's.", metavar="FILE")
    ] = None,
    demo: Demo = False,
    depth: Depth = "full",
) -> None:
    """What is wrong, why, and the commands that put it right."""
    from nescord_ops import troubleshoot as capability

    call: Invocation = context.obj
    with resolved(call, demo) as settings, progress() as say:
        options: dict[str, Any] = {"symptom": symptom, "files": logs or (), "depth": depth}
        findings = capability.run(settings, **options, progress=say)
    try:
        finish(call, findings)
    finally:
        if not call.json and findings.diagnoses:
            typer.echo(findings.text)


@app.command()
def demo(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="A new or empty directory.")
    ] = None,
    notes: Annotated[int, typer.Option(help="How many notes; up to 1,000,000.", metavar="N")] = 300,
    vectors: Annotated[
        int | None, typer.Option(help="How many of them are in Chroma.", metavar="N")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="Plant a fault; 'list' names them.", metavar="NAME")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other notes.", metavar="N")] = 0,
) -> None:
    """Make a sample volume, healthy or with faults."""
    call: Invocation = context.obj
    if "list" in (fault or ()):
        _list_faults(call)
        return
    if directory is None:
        raise SettingsError("demo needs a directory", "nescord-ops demo DIR")
    from nescord_ops import demo as demos

    with progress() as say:
        say(f"writing {show.count(notes, 'note')}")
        made = demos.create(directory, notes=notes, vectors=vectors, faults=fault or (), seed=seed)
    if call.json:
        write_json(
            {
                "app_dir": printable(str(made.app_dir)),
                "notes": made.notes,
                "vectors": made.vectors,
                "faults": list(fault or ()),
            }
        )
        return
    place = shlex.quote(printable(str(made.app_dir)))
    planted = f", with {', '.join(fault)}" if fault else ""
    what = f"{show.count(made.notes, 'note')} and {show.count(made.vectors, 'vector')}"
    typer.echo(f"Made {what} in {place}{planted}.")
    typer.echo("Next:")
    for command in ("verify", "report"):
        typer.echo(f"  nescord-ops --app-dir {place} {command}")


def _list_faults(call: Invocation) -> None:
    """Name every fault with what it is."""
    from nescord_ops.faults import FAULTS

    if call.json:
        write_json({name: fault.summary for name, fault in FAULTS.items()})
        return
    width = max(map(len, FAULTS))
    for name, fault in FAULTS.items():
        typer.echo(f"{name:{width}}  {fault.summary}")


app.add_typer(cli_backup.app)
app.add_typer(cli_offsite.app)
app.command()(cli_backup.restore)
app.command()(cli_report.report)
app.command()(cli_lab.lab)
