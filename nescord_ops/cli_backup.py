"""The commands about backups: `nescord-ops backup …` and `nescord-ops restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nescord_ops import show
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
    name="backup",
    help="Take backups of both stores, prove them, list them and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="As `nescord-ops backup list` shows it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Keep = Annotated[
    int | None,
    typer.Option(help="Remove what is older than the newest N good ones.", metavar="N", min=1),
]


@app.command()
def create(
    context: typer.Context,
    keep: Keep = None,
    drill: Annotated[bool, typer.Option("--drill", help="Restore it to prove it.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Copy it off the volume.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Back up both stores at one moment, while the bot runs."""
    from nescord_ops import backup

    with resolved(context.obj) as settings, progress() as say:
        made = backup.create(
            settings, keep=keep, drill=drill, push=push, dry_run=dry_run, progress=say
        )
    finish(context.obj, made)


@app.command("list")
def list_(context: typer.Context) -> None:
    """Every backup, ours and the bot's, newest first."""
    from nescord_ops import backup

    call: Invocation = context.obj
    with resolved(call) as settings:
        found = backup.listing(settings)
    if call.json:
        write_json(found.to_dict())
    else:
        rows = [(str(b.status), b.id, as_text(b.summary)) for b in found.backups]
        if found.problem:
            status = "unknown" if found.unread else "fail"
            rows.insert(0, (status, "store.sqlite3", as_text(f"{found.problem}\n→ {found.hint}")))
        write_table(rows)
        takes = show.size(found.store_bytes)
        typer.echo(f"{show.count(len(found.backups), 'backup')}; the store takes {takes!s}.")
    raise typer.Exit((2 if found.unread else 1) if found.problem else 0)


@app.command()
def check(
    context: typer.Context,
    backup_id: Annotated[str | None, typer.Argument(metavar="ID", help="Default: all.")] = None,
) -> None:
    """Read every byte of one backup, or of all of them."""
    from nescord_ops import backup

    with resolved(context.obj) as settings, progress() as say:
        found = backup.check(settings, backup_id, progress=say)
    finish(context.obj, found)


@app.command()
def drill(context: typer.Context, backup_id: Id) -> None:
    """Prove a backup: restore it into scratch space and look at everything."""
    from nescord_ops import backup

    with resolved(context.obj) as settings, progress() as say:
        found = backup.drill(settings, backup_id, progress=say)
    finish(context.obj, found)


@app.command()
def prune(
    context: typer.Context,
    keep: Annotated[int, typer.Option(help="Good generations to keep.", metavar="N", min=1)],
    dry_run: DryRun = False,
) -> None:
    """Remove the generations that are older than the newest N good ones."""
    from nescord_ops import backup
    from nescord_ops.checks import plain

    with resolved(context.obj) as settings, progress() as say:
        pruned = backup.prune(settings, keep, dry_run=dry_run, progress=say)
    if context.obj.json:
        write_json(plain(pruned))
        return
    for identity in pruned.removed:
        typer.echo(identity)
    typer.echo(f"{pruned}.")


@app.command()
def export(
    context: typer.Context,
    backup_id: Id,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where its directory goes.")],
    dry_run: DryRun = False,
) -> None:
    """Write a backup in the bot's own format, which the bot's restore accepts."""
    from nescord_ops import backup

    with resolved(context.obj) as settings, progress() as say:
        path = backup.export(settings, backup_id, directory, dry_run=dry_run, progress=say)
    if context.obj.json:
        write_json({"path": show.printable(str(path)), "dry_run": dry_run})
        return
    typer.echo(f"{'Would write' if dry_run else 'Wrote'} {show.printable(str(path))}")


@app.command()
def adopt(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A directory, .db or .db.zip.")],
    dry_run: DryRun = False,
) -> None:
    """Take one of the bot's own backups into the store."""
    from nescord_ops import backup

    with resolved(context.obj) as settings, progress() as say:
        made = backup.adopt(settings, path, dry_run=dry_run, progress=say)
    finish(context.obj, made)


def restore(
    context: typer.Context,
    backup_id: Id,
    to: Annotated[
        Path | None, typer.Option(help="A new directory, in place of the live data.", metavar="DIR")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Leave the other store as it is.", metavar="database|chroma")
    ] = "",
    dry_run: DryRun = False,
) -> None:
    """Put a backup back: over the live data, which is kept, or into a directory."""
    from nescord_ops import restore as capability

    with resolved(context.obj) as settings, progress() as say:
        restored = capability.run(
            *(settings, backup_id),
            to=to,
            only=only,
            dry_run=dry_run,
            progress=say,
        )
    finish(context.obj, restored)
