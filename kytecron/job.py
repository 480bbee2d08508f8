"""What the author of a job uses: the base class, and the two exceptions that end a run on purpose.

    class Report(CronJobBase):
        def execute(self):
            self.log("hello")

Standard library only and cheap to import: every job process carries it. A job can be tested like any other
class: outside a worker (`Report().execute()`) it has an empty state and no secrets, and `self.api` says no.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import Any, Protocol

    class Worker(Protocol):
        """How a job talks to the worker that runs it (see engine/child.py)."""

        def tell(self, message: dict[str, Any]) -> None: ...

        def call(self, method: str, arguments: dict[str, Any]) -> Any: ...

        def hide(self, text: str) -> str: ...


class PermanentFailure(Exception):
    """Raise it to fail without retries: the job goes to the dead letter queue at once."""


class SkipRun(Exception):
    """Raise it, with the reason, to end the run as skipped: neither a success nor a failure."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)


class ApiError(RuntimeError):
    """What `self.api` was asked for could not be done; the message says why."""


class CronJobBase:
    """A job: extend it, write `execute`, and `set_up` and `tear_down` where needed."""

    _run: Run

    def __new__(cls, *args: Any, **kwargs: Any) -> CronJobBase:
        # Here and not in __init__, which a job may define without calling this one.
        self = super().__new__(cls)
        self._run = _current or Run(job=JobInfo(0, cls.__name__))
        return self

    def set_up(self) -> None:
        """Called before `execute`. When it raises, `execute` is not called and the run has failed."""

    def execute(self) -> Any:
        """The work. What it returns (text, or anything that JSON can hold) is kept as the run's result."""
        raise NotImplementedError(f"{type(self).__name__} has no execute method")

    def tear_down(self) -> None:
        """Called at the end, also when `set_up` or `execute` raised and when the run is being stopped.

        Nothing interrupts it, but a run that is being stopped has 10 seconds (the worker's setting) for it.
        """

    def log(self, *values: object, sep: str | None = " ") -> None:
        """Print `values` as `print` does, with the time in front of them (UTC, milliseconds)."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        text = (" " if sep is None else sep).join(map(str, values))
        print(f"{stamp}.{int(now % 1 * 1000):03}Z {text}", flush=True)

    def heartbeat(self, seconds: float = 300) -> bool:
        """Ask for more time: the run may now last until `seconds` from this moment.

        Returns False, and moves nothing, when the run is being stopped or its worker has lost its claim on
        it, so that another worker may start it again: stop what must not be done twice.
        """
        if not 0 < seconds < 1e9:
            raise ValueError(f"heartbeat(seconds={seconds!r}): write a number of seconds above 0")
        return self._run.heartbeat(seconds)

    def progress(self, percent: float, note: str = "") -> None:
        """Show how far the run has come, from 0 to 100, with a short note on what it is doing."""
        self._run.progress(min(100.0, max(0.0, float(percent))), str(note))

    @property
    def job(self) -> JobInfo:
        """This job: `id`, `name`, `version` of the code that runs, `parameters` of this run."""
        return self._run.job

    @property
    def execution(self) -> ExecutionInfo:
        """This run: `id`, `scheduled_time`, `attempt` (1 for the first), `previous_status`."""
        return self._run.execution

    @property
    def api(self) -> Api:
        """Other jobs: look one up, trigger one, read its latest result."""
        return self._run.api

    @property
    def state(self) -> dict[str, Any]:
        """A small dict kept from one run to the next. Changes are saved only when the run completes."""
        return self._run.state

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        if not isinstance(value, dict):
            raise TypeError(f"self.state must be a dict, not {type(value).__name__}")
        self._run.state = value

    @property
    def secrets(self) -> Secrets:
        """The secrets granted to this job, by name. Their values are masked in everything it prints."""
        return self._run.secrets


NOTE_LIMIT = 4_000
"""Characters of a progress note that are told, its secrets masked. The worker keeps 500 of them."""


class JobInfo:
    """The job that runs."""

    __slots__ = ("id", "name", "parameters", "version")

    def __init__(
        self, job_id: int, name: str, version: int = 0, parameters: dict[str, Any] | None = None
    ) -> None:
        self.id = job_id
        self.name = name
        self.version = version
        self.parameters = parameters or {}


class ExecutionInfo:
    """The run in which the job finds itself."""

    __slots__ = ("attempt", "id", "previous_status", "scheduled_time")

    def __init__(
        self,
        execution_id: int = 0,
        scheduled_time: datetime | None = None,
        attempt: int = 1,
        previous_status: str | None = None,
    ) -> None:
        self.id = execution_id
        self.scheduled_time = scheduled_time
        """The slot that this run serves, in UTC; not the moment at which it started."""
        self.attempt = attempt
        self.previous_status = previous_status
        """How the attempt before this one ended (`failed`, `timeout`, `lost`); None on the first."""


class Secrets(Mapping[str, str]):
    """Secrets by name, read-only. Its repr shows the names alone."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"secret {name!r} is not granted to this job") from None

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<secrets: {', '.join(self._values) or 'none'}>"


class Api:
    """Other jobs, asked for through the worker. Each method raises ApiError when the answer is no."""

    __slots__ = ("_worker",)

    def __init__(self, worker: Worker | None) -> None:
        self._worker = worker

    def find_job(self, job: int | str) -> dict[str, Any] | None:
        """The job with this id or name, or None."""
        found: dict[str, Any] | None = self._call("find_job", job=job)
        return found

    def trigger(self, job: int | str, parameters: dict[str, Any] | None = None, note: str = "") -> int:
        """Start a run of another job, named by id or name; returns the id of the new execution.

        A job may start 300 a minute, all its runs together. Secrets are masked in `note` and refused in `parameters`,
        which every viewer reads: grant the secret to the other job.
        """
        execution_id: int = self._call("trigger", job=job, parameters=parameters, note=note)
        return execution_id

    def latest_result(self, job: int | str) -> dict[str, Any] | None:
        """The last completed run of a job (for example a parent of this one) with its result, or None."""
        latest: dict[str, Any] | None = self._call("latest_result", job=job)
        return latest

    def _call(self, method: str, **arguments: Any) -> Any:
        if self._worker is None:
            raise ApiError("self.api works only while the job runs under a worker")
        return self._worker.call(method, arguments)


class Run:
    """One run as the job sees it. Without a worker it stands alone, so that a job can be unit-tested."""

    def __init__(
        self,
        job: JobInfo,
        execution: ExecutionInfo | None = None,
        state: dict[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.job = job
        self.execution = execution or ExecutionInfo()
        self.state = {} if state is None else state
        self.secrets = Secrets(secrets or {})
        self.api = Api(worker)
        self._worker = worker
        self._shown: tuple[float, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A job that is handed to a process which it starts keeps all but the worker, which listens to one process only.
        return Run, (self.job, self.execution, self.state, dict(self.secrets))

    def heartbeat(self, seconds: float) -> bool:
        return True if self._worker is None else self._worker.call("heartbeat", {"seconds": seconds})

    def progress(self, percent: float, note: str) -> None:
        # A job that calls this for each of a million rows sends a thousand messages, not a million.
        shown = (round(percent, 1), note)
        if self._worker is not None and shown != self._shown:
            self._shown = shown
            self._worker.tell({"progress": shown[0], "note": self._worker.hide(note)[:NOTE_LIMIT]})


_current: Run | None = None


def enter(run: Run) -> None:
    """From now on this process is `run`: the jobs that are created in it belong to it."""
    global _current
    _current = run
