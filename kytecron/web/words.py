"""What rows mean to people: schedules as sentences, letters as endings, configuration as text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, assert_never

from markupsafe import Markup, escape

from ..core.choices import (
    LostContact,
    MisfirePolicy,
    OverlapPolicy,
    RetryStrategy,
    ScheduleType,
)
from ..core.errors import Invalid
from ..core.schedule import in_words, zone
from ..core.states import Origin
from ..core.words import duration as duration
from ..core.words import percent as percent
from ..core.words import rate_tone as rate_tone
from ..services import endings, why
from ..services.upcoming import schedule_in_words as schedule  # noqa: F401
from ..store.models import CronJob
from ..views.jobs import beside as beside
from ..views.jobs import counted_as as counted_as
from ..views.jobs import rate_of as rate_of
from ..views.jobs import tags as tags

ENDINGS = {letter: status for status, letter in endings.LETTERS.items()}
BARS = 30
SCHEDULE_TYPES = {
    ScheduleType.CRON: "Cron expression",
    ScheduleType.INTERVAL: "Interval",
    ScheduleType.DAILY: "Daily",
    ScheduleType.WEEKLY: "Weekly",
    ScheduleType.MONTHLY: "Monthly",
    ScheduleType.MANUAL: "Manual",
}
ORIGINS = {
    Origin.SCHEDULE: "schedule",
    Origin.MANUAL: "a person",
    Origin.TRIGGER: "parents",
    Origin.BACKFILL: "backfill",
    Origin.RERUN: "a person, again",
}
SKIPS: dict[str, str] = {
    OverlapPolicy.SKIP: "is skipped",
    OverlapPolicy.QUEUE: "waits",
    OverlapPolicy.ALLOW: "runs beside it",
    OverlapPolicy.REPLACE: "replaces it",
}
MISSED: dict[str, str] = {
    MisfirePolicy.RUN_ONCE: "the newest one runs, the others are recorded as skipped",
    MisfirePolicy.SKIP: "are recorded as skipped",
    MisfirePolicy.RUN_ALL: "all run, the oldest first",
}


def standing(found: why.Why) -> str:
    """How a job stands, on a page that names it already."""
    return f"It {why.VERDICTS[found.reasons[0].code]}."


def in_zone(instant: datetime, name: str) -> str:
    """An instant as a clock in that zone shows it, with the zone's short name."""
    try:
        local, short = instant.astimezone(zone(name)), None
    except Invalid:
        local, short = instant.astimezone(UTC), "UTC"
    return f"{local:%a %d %b %Y} {clock(local)} {short or local.tzname()}"


def clock(local: datetime) -> str:
    """The time of day, with seconds where there are any."""
    return f"{local:%H:%M:%S}" if local.second else f"{local:%H:%M}"


@lru_cache(maxsize=2048)
def bars(recent_results: str) -> Markup:
    """The last runs as small bars, oldest first: `recent_results` of a job drawn as SVG."""
    letters = recent_results[-BARS:]
    said = ", ".join(
        f"{letters.count(letter)} {status}" for letter, status in ENDINGS.items() if letter in letters
    )
    label = f"Last {len(letters)} runs: {said}" if letters else "No runs yet"
    blank = BARS - len(letters)
    parts = [
        f'<rect class="run-bar run-none" x="{place * 4}" y="16" width="3" height="4" rx="1"/>'
        for place in range(blank)
    ]
    parts += [
        f'<rect class="run-bar run-{ENDINGS.get(letter, "none")}" x="{place * 4}" y="2" width="3" height="18" rx="1"/>'
        for place, letter in enumerate(letters, blank)
    ]
    return Markup(
        f'<svg class="run-bars" viewBox="0 0 {BARS * 4} 20" width="{BARS * 4}" height="20" role="img" '
        f'aria-label="{escape(label)}"><title>{escape(label)}</title>{"".join(parts)}</svg>'
    )


def facts(job: CronJob) -> list[tuple[str, list[tuple[str, str]]]]:
    """A job's configuration in words, in groups of (what, how)."""
    return [
        ("How it runs", _running(job)),
        ("When it fails", _failing(job)),
        ("Whom it tells", _telling(job)),
    ]


def _running(job: CronJob) -> list[tuple[str, str]]:
    found = [
        ("Time limit", in_words(job.timeout_seconds)),
        ("While the last run goes on", f"a new slot {_overlap(job)}"),
        ("Missed slots", MISSED.get(job.misfire_policy, job.misfire_policy)),
    ]
    if job.misfire_policy != MisfirePolicy.RUN_ALL and job.misfire_grace_seconds != 60:
        found.append(("Missed means", f"more than {in_words(job.misfire_grace_seconds)} late"))
    if job.memory_limit_mb:
        found.append(("Memory limit", f"{job.memory_limit_mb} MiB"))
    if job.cpu_limit_seconds:
        found.append(("CPU limit", in_words(job.cpu_limit_seconds)))
    if job.priority != 5:
        found.append(("Priority", f"{job.priority} of 9"))
    if job.worker_tag:
        found.append(("Only on workers tagged", job.worker_tag))
    if job.on_lost_contact == LostContact.CONTINUE:
        found.append(("Without the database", "a run goes on"))
    if job.jitter_seconds:
        found.append(("Starts later by", f"a fixed offset of up to {in_words(job.jitter_seconds)}"))
    if job.starts_at:
        found.append(("Not before", in_zone(job.starts_at, job.timezone)))
    if job.ends_at:
        found.append(("Not after", in_zone(job.ends_at, job.timezone)))
    if job.max_runs:
        found.append(("Disabled after", f"{job.max_runs} scheduled runs ({job.runs_scheduled} so far)"))
    return found


def _overlap(job: CronJob) -> str:
    done = SKIPS.get(job.overlap_policy, job.overlap_policy)
    return f"{done}; at most {job.queue_length} wait" if job.overlap_policy == OverlapPolicy.QUEUE else done


def _failing(job: CronJob) -> list[tuple[str, str]]:
    return [("Retries", retries(job)), ("After the last retry", "it goes to the dead letter queue")]


def retries(job: CronJob) -> str:
    """The retry policy as a phrase."""
    if job.max_retries == 0:
        return "none"
    times = "once" if job.max_retries == 1 else f"up to {job.max_retries} times"
    delay = in_words(job.retry_delay_seconds)
    each, at_once = f"{times}, {delay} after each failure", f"{times}, at once"
    match RetryStrategy.of(job.retry_strategy):
        case RetryStrategy.IMMEDIATE:
            return at_once
        case RetryStrategy.FIXED | RetryStrategy.EXPONENTIAL if job.retry_delay_seconds == 0:
            return at_once
        case RetryStrategy.EXPONENTIAL if job.max_retries > 1:
            longest = in_words(job.retry_max_delay_seconds)
            return f"{times}, after {delay} at first, doubling to at most {longest}"
        case RetryStrategy.FIXED | RetryStrategy.EXPONENTIAL:
            return each
        case never:
            assert_never(never)


def _telling(job: CronJob) -> list[tuple[str, str]]:
    channels = []
    if job.slack_webhook:
        channels.append("Slack")
    if job.notification_email:
        channels.append(job.notification_email)
    if not channels:
        return [("Notifications", "nobody: it has no Slack webhook and no email address")]
    occasions = []
    if job.notify_on_failure:
        after = job.notify_after_failures
        occasions.append("a failure" if after == 1 else f"{after} failures in a row")
    if job.notify_on_dead_letter:
        occasions.append("the dead letter queue")
    if job.notify_on_recovery:
        occasions.append("recovery")
    return [("Channels", ", ".join(channels)), ("On", ", ".join(occasions) or "nothing")]


BROWSERS = {"Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "Chrome": "Chrome", "Safari": "Safari"}
"""By what their user agent says; the first that is found counts, as most claim to be others too."""
SYSTEMS = ["iPhone", "iPad", "Android", "Windows", "Macintosh", "Linux"]


def browser(user_agent: str) -> str:
    """A user agent as a person would say it: `Firefox on Linux`; one that is not a known browser's as it is."""
    name = next((said for mark, said in BROWSERS.items() if f"{mark}/" in user_agent), None)
    system = next((one for one in SYSTEMS if one in user_agent), None)
    if name is None:
        return user_agent or "Unknown browser"
    return f"{name} on {system}" if system else name


def plain(value: Any) -> str:
    """A value of a configuration as a person would write it."""
    if value is None or value == "" or value == [] or value == {}:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(one)}" for key, one in value.items())
    return str(value)
