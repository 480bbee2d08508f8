"""Telling people: which ending is worth a message, the outbox it waits in, and how it gets out.

    settle -> on_settled -> `messages` decides -> one CronOutbox row per channel, in settle's own transaction
    a worker's notification thread -> deliver -> claim rows, send them outside any transaction, note what came of it

A message is sent at least once: a worker that dies between sending and noting leaves it to be sent again.
"""

from __future__ import annotations

import html
import logging
import re
import smtplib
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, assert_never

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..config import Settings
from ..core.choices import Channel, MessageKind, MessageStatus
from ..core.fields import TARGETS
from ..core.states import ENDED, UNSUCCESSFUL, Status
from ..core.words import in_words
from ..store import db
from ..store.db import hits, transactional
from ..store.models import UNSENT, CronOutbox
from . import audit
from .audit import Actor
from .webhook import DeliveryFailed, post_json, validate_webhook_url

__all__ = [
    "Message",
    "SettledEvent",
    "deliver",
    "messages",
    "on_settled",
    "test_channel",
    "validate_webhook_url",
]

log = logging.getLogger(__name__)

MAX_TRIES = 10
FIRST_DELAY = timedelta(seconds=30)
LONGEST_DELAY = timedelta(hours=1)
CHANNEL_PAUSE = timedelta(seconds=30)
"""After one message could not be sent, the others for the same target wait this long."""
CLAIM_HOLDS = timedelta(minutes=5)
"""A message that its worker did not finish with in this time is taken again: the worker died."""
SMTP_SECONDS = 10.0
"""For each step of the conversation with the mail server."""
GIVE_UP_SECONDS = 30.0
"""For all of a message, whatever hangs."""
IMPLICIT_TLS_PORT = 465
KEPT_ERROR = 1000
KEPT_OUTPUT = 2000
SLACK_BLOCK = 2900
SLACK_LINE = 600
"""Slack refuses a block whose text is longer than 3000 characters."""


# -- what is worth a message ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SettledEvent:
    """An ending, as the rules below need to know it."""

    job: Any
    """The job's row (CronJob or a plain row of its table) as it was before this ending."""
    execution_id: int
    status: Status
    error: str | None
    attempt: int
    """retry_count of the execution: 0 for the first attempt."""
    version: int | None
    consecutive_failures: int
    """After this ending."""
    dead_letter_reason: str | None
    """Set when this ending put the job into the dead letter queue."""
    recovered_after: timedelta | None
    """For a success after failures: since the first of them."""
    ended_at: datetime
    output_tail: str


@dataclass(frozen=True, slots=True)
class Message:
    """What to tell, before it is known where: `facts` are plain JSON values and go into the outbox."""

    kind: MessageKind
    cause: str
    facts: dict[str, Any] = field(default_factory=dict)


def messages(event: SettledEvent, *, told: bool = False) -> list[Message]:
    """What this ending is worth telling: nothing or one message.

    A failure once `notify_after_failures` in a row have failed, and then no more until the job has succeeded;
    the dead letter queue (which takes the place of a failure that falls on the same ending); and the first success
    after any of these. `told` says whether the present row of failures has been told already.
    """
    job = event.job
    if event.status is Status.COMPLETED:
        if event.recovered_after is not None and told and job.notify_on_recovery:
            return [_message(event, MessageKind.RECOVERY)]
    elif event.dead_letter_reason is not None and job.notify_on_dead_letter:
        return [_message(event, MessageKind.DEAD_LETTER)]
    elif event.status in UNSUCCESSFUL and job.notify_on_failure and not told and _often_enough(event):
        return [_message(event, MessageKind.FAILURE)]
    return []


def _often_enough(event: SettledEvent) -> bool:
    # At least, not exactly: the number may have been lowered while the job was failing.
    return bool(event.consecutive_failures >= max(1, event.job.notify_after_failures))


def _message(event: SettledEvent, kind: MessageKind) -> Message:
    down = event.recovered_after
    return Message(
        kind,
        f"{_of_job(event.job.id)} {kind}, execution {event.execution_id}",
        {
            "kind": kind,
            "job": _one_line(event.job.name),
            "execution": event.execution_id,
            "status": str(event.status),
            "error": _one_line(event.error)[:KEPT_ERROR],
            "reason": _one_line(event.dead_letter_reason)[:KEPT_ERROR],
            "attempt": event.attempt + 1,
            "attempts": event.job.max_retries + 1,
            "version": event.version,
            "failures": event.consecutive_failures,
            "down_seconds": None if down is None else down.total_seconds(),
            "at": event.ended_at.isoformat(timespec="seconds"),
            "output": _readable(event.output_tail)[-KEPT_OUTPUT:],
        },
    )


# -- into the outbox -----------------------------------------------------------------------------------------


def on_settled(session: Session, event: SettledEvent) -> None:
    """Write what is worth telling about an ending, one row per channel of the job, in the caller's transaction."""
    channels = _channels(event.job)
    if not channels:
        return
    for message in messages(event, told=_told(session, event)):
        for channel, target in channels.items():
            row = CronOutbox(
                cause=message.cause,
                kind=message.kind,
                channel=channel,
                target=target,
                payload=message.facts,
                cron_job=event.job.id,
                execution=event.execution_id,
                status=MessageStatus.PENDING,
                due_time=event.ended_at,
                created_at=event.ended_at,
            )
            # A cause that was told before must not undo the ending itself.
            with suppress(IntegrityError), session.begin_nested():
                session.add(row)


def _channels(job: Any) -> dict[Channel, str]:
    found = {channel: (getattr(job, name) or "").strip() for channel, name in TARGETS.items()}
    return {channel: target for channel, target in found.items() if target}


def _told(session: Session, event: SettledEvent) -> bool:
    """Whether a message about the failures that this ending belongs to, or ends, has been written."""
    if event.recovered_after is not None:
        since = event.ended_at - event.recovered_after
    else:
        since = event.job.failing_since or event.ended_at
    prefix = _of_job(event.job.id)
    query = sa.select(CronOutbox.id).where(
        # A range, which finds the job's few rows by the unique index on `cause`.
        CronOutbox.cause >= prefix,
        CronOutbox.cause < prefix + "~",
        CronOutbox.kind.in_((MessageKind.FAILURE, MessageKind.DEAD_LETTER)),
        CronOutbox.created_at >= since,
    )
    return session.scalar(query.limit(1)) is not None


def _of_job(job_id: int) -> str:
    return f"job {job_id}:"


# -- out of the outbox ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Letter:
    id: int
    channel: str
    target: str
    payload: Any
    """An object; whatever somebody wrote into the table by hand, JSON or not."""
    attempts: int


_Result = str | DeliveryFailed
"""How sending ended: a note about who did not get it (mostly empty), or why nobody did."""


def deliver(sessions: Callable[[], Session], settings: Settings, worker_id: str, limit: int = 20) -> int:
    """Send due messages, at most `limit` and one for each target; returns how many were tried.

    Call it again at once while it returns more than 0. Takes up to GIVE_UP_SECONDS, so it wants a thread of its
    own. A channel that is slow or dead, or a row that makes no sense, raises nothing and holds up no other
    target; only the database's own errors come through.
    """
    with sessions() as session:
        letters = _claim(session, worker_id, limit)
        for letter, result in _send_all(settings, letters):
            _note(session, letter, worker_id, result)
    return len(letters)


_OLDEST_DUE = (
    sa.select(sa.func.min(CronOutbox.id).label("id"))
    .where(CronOutbox.status.in_(UNSENT), CronOutbox.due_time <= sa.bindparam("now"))
    # One for each target: a hundred messages for a dead one must not stand before the others.
    .group_by(CronOutbox.channel, CronOutbox.target)
    .order_by(sa.func.min(CronOutbox.due_time))
    .limit(sa.bindparam("most"))
)


def _claim(session: Session, worker_id: str, limit: int) -> list[_Letter]:
    now = db.now(session)
    ids = session.scalars(_OLDEST_DUE, {"now": now, "most": limit}).all()
    return _take(session, ids, worker_id, now) if ids else []


@transactional
def _take(session: Session, ids: Collection[int], worker_id: str, now: datetime) -> list[_Letter]:
    rows = session.execute(
        sa.select(
            CronOutbox.id,
            CronOutbox.channel,
            CronOutbox.target,
            CronOutbox.payload,
            CronOutbox.attempts,
        )
        .where(CronOutbox.id.in_(ids))
        .order_by(CronOutbox.id)
    )
    letters = []
    for row in rows.all():
        # While it is being sent, `due_time` says when it may be taken from a worker that died over it.
        take = (
            sa.update(CronOutbox)
            .where(
                CronOutbox.id == row.id,
                CronOutbox.status.in_(UNSENT),
                CronOutbox.due_time <= now,
                CronOutbox.attempts == row.attempts,
            )
            .values(
                status=MessageStatus.SENDING,
                locked_by=worker_id,
                attempts=row.attempts + 1,
                due_time=now + CLAIM_HOLDS,
            )
        )
        if hits(session, take):
            letters.append(_Letter(row.id, row.channel, row.target, row.payload, row.attempts + 1))
    return letters


def _send_all(settings: Settings, letters: Sequence[_Letter]) -> Iterator[tuple[_Letter, _Result]]:
    """Send side by side; results in the order they come, each at the latest after GIVE_UP_SECONDS."""
    results: SimpleQueue[tuple[_Letter, _Result]] = SimpleQueue()

    def send(letter: _Letter) -> None:
        results.put((letter, _send(settings, letter.channel, letter.target, letter.payload)))

    waiting = {letter.id: letter for letter in letters}
    deadline = time.monotonic() + GIVE_UP_SECONDS
    for letter in letters:
        Thread(target=send, args=(letter,), name=f"notify-{letter.id}", daemon=True).start()
    while waiting:
        try:
            letter, result = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            break
        del waiting[letter.id]
        yield letter, result
    for letter in waiting.values():
        yield letter, DeliveryFailed(f"no answer within {GIVE_UP_SECONDS:g} s")


def _send(settings: Settings, channel: str, target: str, payload: Any) -> _Result:
    """Never raises: whatever goes wrong with one message is that message's result."""
    try:
        if channel not in set(Channel):
            return DeliveryFailed(f"unknown channel {channel!r}", permanent=True)
        content = _content(payload, settings)
        match Channel(channel):
            case Channel.SLACK:
                post_json(target, _slack(content), settings)
                return ""
            case Channel.EMAIL:
                return _send_email(target, content, settings)
            case never:
                assert_never(never)
    except DeliveryFailed as failure:
        return failure
    except Exception as error:
        log.exception("a message by %s could not be made", channel)
        return DeliveryFailed(f"{type(error).__name__}: {error}")


def _about(letter: _Letter) -> dict[str, int]:
    """What a line of the log about a message carries."""
    return {"letter": letter.id}


@transactional
def _note(session: Session, letter: _Letter, worker_id: str, result: _Result) -> None:
    now = db.now(session)
    values: dict[str, Any] = {"locked_by": None}
    if isinstance(result, str):
        values |= {
            "status": MessageStatus.SENT,
            "sent_at": now,
            "due_time": now,
            "last_error": result[:500] or None,
        }
    elif result.permanent or letter.attempts >= MAX_TRIES:
        values |= {"status": MessageStatus.DEAD, "due_time": now, "last_error": str(result)[:500]}
        log.error(
            "message %d by %s is not tried again: %s", letter.id, letter.channel, result, extra=_about(letter)
        )
    else:
        wait = max(_backoff(letter.attempts), timedelta(seconds=result.retry_after))
        values |= {"status": MessageStatus.PENDING, "due_time": now + wait, "last_error": str(result)[:500]}
        text = "message %d by %s not sent, next try in %s: %s"
        log.warning(text, letter.id, letter.channel, wait, result, extra=_about(letter))
        _hold_back(session, letter, now, max(CHANNEL_PAUSE, timedelta(seconds=result.retry_after)))
    session.execute(
        sa.update(CronOutbox)
        .where(
            CronOutbox.id == letter.id,
            CronOutbox.status == MessageStatus.SENDING,
            CronOutbox.locked_by == worker_id,
            CronOutbox.attempts == letter.attempts,
        )
        .values(**values)
    )


def _hold_back(session: Session, letter: _Letter, now: datetime, pause: timedelta) -> None:
    """Let the other messages of a target that just failed wait, at no cost in tries."""
    session.execute(
        sa.update(CronOutbox)
        .where(
            CronOutbox.status == MessageStatus.PENDING,
            CronOutbox.due_time <= now,
            CronOutbox.channel == letter.channel,
            CronOutbox.target == letter.target,
        )
        .values(due_time=now + pause)
    )


def _backoff(attempts: int) -> timedelta:
    """30 s, 1 min, 2 min ... 1 h: ten tries take a little over three hours."""
    return min(LONGEST_DELAY, FIRST_DELAY * (1 << (attempts - 1)))


@transactional
def note_test(session: Session, channel: str, target: str, actor: Actor) -> None:
    """Write down that somebody sends a test message: it goes to whom they chose, in our name."""
    address = TARGETS[Channel(channel)]
    audit.record(session, actor, "test_message", ("channel", channel), after={address: target})


def test_channel(settings: Settings, channel: str, target: str) -> str | None:
    """Send a test message now; returns what went wrong, or None. Takes up to GIVE_UP_SECONDS."""
    letter = _Letter(0, channel, target.strip(), {"kind": MessageKind.TEST}, 1)
    for _, result in _send_all(settings, [letter]):
        return str(result) or None
    return None


# -- words ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Content:
    """A message in words, before any markup."""

    mark: str
    title: str
    facts: list[tuple[str, str]]
    output: str
    link: str


MARKS = {
    MessageKind.FAILURE: ":x:",
    MessageKind.DEAD_LETTER: ":no_entry:",
    MessageKind.RECOVERY: ":white_check_mark:",
    MessageKind.TEST: ":bell:",
}


def _content(facts: Mapping[str, Any], settings: Settings) -> _Content:
    kind = MessageKind(facts["kind"])
    root = settings.public_url.rstrip("/")
    if kind is MessageKind.TEST:
        title = "Test message from kytecron: this channel works"
        return _Content(MARKS[kind], title, [], "", root)
    lines = [
        ("Why", facts["reason"]),
        ("Error", facts["error"] if facts["error"] not in facts["reason"] else ""),
        ("Attempt", f"{facts['attempt']} of {facts['attempts']}" if kind is not MessageKind.RECOVERY else ""),
        ("In a row", f"{facts['failures']} failures" if facts["failures"] > 1 else ""),
        ("Version", str(facts["version"] or "")),
        ("When", facts["at"]),
    ]
    return _Content(
        mark=MARKS[kind],
        title=_title(facts),
        facts=[(label, value) for label, value in lines if value],
        output=facts["output"] if kind is not MessageKind.RECOVERY else "",
        link=f"{root}/executions/{facts['execution']}" if root else "",
    )


def _title(facts: Mapping[str, Any]) -> str:
    job = facts["job"]
    if facts["kind"] == MessageKind.RECOVERY:
        return f"{job} works again, after {in_words(facts['down_seconds'], parts=3)}"
    if facts["kind"] == MessageKind.DEAD_LETTER:
        return f"{job} was moved to the dead letter queue: it will not run until somebody recovers it"
    return f"{job} {ENDED[facts['status']]}"


def _one_line(text: str | None) -> str:
    return " ".join(_readable(text or "").split())


def _readable(text: str) -> str:
    """Without colour codes, control characters and what UTF-8 cannot say: every channel can carry the rest."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).encode("utf-8", "replace").decode()
    return "".join(map(_readable_char, text))


def _readable_char(char: str) -> str:
    if char.isprintable() or char in "\n\t":
        return char
    return " " if char.isspace() else ""


# -- Slack ---------------------------------------------------------------------------------------------------


def _slack(content: _Content) -> dict[str, Any]:
    """`text` for phones and for servers that only imitate Slack, `blocks` for Slack itself."""
    lines = [f"{content.mark} *{_mrkdwn(content.title)}*"]
    lines += [f"{label}: {_mrkdwn(value)}" for label, value in content.facts]
    if content.link:
        lines.append(f"<{_mrkdwn(content.link)}|Open in kytecron>")
    text = "\n".join(lines)
    blocks = [_section(text)]
    if content.output.strip():
        blocks.append(_section(_fenced(content.output)))
    return {"text": text, "blocks": blocks}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _mrkdwn(text: str) -> str:
    """The beginning of `text`, Slack's three control characters escaped: it cannot become a link or call a channel."""
    escaped = _escaped(text)
    if len(escaped) <= SLACK_LINE:
        return escaped
    return re.sub("&[a-z]{0,3}$", "", escaped[:SLACK_LINE]) + "…"


def _fenced(output: str) -> str:
    """The end of `output` in a block of code that it cannot close."""
    text = _escaped(output.replace("```", "'''"))
    return f"```{re.sub('^[a-z]{0,3};', '', text[-SLACK_BLOCK:])}```"


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


# -- email ---------------------------------------------------------------------------------------------------


def _send_email(target: str, content: _Content, settings: Settings) -> str:
    """Send one mail to all of `target`'s addresses; returns a note on those that the server refused."""
    if not settings.smtp_host:
        raise DeliveryFailed("no mail server is set (KYTECRON_SMTP_HOST)", permanent=True)
    mail = _mail(_addresses(target), content, settings)
    try:
        refused = _submit(mail, settings)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise DeliveryFailed(
            _refusals(error.recipients), permanent=all(code >= 500 for code in codes)
        ) from None
    except smtplib.SMTPAuthenticationError as error:
        # Not the message's fault: whoever changed the password will notice and set it here too.
        raise DeliveryFailed(f"the mail server refused our password: {_said(error.smtp_error)}") from None
    except smtplib.SMTPResponseException as error:
        raise DeliveryFailed(
            f"the mail server answered {error.smtp_code} {_said(error.smtp_error)}",
            permanent=error.smtp_code >= 500,
        ) from None
    except (OSError, smtplib.SMTPException) as error:
        raise DeliveryFailed(f"the mail server: {error or type(error).__name__}") from None
    return _refusals(refused)


def _submit(mail: EmailMessage, settings: Settings) -> dict[str, tuple[int, bytes]]:
    implicit = settings.smtp_port == IMPLICIT_TLS_PORT
    connect = smtplib.SMTP_SSL if implicit else smtplib.SMTP
    client = connect(settings.smtp_host, settings.smtp_port, timeout=SMTP_SECONDS)
    try:
        if settings.smtp_starttls and not implicit:
            client.starttls(context=ssl.create_default_context())
        if settings.smtp_user:
            client.login(settings.smtp_user, settings.smtp_password)
        refused = client.send_message(mail)
        # It is the server's now: a failing goodbye must not send it again.
        with suppress(OSError, smtplib.SMTPException):
            client.quit()
        return refused
    finally:
        client.close()


def _addresses(target: str) -> list[Address]:
    try:
        found = [Address(addr_spec=part.strip()) for part in target.split(",") if part.strip()]
    except (ValueError, MessageError, IndexError) as error:
        raise DeliveryFailed(f"not an e-mail address: {error}", permanent=True) from None
    if not found:
        raise DeliveryFailed("no e-mail address", permanent=True)
    return found


def _mail(addresses: Sequence[Address], content: _Content, settings: Settings) -> EmailMessage:
    """The message library refuses line breaks in headers; the texts have none to begin with."""
    mail = EmailMessage()
    mail["Subject"] = f"[kytecron] {content.title}"[:200]
    mail["From"] = settings.mail_from
    mail["To"] = addresses
    mail["Date"] = formatdate()
    mail["Message-ID"] = make_msgid("kytecron", settings.mail_from.rpartition("@")[2].strip("<> ") or None)
    mail["Auto-Submitted"] = "auto-generated"  # no out-of-office replies, please (RFC 3834)
    mail.set_content(_plain(content))
    mail.add_alternative(_html(content), subtype="html")
    return mail


def _plain(content: _Content) -> str:
    lines = [content.title, "", *(f"{label}: {value}" for label, value in content.facts)]
    if content.link:
        lines += ["", content.link]
    if content.output.strip():
        lines += ["", "Last output:", "", content.output]
    return "\n".join(lines) + "\n"


def _html(content: _Content) -> str:
    rows = "".join(
        f'<tr><td style="padding-right:1em;color:#666">{label}</td><td>{html.escape(value)}</td></tr>'
        for label, value in content.facts
    )
    link = html.escape(content.link)
    parts = [
        f"<h3>{html.escape(content.title)}</h3>",
        f"<table>{rows}</table>" if rows else "",
        f'<p><a href="{link}">Open in kytecron</a></p>' if link else "",
        f"<pre>{html.escape(content.output)}</pre>" if content.output.strip() else "",
    ]
    return "\n".join(part for part in parts if part)


def _refusals(refused: Mapping[str, tuple[int, bytes]]) -> str:
    return "; ".join(
        f"{address} refused: {code} {_said(reply)}" for address, (code, reply) in refused.items()
    )


def _said(reply: bytes | str) -> str:
    return " ".join((reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply).split())
