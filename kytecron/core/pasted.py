"""What people paste where a cron expression belongs, and what to write instead.

Lines of a crontab (with a command, a user, a time zone, a comment), Quartz, AWS, systemd, Jenkins, a YAML file, or
plain English. A suggestion is made only where it is valid and means the same; otherwise the hint says what is wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from kytecron.core.zones import zone_names

LONGEST = 2000
"""Characters that are looked at."""
FIVE_FIELDS = "Write five fields: minute, hour, day-of-month, month, day-of-week"
USE_INTERVAL = "use schedule_type interval"

Problem = Callable[[str], str]
"""What is wrong with a text as a cron expression; empty for one that is valid."""

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAME = "|".join((*WEEKDAYS, *_MONTHS))
_FIELD_ITEM = re.compile(rf"(?:\*|\?|lw?|[0-9]{{1,4}}[lw]?|(?:{_NAME})l?)(?:[-/#](?:[0-9]{{1,4}}|{_NAME}))*")
_YEAR = re.compile(r"[12][0-9]{3}(?:[-/,][0-9]{1,4})*")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(\"[^\"]*\"|'[^']*'|\S*)\s*")
_LABEL = re.compile(r"-?\s*(?:cron|schedule|cron_expression|oncalendar|crontab)\s*[:=]\s*", re.IGNORECASE)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_PROGRAM = re.compile(
    "bash|cd|curl|docker|echo|env|find|flock|ionice|java|make|nice|node|perl|php|python3?|ruby|sh|test|timeout|wget|zsh"
)
"""First words of commands that look like the name of a user."""
_ZONE_VARIABLES = ("CRON_TZ", "TZ")
_LOOKALIKES = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2217\u204e\u2731\uff0a\u066d\u22c6", "*"),
    **dict.fromkeys("\u2044\u2215\uff0f", "/"),
    **dict.fromkeys("\u201a\uff0c\u060c\u3001", ","),
    **dict.fromkeys("\u2018\u2019\u201c\u201d\u00ab\u00bb", "'"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
}
_UNITS = {"second": 1, "sec": 1, "minute": 60, "min": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_SHORT_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_COUNTS = {
    "": 1,
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "five": 5,
    "ten": 10,
    "other": 2,
    "second": 2,
}


@dataclass(slots=True)
class _Reading:
    """What was found out about a pasted text."""

    without: list[str] = field(default_factory=list)
    """What the suggestion leaves out."""
    remarks: list[str] = field(default_factory=list)
    """Where that belongs instead."""

    def says(self, expression: str | None) -> str:
        without = f", without {_listed(self.without)}" if self.without else ""
        if expression is None:
            text = FIVE_FIELDS
        elif expression.startswith("@"):
            text = f"Write {expression}{without}"
        else:
            text = f"{FIVE_FIELDS}{without}: {expression}"
        return ". ".join([text, *dict.fromkeys(self.remarks)])


def hint(text: str, problem: Problem) -> str | None:
    """What to write instead of `text`; None where nothing is recognised in it."""
    cleaned = _plain(text[:LONGEST])
    reading = _Reading()
    if cleaned.split() != text[:LONGEST].split():
        reading.without.append("characters that are no plain ASCII")
    lines = _schedule_lines(cleaned, reading)
    if not lines:
        return ". ".join(reading.remarks) or None
    if len(lines) > 1:
        reading.remarks.append(f"These are {len(lines)} schedules: make a job for each")
    line = _unwrapped(lines[0])
    return (
        _alias(line, reading, problem)
        or _rate(line)
        or _calendar(line, reading, problem)
        or _fields(line, reading, problem)
        or _english(line)
        or (reading.says(None) if reading.remarks or reading.without else None)
    )


# -- taking apart --------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """The text with look-alikes of ASCII written as such; control characters become spaces."""
    return "".join(map(_plain_char, unicodedata.normalize("NFKC", text)))


def _plain_char(char: str) -> str:
    if char in _LOOKALIKES:
        return _LOOKALIKES[char]
    if char.isascii():
        return char if char.isprintable() or char in "\n\r\t" else " "
    if char.isspace():
        return "\n" if char in "\u2028\u2029\x85" else " "
    digit = unicodedata.digit(char, None)
    return char if digit is None else str(digit)


def _schedule_lines(text: str, reading: _Reading) -> list[str]:
    """The lines that may be a schedule; comments and assignments are noted."""
    found = []
    for raw in text.replace("\\\n", " ").splitlines():
        line = raw.strip()
        if line.startswith("#"):
            reading.without.append("comments")
            continue
        while (match := _ASSIGNMENT.match(line)) and not _LABEL.match(line):
            _note_assignment(match[1], match[2].strip("\"'"), reading)
            line = line[match.end() :]
        if line:
            found.append(line)
    reading.without[:] = dict.fromkeys(reading.without)
    return found


def _note_assignment(name: str, value: str, reading: _Reading) -> None:
    reading.without.append(name[:40])
    if name in _ZONE_VARIABLES:
        known = value if value in zone_names() else "the time zone, such as Europe/Berlin,"
        reading.remarks.append(f"Put {known} into the field timezone")
    elif name == "MAILTO":
        reading.remarks.append("Put the address of MAILTO into the field notification_email")
    else:
        reading.remarks.append(f"Set {name[:40]} in the job's code or its parameters")


def _unwrapped(line: str) -> str:
    """Without the key of a YAML file, quotes and marks around the expression."""
    line = _LABEL.sub("", line, count=1).strip()
    return line.strip("\"'`;, \t") or line


def _note_rest(rest: Sequence[str], reading: _Reading) -> None:
    """What follows an expression in a crontab: a user, a command, a comment."""
    if not rest:
        return
    if rest[0].startswith("#"):
        reading.without.append("the comment")
        return
    if zone := _zone_behind(rest):
        reading.without.append("the time zone")
        reading.remarks.append(f"Put {zone} into the field timezone")
        _note_rest(rest[1:], reading)
        return
    user = len(rest) > 1 and _USER.fullmatch(rest[0]) and not _PROGRAM.fullmatch(rest[0])
    if user and (rest[1][0] in "/.~[$" or _PROGRAM.fullmatch(rest[1]) or rest[0] == "root"):
        reading.without.append("the user")
        reading.remarks.append("Jobs run as the user of the worker")
    reading.without.append("the command")
    reading.remarks.append("The command belongs in the job's code")


def _zone_behind(rest: Sequence[str]) -> str | None:
    """The time zone behind an expression: `Europe/Berlin`, or `TZ=Europe/Berlin` where no command follows it."""
    name, mark, value = rest[0].rpartition("=")
    if mark and (name not in _ZONE_VARIABLES or (len(rest) > 1 and not rest[1].startswith("#"))):
        return None  # a variable of the command's
    value = value.strip("\"'")
    return value if value in zone_names() else None


# -- aliases and intervals -----------------------------------------------------------------------------------


_ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")


def _alias(line: str, reading: _Reading, problem: Problem) -> str | None:
    if not line.startswith("@"):
        return None
    word, *rest = line.split()
    word = word.lower()
    if word == "@reboot":
        return "No machine's boot is seen here: use schedule_type manual, or a time such as @daily"
    if word == "@every":
        seconds = _go_duration(rest[0]) if rest else None
        return _interval(seconds, "Use") or "Use schedule_type interval and interval_seconds"
    if not problem(word):
        _note_rest(rest, reading)
        return reading.says(word)
    close = get_close_matches(word[:20], _ALIASES, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}Write five fields or one of {', '.join(_ALIASES)}"


def _go_duration(text: str) -> int | None:
    parts = re.findall(r"([0-9]{1,9})([smhd])", text.lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.lower():
        return None
    return sum(int(number) * _SHORT_UNITS[unit] for number, unit in parts)


def _interval(seconds: int | None, verb: str = "Use") -> str | None:
    if not seconds or seconds > 3650 * 86_400:
        return None
    return f"{verb} schedule_type interval and interval_seconds {seconds}"


def _rate(line: str) -> str | None:
    """`rate(5 minutes)` and `at(...)` of AWS."""
    if match := re.fullmatch(r"rate\(\s*([0-9]{1,9})\s+([a-z]+?)s?\s*\)", line, re.IGNORECASE):
        return _interval(int(match[1]) * _UNITS.get(match[2].lower(), 0))
    if re.match(r"at\(", line, re.IGNORECASE):
        return "For a single run trigger the job, or set starts_at and max_runs 1"
    return None


# -- fields --------------------------------------------------------------------------------------------------


def _fields(line: str, reading: _Reading, problem: Problem) -> str | None:
    """Five fields with something around them, or six or seven as Quartz and AWS write them."""
    aws = re.fullmatch(r"cron\((.*)\)", line, re.IGNORECASE)
    words = (aws[1] if aws else line).lower().split()
    if sum(map(_like_a_field, words[:5])) < min(5, len(words)) or len(words) < 5:
        return None
    number = 5
    while number < min(7, len(words)) and _like_a_field(words[number]):
        number += 1
    fields, rest = words[:number], line.split()[number:] if not aws else []
    _note_rest(rest, reading)
    several = number > 5
    expression = _from_many(fields, bool(aws), reading) if several else _as_here(fields, quartz=False)
    if expression is None:
        return reading.says(None)
    if wrong := problem(expression):
        reading.remarks.insert(0, wrong)
        return reading.says(None)
    return reading.says(expression)


def _like_a_field(word: str) -> bool:
    return all(_FIELD_ITEM.fullmatch(item) for item in word.split(","))


def _from_many(fields: list[str], aws: bool, reading: _Reading) -> str | None:
    """Five fields of six or seven; None, with a remark, where seconds or a year say more than can be left out."""
    marks = [place for place, text in enumerate(fields) if text == "?"]
    year_last = (
        len(fields) == 7
        or aws
        or bool(_YEAR.fullmatch(fields[-1]))
        or (any(place in (2, 4) for place in marks) and not any(place in (3, 5) for place in marks))
    )
    quartz = aws or bool(marks)
    if year_last:
        year = fields.pop()
        reading.without.append("seconds or a year" if not reading.without else "a year")
        if year not in ("*", "?"):
            reading.remarks.append("starts_at and ends_at bound the years")
    if len(fields) == 6:
        second = fields.pop(0)
        if "seconds or a year" not in reading.without:
            reading.without.append("seconds or a year")
        if not second.isdigit():
            step = re.fullmatch(r"(?:\*|0)/([0-9]{1,2})", second)
            seconds = 1 if second == "*" else int(step[1]) if step else 0
            every = set(fields) <= {"*", "?"} and seconds and 60 % seconds == 0
            reading.remarks.append(
                f"For less than a minute {USE_INTERVAL}"
                + (f" and interval_seconds {seconds}" if every else "")
            )
            return None
        reading.remarks.append(f"For less than a minute {USE_INTERVAL}")
    return _as_here(fields, quartz)


def _as_here(fields: list[str], quartz: bool) -> str:
    """`?` is `*` here; Quartz and AWS count weekdays from Sunday = 1."""
    fields = ["*" if text == "?" else text for text in fields]
    if quartz:
        fields[4] = ",".join(map(_weekday_of_quartz, fields[4].split(",")))
    return " ".join(fields)


def _weekday_of_quartz(item: str) -> str:
    base, mark, rest = re.fullmatch(r"([^#/]*)([#/]?)(.*)", item).groups()  # type: ignore[union-attr]
    if base == "l":
        base = "6"
    elif base.endswith("l") and base[:-1].isdigit():
        return f"{int(base[:-1]) - 1}l"
    else:
        base = "-".join(_weekday_name(part) for part in base.split("-"))
    return base + mark + rest


def _weekday_name(text: str) -> str:
    return WEEKDAYS[int(text) - 1] if text in ("1", "2", "3", "4", "5", "6", "7") else text


# -- systemd -------------------------------------------------------------------------------------------------


_SYSTEMD_WORDS = {
    "minutely": "* * * * *",
    "hourly": "@hourly",
    "daily": "@daily",
    "midnight": "@daily",
    "weekly": "0 0 * * mon",
    "monthly": "@monthly",
    "quarterly": "0 0 1 1,4,7,10 *",
    "semiannually": "0 0 1 1,7 *",
    "yearly": "@yearly",
    "annually": "@yearly",
}
_DATE = re.compile(r"(?:([0-9*/,.]+)-)?([0-9*/,.]+)[-~]([0-9*/,.]+)")
_TIME = re.compile(r"([0-9*/,.]+):([0-9*/,.]+)(?::([0-9*/,.]+))?")
_DAYS = re.compile(rf"(?:{'|'.join(WEEKDAYS)})[a-z]*(?:(?:\.\.|-|,)(?:{'|'.join(WEEKDAYS)})[a-z]*)*,?")


def _calendar(line: str, reading: _Reading, problem: Problem) -> str | None:
    """OnCalendar of systemd: `Mon..Fri *-*-* 09:00:00 Europe/Berlin`."""
    words = line.split()
    if line.lower() in _SYSTEMD_WORDS:
        return reading.says(_SYSTEMD_WORDS[line.lower()])
    days = date = at = None
    for word in words:
        if days is None and _DAYS.fullmatch(word.lower()) and not (date or at):
            days = word.lower()
        elif date is None and at is None and _DATE.fullmatch(word):
            date = _DATE.fullmatch(word)
        elif at is None and _TIME.fullmatch(word):
            at = _TIME.fullmatch(word)
        elif word in zone_names() and word == words[-1]:
            reading.remarks.append(f"Put {word} into the field timezone")
        else:
            return None
    if date is None and at is None:
        return None
    year, month, day = date.groups() if date else (None, "*", "*")
    hour, minute, second = at.groups() if at else ("0", "0", "0")
    weekday = (
        "*"
        if days is None
        else re.sub(r"[a-z]+", lambda name: name[0][:3], days.replace("..", "-").strip(","))
    )
    same = (year or "*") == "*" and _numbers(second or "0") == "0" and (weekday == "*" or day == "*")
    if "~" in (date[0] if date else ""):
        same, day = same and day == "01", "l"
    expression = " ".join([*(_numbers(part) for part in (minute, hour, day, month)), weekday])
    return reading.says(expression if same and not problem(expression) else None)


def _numbers(text: str) -> str:
    return re.sub(r"\b0+(?=[0-9])", "", text.replace("..", "-"))


# -- English -------------------------------------------------------------------------------------------------


_EVERY = re.compile(
    r"(?:every|each|once (?:every|an?|per))\s+(?:([0-9]{1,6}|[a-z]+)\s+)?(second|sec|minute|min|hour|day|week)s?"
)
_CLOCK = re.compile(
    r"(?<![0-9:])([0-9]{1,2})(?::([0-5][0-9]))?\s*([ap]\.?m\b\.?)?(?![0-9:])(?!\s*(?:sec|min|hour|day|week|month))"
)


def _english(line: str) -> str | None:
    text = " ".join(line.lower().split())
    days, at = _days_of(text), _clock_of(text)
    if days is not None and at is not None:
        hour, minute = at
        kind = "daily" if days == "*" else f"weekly, day_of_week {_numbered(days)}"
        return (
            f"{FIVE_FIELDS}: {minute} {hour} * * {days}. Or use schedule_type {kind} and time_of_day "
            f"{hour:02}:{minute:02}"
        )
    match = _EVERY.fullmatch(text)
    if match is None:
        return None
    count = int(match[1]) if (match[1] or "").isdigit() else _COUNTS.get(match[1] or "", 0)
    seconds = count * _UNITS[match[2]]
    use = _interval(seconds)
    if use is None:
        return None
    minutes, odd = divmod(seconds, 60)
    if not odd and minutes and 60 % minutes == 0:
        expression = "* * * * *" if minutes == 1 else f"*/{minutes} * * * *" if minutes < 60 else "0 * * * *"
        return f"{FIVE_FIELDS}: {expression}. Or {use[0].lower()}{use[1:]}"
    return use


def _days_of(text: str) -> str | None:
    """Weekdays as a field; None where the text names no days."""
    if re.search(r"\b(?:weekdays?|working days?|business days?)\b", text):
        return "1-5"
    if re.search(r"\bweekends?\b", text):
        return "6,0"
    named = [name for name in WEEKDAYS if re.search(rf"\b{name}(?:s|day|sday|nesday|rsday|urday)?s?\b", text)]
    if named:
        return ",".join(named)
    return (
        "*"
        if re.search(r"\b(?:daily|nightly|every (?:day|night|morning|evening)|each day)\b", text)
        else None
    )


def _numbered(days: str) -> str:
    if days == "1-5":
        return "1,2,3,4,5"
    return ",".join(str(WEEKDAYS.index(day)) if day in WEEKDAYS else day for day in days.split(","))


def _clock_of(text: str) -> tuple[int, int] | None:
    if re.search(r"\bmidnight\b", text):
        return 0, 0
    if re.search(r"\b(?:noon|midday)\b", text):
        return 12, 0
    found = _CLOCK.findall(text)
    if len(found) != 1:
        return None
    hour, minute, half = int(found[0][0]), int(found[0][1] or 0), found[0][2][:1]
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "p" else 0)
    return (hour, minute) if hour < 24 else None


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
