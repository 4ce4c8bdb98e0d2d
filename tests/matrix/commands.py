"""The commands of the matrix, and what each of them may change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from matrix.world import World


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A command's arguments, in which {A}…{P} are backups and {out} a directory for results.

    `writes` names what of the volume it may change: live, store, offsite; `drops` the backups or
    copies that it may remove.
    """

    arguments: str
    writes: str = ""
    drops: str = ""

    @property
    def name(self) -> str:
        """The arguments without places, which is what a person calls it."""
        return " ".join(word for word in self.arguments.split() if "{" not in word)

    def words(self, world: World) -> list[str]:
        """The arguments with the places of a world."""
        bot = next(world.settings.backup_dir.glob("backup_*.db.zip"), Path("none"))
        names = {**world.ids, "out": world.root / "out", "key": world.root / "key", "bot": bot}
        return [word.format(**names) for word in self.arguments.split()]


COMMANDS = {
    command.name: command
    for command in (
        Command("demo {out}/demo --notes 5"),
        Command("report verify cost --depth quick --out {out}/reports"),
        Command("verify"),
        Command("verify --depth quick"),
        Command("capacity"),
        Command("cost"),
        Command("deploy"),
        Command("deploy --write {out}/write"),
        Command("troubleshoot"),
        Command("clean"),
        Command("clean --apply", "live store", ""),
        Command("backup create", "store"),
        Command("backup create --keep 2 --drill --push", "store offsite", "AB"),
        Command("backup create --dry-run"),
        Command("backup list"),
        Command("backup check", "store"),
        Command("backup drill {C}", "store"),
        Command("backup prune --keep 1", "store", "A"),
        Command("backup prune --keep 1 --dry-run"),
        Command("backup export {B} {out}/export"),
        Command("backup adopt {bot}", "store"),
        Command("restore {B} --dry-run"),
        Command("restore {B} --to {out}/restored"),
        Command("restore {B}", "live"),
        Command("restore {B} --only chroma", "live"),
        Command("offsite push {C}", "offsite store"),
        Command("offsite list"),
        Command("offsite check {B}", "store"),
        Command("offsite check {B} --identity {key}", "store"),
        Command("offsite pull {P} --identity {key}", "store"),
        Command("offsite pull {P} --identity {key} --to {out}/pulled"),
        Command("offsite prune --keep 1", "offsite store", "P"),
        Command("offsite keygen {out}/new.key"),
    )
}
# Notebooks by the dozen: for the sweep of the demo's faults only.
WHOLE_REPORT = Command("report --out {out}/reports", "store")
ALL = {**COMMANDS, WHOLE_REPORT.name: WHOLE_REPORT}
