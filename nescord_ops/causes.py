"""x"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    name: str
    pattern: str
    source: str


MESSAGES = (
    Message("started", "Starting NescordBot", ""),
    Message("locked", "database is locked", ""),
)
