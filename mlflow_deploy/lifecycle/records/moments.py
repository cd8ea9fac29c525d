"""Moments in time as an auditor writes them: with a zone, or refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mlflow_deploy.errors import ConfigError

_HINT = "Write it as 2026-03-03T12:00+01:00, 2026-03-03T11:00Z or '2026-03-03 12:00 Europe/Berlin'"


def parse_moment(text: str) -> datetime:
    """The moment that a text means, in UTC.

    Args:
        text: ISO 8601 with an offset or Z, or with the name of a zone behind it; `now` is this moment.

    Raises:
        ConfigError: it is no time, has no zone, or its zone has that time twice or never.
    """
    if text.strip().lower() == "now":
        return datetime.now(UTC)
    words = text.split()
    zone = words.pop() if len(words) > 1 and not words[-1][:1].isdigit() else ""
    try:
        found = datetime.fromisoformat(" ".join(words))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no time", why=str(error), hint=_HINT) from None
    if zone:
        if found.tzinfo is not None:
            raise ConfigError(f"{text!r} has an offset and the name of a zone", hint=_HINT)
        found = _in_zone(found, zone, text)
    if found.tzinfo is None:
        raise ConfigError(f"{text!r} has no time zone", why="it could mean any of 40 moments", hint=_HINT)
    return found.astimezone(UTC)


def _in_zone(found: datetime, zone: str, text: str) -> datetime:
    try:
        first = found.replace(tzinfo=ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"There is no time zone {zone!r}", why=str(error), hint=_HINT) from None
    second = first.replace(fold=1)
    if first.utcoffset() == second.utcoffset():
        return first
    there_and_back = first.astimezone(UTC).astimezone(first.tzinfo).replace(tzinfo=None)
    times = "twice" if there_and_back == found else "never"
    gap = abs((first.utcoffset() or timedelta()) - (second.utcoffset() or timedelta()))
    raise ConfigError(
        f"{text!r} came {times} in {zone}",
        why=f"the clocks were changed by {gap} then",
        hint="Give the offset from UTC",
    )
