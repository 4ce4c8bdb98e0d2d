"""What `nescord-ops report --fleet` does: the same notebooks for every volume of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from nescord_ops.errors import SettingsError
from nescord_ops.show import printable
from nescord_ops.terminal import Invocation, as_text, progress, write_json, write_table


def report(
    call: Invocation,
    file: Path,
    names: Sequence[str],
    *,
    dask: str,
    demo: bool,
    jobs: int | None,
    options: Mapping[str, Any],
) -> None:
    """Run the notebooks for every volume of `file` and exit with the code of the worst."""
    from nescord_ops import fleet

    given = [f"--{name.replace('_', '-')}" for name, value in call.options.items() if value]
    if demo or given:
        said = ", ".join([*given, *(["--demo"] if demo else [])])
        raise SettingsError(
            f"each volume of a fleet has its own places: {said}", f"leave out {said}"
        )
    if dask and jobs:
        raise SettingsError("a Dask cluster has its own number of jobs", "leave out --jobs")
    volumes = fleet.read(file)
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(fleet.dask(dask)) if dask else None
        say = stack.enter_context(progress())
        made = fleet.run(
            volumes, executor=executor, names=names, jobs=jobs or 1, progress=say, **options
        )
    if call.json:
        write_json(made.to_dict())
    else:
        typer.echo(printable(made.headline))
        rows = []
        for each in made.volumes:
            text = as_text(each.headline)
            hints = [check.hint for check in each.checks[:1] if check.hint]
            for hint in hints if each.status.exit_code else ():
                text.append(f"\n→ {printable(hint)}", style="dim")
            rows.append((each.status, each.name, text))
        write_table(rows)
        typer.echo(f"Report: {printable(str(made.index))}")
    raise typer.Exit(made.exit_code)
