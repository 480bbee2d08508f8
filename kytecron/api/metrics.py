"""`/metrics` for Prometheus: figures that every process of the web application reads from the database.

Nothing is counted in a process, so that it does not matter which one answers, and a restart resets nothing.
No figure bears the name of a job: their number is bounded however many jobs there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from flask import Blueprint, Flask, Response, current_app, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ..core.choices import Role
from ..core.schedule import TZDATA_VERSION
from ..core.workers import WorkerState
from ..services.registry import VERSION
from ..store import db, figures
from ..views import workers
from . import errors
from .bodies import read_query
from .routing import Call, Nothing, caller

PATH = "/metrics"
ROLE = Role.VIEWER
"""Not open to whoever comes from this machine: behind a reverse proxy everybody does."""
WORKERS_KNOWN = timedelta(hours=1)
"""A worker that vanished is told of for so long."""
WORKER_STATES = [state for state in WorkerState if state is not WorkerState.STOPPED]


def register(app: Flask) -> None:
    """Add the address to `app`, beside the API: same tokens, same errors."""
    blueprint = Blueprint("metrics", __name__)

    def metrics() -> Response:
        call = caller(ROLE)
        read_query(Nothing)
        registry = CollectorRegistry()
        registry.register(_Scrape(call))
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return current_app.response_class(encode(registry), content_type=kind)

    blueprint.add_url_rule(PATH, view_func=metrics, methods=["GET"], provide_automatic_options=False)
    errors.register(blueprint, PATH)
    app.register_blueprint(blueprint)


class _Scrape(Collector):
    """The figures of one moment."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def describe(self) -> list[Metric]:
        """Nothing: asked when it is registered, which need not cost a look at the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every figure. Raises what the database raises."""
        call = self._call
        vitals = figures.vitals(call.session, call.now)
        today = figures.endings_of_day(call.session, call.now.date())
        yield InfoMetricFamily(
            "kytecron",
            "What answers",
            {"version": VERSION, "tzdata": TZDATA_VERSION, "database": db.kind(call.session)},
        )
        yield from _jobs(vitals)
        yield from _executions(vitals, today)
        yield from _workers(call)
        yield from _messages(vitals)


def _jobs(vitals: figures.Vitals) -> Iterator[Metric]:
    states = {"enabled": vitals.enabled, "disabled": vitals.disabled, "dead_letter": vitals.dead}
    yield _by("kytecron_jobs", "Jobs by state", "state", states)
    yield GaugeMetricFamily(
        "kytecron_jobs_failing", "Enabled jobs whose last runs have failed", vitals.failing
    )


def _executions(vitals: figures.Vitals, today: dict[str, int]) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "kytecron_executions",
        "Executions that ran to an ending; failed ones include lost ones",
        labels=["status"],
    )
    for status in ("completed", "failed", "timeout"):
        ended.add_metric([status], getattr(vitals, status))
    yield ended
    chains = CounterMetricFamily(
        "kytecron_chains",
        "Slots and other requests served, with all their attempts, by how they ended in the end",
        labels=["status"],
    )
    for status, number in (
        ("completed", vitals.completed),
        ("failed", vitals.chains_failed),
        ("timeout", vitals.chains_timeout),
        ("skipped", vitals.skipped),
    ):
        chains.add_metric([status], number)
    yield chains
    yield CounterMetricFamily(
        "kytecron_chains_recovered", "Chains that completed after a failed attempt", vitals.recovered
    )
    yield CounterMetricFamily(
        "kytecron_execution_seconds", "Time that these executions took together", vitals.duration_ms / 1000
    )
    yield _by(
        "kytecron_executions_today",
        "Executions that ended since midnight UTC, in every way there is",
        "status",
        today,
    )
    yield GaugeMetricFamily("kytecron_executions_running", "Executions that run now", vitals.running)
    pending = {"due": vitals.due, "later": vitals.later, "held": vitals.waiting}
    yield _by(
        "kytecron_executions_pending",
        "Executions that wait: may start now, have a time to come, wait for other executions",
        "state",
        pending,
    )
    yield GaugeMetricFamily(
        "kytecron_oldest_due_execution_seconds",
        "How long the execution that waits longest might have started",
        vitals.oldest_due,
    )
    yield GaugeMetricFamily(
        "kytecron_oldest_due_slot_seconds",
        "How long the oldest slot is over that no worker has noticed",
        vitals.oldest_slot,
    )
    yield GaugeMetricFamily(
        "kytecron_leases_stale", "Running executions whose worker let the lease run out", vitals.stale_locks
    )


def _workers(call: Call) -> Iterator[Metric]:
    known = workers.workers(call.session, call.now, WORKERS_KNOWN)
    states = [one.state for one in known]
    working = [one for one in known if one.state is WorkerState.ALIVE]
    force = workers.workforce(known)
    yield _by(
        "kytecron_workers",
        "Workers: alive, draining (stops when its runs have ended); within the last hour: silent (has not reported for "
        "as long as its lease), gone (its process has ended)",
        "state",
        {state: states.count(state) for state in WORKER_STATES},
    )
    yield GaugeMetricFamily(
        "kytecron_worker_slots",
        "Executions that the workers can run at once",
        force.capacity,
    )
    yield GaugeMetricFamily("kytecron_worker_slots_busy", "Of these, those in use", force.busy)
    yield GaugeMetricFamily(
        "kytecron_worker_clock_skew_seconds",
        "Largest difference between a worker's clock and the database's",
        max((abs(one.clock_skew_ms) for one in working), default=0) / 1000,
    )
    yield GaugeMetricFamily(
        "kytecron_workers_in_trouble",
        "Workers that cannot start runs, or not all: the workers page says why",
        sum(one.trouble is not None for one in working),
    )
    yield GaugeMetricFamily(
        "kytecron_workers_with_other_tzdata",
        "Workers whose time zones are of another version than those of the web application",
        sum(one.other_tzdata for one in working),
    )


def _messages(vitals: figures.Vitals) -> Iterator[Metric]:
    messages = {"waiting": vitals.messages_waiting, "given_up": vitals.messages_dead}
    yield _by("kytecron_messages", "Notifications that have not reached anybody", "state", messages)
    yield GaugeMetricFamily(
        "kytecron_oldest_due_message_seconds",
        "How long the notification that waits longest might have been sent",
        vitals.oldest_message,
    )


def _by(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
