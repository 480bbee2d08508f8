"""What this installation is set to, as pages and API show it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..config import Settings


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting as anybody who administrates may see it."""

    variable: str
    value: str
    help: str
    secret: bool
    """Of its value only whether there is one is told."""


def shown(settings: Settings) -> list[Shown]:
    """The settings in their order. Of a secret one only whether it is set."""
    found = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.metadata["secret"]:
            text = "set" if value else "not set"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            number = f"{value:g}" if isinstance(value, float) else value
            text = f"{number} {item.metadata['unit']}".strip()
        found.append(
            Shown(f"KYTECRON_{item.name.upper()}", text, item.metadata["help"], item.metadata["secret"])
        )
    return found
