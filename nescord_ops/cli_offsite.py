"""The commands about copies away from the volume: `nescord-ops offsite …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nescord_ops import show
from nescord_ops.cli_backup import DryRun, Id
from nescord_ops.settings import masked
from nescord_ops.terminal import (
    Invocation,
    as_text,
    finish,
    progress,
    resolved,
    write_json,
    write_table,
)

app = typer.Typer(
    name="offsite",
    help="Push backups off the volume, encrypted; check them there, and pull them back.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _without_secrets(url: str) -> str:
    """Refuse a URL that the process list would show to everybody."""
    if masked(url) != url:
        text = "a URL with a user or a query belongs into NESCORD_OPS_OFFSITE_URL"
        raise typer.BadParameter(text)
    return url


Url = Annotated[
    str,
    typer.Option(
        callback=_without_secrets,
        help="A directory, s3://bucket/prefix or sftp://host/path; NESCORD_OPS_OFFSITE_URL.",
        metavar="URL",
    ),
]
CopyId = Annotated[
    str, typer.Argument(metavar="ID", help="As `nescord-ops offsite list` shows it.")
]
Identity = Annotated[Path | None, typer.Option(help="The file that keygen wrote.", metavar="FILE")]


@app.command()
def push(
    context: typer.Context,
    backup_id: Id,
    url: Url = "",
    plain: Annotated[bool, typer.Option("--plain", help="Do not encrypt.")] = False,
) -> None:
    """Copy a backup off the volume, encrypted to NESCORD_OPS_AGE_RECIPIENT."""
    from nescord_ops import offsite

    with resolved(context.obj) as settings, progress() as say:
        done = offsite.push(settings, backup_id, url=url, plain=plain, progress=say)
    finish(context.obj, done)


@app.command("list")
def list_(context: typer.Context, url: Url = "") -> None:
    """Every copy off the volume, newest first."""
    from nescord_ops import offsite
    from nescord_ops.checks import plain

    call: Invocation = context.obj
    with resolved(call, required=False) as settings:
        copies = offsite.listing(settings, url)
    if call.json:
        write_json({"copies": plain(copies)})
        return
    write_table([(str(copy.status), copy.id, as_text(copy.summary)) for copy in copies])
    total = sum(copy.stream_bytes for copy in copies)
    typer.echo(f"{show.count(len(copies), 'copy', 'copies')} of {show.size(total)!s}.")


@app.command()
def check(
    context: typer.Context, backup_id: CopyId, identity: Identity = None, url: Url = ""
) -> None:
    """Read a copy back, all of it; with its identity, restore it into scratch space too."""
    from nescord_ops import offsite

    with resolved(context.obj, required=False) as settings, progress() as say:
        done = offsite.check(settings, backup_id, identity=identity, url=url, progress=say)
    finish(context.obj, done)


@app.command()
def pull(
    context: typer.Context,
    backup_id: CopyId,
    identity: Identity = None,
    to: Annotated[
        Path | None, typer.Option(help="A new directory, in place of the store.", metavar="DIR")
    ] = None,
    url: Url = "",
) -> None:
    """Fetch a copy into the store of backups, from where `nescord-ops restore` takes it."""
    from nescord_ops import offsite

    with resolved(context.obj, required=to is None) as settings, progress() as say:
        done = offsite.pull(settings, backup_id, identity=identity, to=to, url=url, progress=say)
    finish(context.obj, done)


@app.command()
def prune(
    context: typer.Context,
    keep: Annotated[int, typer.Option(help="Good copies to keep.", metavar="N", min=1)],
    dry_run: DryRun = False,
    url: Url = "",
) -> None:
    """Remove the copies that are older than the newest N good ones."""
    from nescord_ops import offsite

    with resolved(context.obj) as settings, progress() as say:
        done = offsite.prune(settings, keep, url=url, dry_run=dry_run, progress=say)
    for copy in () if context.obj.json else done.copies:
        typer.echo(copy.id)
    finish(context.obj, done)


@app.command()
def keygen(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A new file for the identity.")
    ] = Path("nescord-ops.key"),
) -> None:
    """Write a new age identity, and print its recipient for the container."""
    from nescord_ops import keys

    recipient = keys.keygen(file)
    if context.obj.json:
        write_json({"file": show.printable(str(file)), "recipient": recipient})
        return
    typer.echo(
        f"Wrote {show.printable(str(file))}: keep it away from the volume and the bucket, in"
    )
    typer.echo("two places. Without it nothing that is pushed can be read. For the container:")
    typer.echo(f"NESCORD_OPS_AGE_RECIPIENT={recipient}")
