"""What people paste where a cron expression belongs is answered with something that works."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kytecron.core.cron import MAX_CRON_LENGTH, Refused, parse_cron
from kytecron.core.pasted import FIVE_FIELDS
from kytecron.core.zones import zone_names


def said(text: str) -> str:
    with pytest.raises(Refused) as caught:
        parse_cron(text)
    return str(caught.value)


def suggested(message: str) -> str | None:
    """The expression that a message says to write."""
    found = re.search(re.escape(FIVE_FIELDS) + r"(?:, without [^:]*)?: ([^.]+)", message)
    found = found or re.search(r"\. Write (@\w+)", message)
    return found[1] if found else None


@pytest.mark.parametrize(
    ("pasted", "instead", "also"),
    [
        ("0 5 * * * /usr/bin/backup", "0 5 * * *", "without the command"),
        ("0 5 * * * root /usr/bin/backup", "0 5 * * *", "without the user and the command"),
        ("0 5 * * * cd /srv && ./run.sh", "0 5 * * *", "without the command:"),
        ("0 5 * * * python3 /srv/x.py > /dev/null 2>&1", "0 5 * * *", "without the command:"),
        ("\t0\t5\t*\t*\t1-5\troot\ttest -x /bin/x", "0 5 * * 1-5", "the user and the command"),
        ("0 5 * * * # nightly", "0 5 * * *", "without the comment"),
        ("# nightly\n0 5 * * *", "0 5 * * *", "without comments"),
        ("0 5 * * * " + "x" * 900, "0 5 * * *", "without the command"),
        ("CRON_TZ=Europe/Berlin 0 6 * * *", "0 6 * * *", "Put Europe/Berlin into the field timezone"),
        ("TZ='Asia/Tokyo' 0 6 * * *", "0 6 * * *", "Put Asia/Tokyo into the field timezone"),
        ("TZ=Berlin 0 6 * * *", "0 6 * * *", "such as Europe/Berlin, into the field timezone"),
        ("CRON_TZ = UTC\r\n0 6 * * * /x\r\n", "0 6 * * *", "Put UTC into the field timezone"),
        ("0 6 * * * Europe/Berlin", "0 6 * * *", "without the time zone: 0 6"),
        ("0 6 * * * TZ=Europe/Berlin # early", "0 6 * * *", "Put Europe/Berlin into the field timezone"),
        ("@daily Asia/Tokyo", "@daily", "Put Asia/Tokyo into the field timezone"),
        ("0 6 * * * TZ=Europe/Berlin /x", "0 6 * * *", "without the command:"),
        ("0 5 * * * \\\n /usr/bin/backup", "0 5 * * *", "0 5 * * *. The command belongs"),
        ("MAILTO=ops@example.org\n0 6 * * * /x", "0 6 * * *", "notification_email"),
        ("MAILTO=ops@example.org", None, "notification_email"),
        ("SHELL=/bin/sh", None, "SHELL"),
        ("0 5 * * *\n0 6 * * *", "0 5 * * *", "2 schedules: make a job for each"),
        ("@reboot", None, "schedule_type manual"),
        ("@reboot root /x", None, "schedule_type manual"),
        ("@daily /cmd", "@daily", "without the command"),
        ("@weekly root /cmd", "@weekly", "without the user and the command"),
        ("@dayly", None, "Did you mean @daily?"),
        ("@every 90s", None, "interval_seconds 90"),
        ("@every 1h30m", None, "interval_seconds 5400"),
        ("0 0 12 * * ?", "0 12 * * *", "seconds"),
        ("0 0 12 ? * 2-6", "0 12 * * mon-fri", "seconds"),
        ("0 0 12 ? * 6L", "0 12 * * 5l", "seconds"),
        ("0 15 10 ? * 6#3 2027", "15 10 * * fri#3", "starts_at and ends_at"),
        ("0 0/5 14 * * ? *", "0/5 14 * * *", "seconds or a year"),
        ("0/30 * * * * ?", None, "interval_seconds 30"),
        ("*/10 * * * * *", None, "interval_seconds 10"),
        ("*/10 * 9 * * *", None, "For less than a minute"),
        ("0 0 LW * ?", None, "nearest weekday"),
        ("cron(0 12 * * ? *)", "0 12 * * *", "seconds or a year"),
        ("cron(0/15 8-17 ? * MON-FRI *)", "0/15 8-17 * * mon-fri", ""),
        ("cron(15 10 ? * 6L 2027)", "15 10 * * 5l", "starts_at"),
        ("rate(5 minutes)", None, "interval_seconds 300"),
        ("rate(1 day)", None, "interval_seconds 86400"),
        ("at(2027-01-01T00:00:00)", None, "max_runs 1"),
        ("H/15 * * * *", None, "write */15"),
        ("H(0-29)/10 * * * *", None, "write 0-29/10"),
        ("H H * * *", None, "jitter_seconds"),
        ("*-*-* 06:00:00", "0 6 * * *", ""),
        ("Mon..Fri *-*-* 09:00", "0 9 * * mon-fri", ""),
        ("OnCalendar=Sat,Sun 10:05", "5 10 * * sat,sun", ""),
        ("OnCalendar=*-*-* 02:00:00 Europe/Paris", "0 2 * * *", "Put Europe/Paris into the field timezone"),
        ("*:0/15", "0/15 * * * *", ""),
        ("*-*~01 00:00", "0 0 l * *", ""),
        ("Mon *-*-01 00:00:00", None, FIVE_FIELDS),
        ("*-*-* 06:00:30", None, FIVE_FIELDS),
        ("OnCalendar=daily", "@daily", ""),
        ("every 5 minutes", "*/5 * * * *", "interval_seconds 300"),
        ("every 7 minutes", None, "interval_seconds 420"),
        ("Every hour", "0 * * * *", "interval_seconds 3600"),
        ("every two weeks", None, "interval_seconds 1209600"),
        ("every day at 5 pm", "0 17 * * *", "time_of_day 17:00"),
        ("at 12:30 am every day", "30 0 * * *", "time_of_day 00:30"),
        ("every Tuesday and Thursday at noon", "0 12 * * tue,thu", "day_of_week 2,4"),
        ("weekdays at 9:30", "30 9 * * 1-5", "time_of_day 09:30"),
        ("every 5 minutes on weekdays", None, FIVE_FIELDS),
        ("٣ * * * *", "3 * * * *", "plain ASCII"),
        ("0\u00a05\u2003* * 1\u20135", "0 5 * * 1-5", "plain ASCII"),
        ("０ ５ ＊ ＊ ＊", "0 5 * * *", "plain ASCII"),
        ("\ufeff0 5 * * *", "0 5 * * *", "plain ASCII"),
        ('"0 5 * * *"', "0 5 * * *", ""),
        ("- cron: '0 5 * * *'", "0 5 * * *", ""),
        ("60 5 * * * /x", None, "Minute '60': write 0 to 59"),
        ("0 0 31 2 * /x", None, "dates that never come"),
        ("0 5 * *", None, FIVE_FIELDS),
    ],
)  # fmt: skip
def test_pasted_text_is_answered_with_what_to_write_instead(
    pasted: str, instead: str | None, also: str
) -> None:
    message = said(pasted)
    assert suggested(message) == instead, message
    assert also in message


FOREIGN = st.lists(
    st.sampled_from(
        [
            *(
                "0",
                "5",
                "*",
                "?",
                "*/7",
                "1-5",
                "L",
                "6L",
                "LW",
                "2#3",
                "7",
                "H",
                "H/5",
                "2027",
                "*/90",
                "61",
            ),
            *(
                "mon",
                "MON-FRI",
                "jan",
                "root",
                "/bin/x",
                "#",
                "@daily",
                "@every",
                "5m",
                "TZ=UTC",
                "CRON_TZ=X/Y",
            ),
            *(
                "cron(",
                ")",
                "rate(5",
                "minutes)",
                "every",
                "day",
                "at",
                "5",
                "pm",
                "noon",
                "Mon..Fri",
                "*-*-*",
            ),
            *(
                "06:00:00",
                "*:0/15",
                "*-*-01",
                "\n",
                "\t",
                "–",
                "٣",
                "\u00a0",
                "'",
                '"',
                "=",
                "MAILTO=",
                "{x}",
            ),
        ]
    ),
    max_size=9,
).map(" ".join)


@given(st.one_of(FOREIGN, st.text(max_size=40)))
def test_whatever_is_pasted_no_suggestion_is_wrong(text: str) -> None:
    try:
        parse_cron(text)
    except Refused as refused:
        message = str(refused)
    else:
        return
    if expression := suggested(message):
        parse_cron(expression)
        assert len(expression) <= MAX_CRON_LENGTH
    for name in re.findall(r"Put (\S+) into the field timezone", message):
        assert name in zone_names()
