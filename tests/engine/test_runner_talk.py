"""What a job and its worker say to each other while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable

from kytecron.core.states import Status
from kytecron.engine.runner import COMPILED_BYTES, Call, Ended, Progressed, RunRequest, _Compiled
from tests.runs import Runs, wait_until


def test_a_job_knows_itself_and_its_run(runs: Runs) -> None:
    body = """
    slot = self.execution.scheduled_time
    return [
        self.job.id, self.job.name, self.job.version, self.job.parameters, self.execution.id,
        slot.isoformat(), str(slot.tzinfo), self.execution.attempt, self.execution.previous_status,
    ]
    """
    outcome = runs.run(
        body,
        job_name="Äpfel",
        parameters={"day": 3, "names": ["é"]},
        scheduled_time="2026-03-01T02:30:00.5",
        attempt=2,
        previous_status=Status.LOST,
    )
    slot = "2026-03-01T02:30:00.500000+00:00"
    assert outcome.result == [12, "Äpfel", 3, {"day": 3, "names": ["é"]}, 1, slot, "UTC", 2, "lost"]


def test_code_larger_than_any_socket_buffer_arrives(runs: Runs) -> None:
    code = f"TEXT = {'x' * 3_000_000!r}\nclass Job(CronJobBase):\n    def execute(self): return len(TEXT)"
    assert runs.run(code).result == 3_000_000


def test_progress_is_reported_and_only_the_latest_waits_to_be_collected(runs: Runs) -> None:
    body = """
    for row in range(2000):
        self.progress(row / 20, f"row {row}")
    self.progress(250)
    self.progress(-1, "x" * 900)
    """
    execution_id = runs.start(body)
    runs.outcome(execution_id)
    seen = runs.of(Progressed, execution_id)
    assert [seen[-1].percent, len(seen[-1].note)] == [0, 500]
    kinds = [type(event) for event in runs.events]
    assert kinds.index(Progressed) < kinds.index(Ended)


def test_unchanged_progress_is_not_told_again(runs: Runs) -> None:
    outcome = runs.run("for row in range(300_000): self.progress(100 * row / 300_000)")
    assert outcome.status is Status.COMPLETED
    assert outcome.duration_ms is not None
    assert outcome.duration_ms < 5000


def test_calls_of_the_api_are_answered(runs: Runs) -> None:
    body = """
    found = self.api.find_job("nightly")
    run = self.api.trigger(found["id"], {"day": 1}, note="because")
    try:
        self.api.latest_result(99)
    except RuntimeError as error:
        return [found, run, type(error).__name__, str(error)]
    """
    execution_id = runs.start(body)
    answers = [{"result": {"id": 7}}, {"result": 41}, {"error": "no job 99"}]
    for answer in answers:
        call = runs.wait_for(Call, execution_id)
        runs.events.remove(call)
        runs.runner.reply(execution_id, call.call_id, **answer)
        answer["asked"] = (call.method, call.arguments)
    assert runs.outcome(execution_id).result == [{"id": 7}, 41, "ApiError", "no job 99"]
    assert [answer["asked"] for answer in answers] == [
        ("find_job", {"job": "nightly"}),
        ("trigger", {"job": 7, "parameters": {"day": 1}, "note": "because"}),
        ("latest_result", {"job": 99}),
    ]
    runs.runner.reply(execution_id, 99, result="too late")


def test_threads_of_a_job_may_call_at_once(runs: Runs) -> None:
    body = """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda n: self.heartbeat(n + 1), range(50)))
    """
    assert runs.run(body, timeout_seconds=30).result == [True] * 50


def test_a_call_that_is_interrupted_leaves_the_channel_usable(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs(kill_grace_seconds=10)
    code = """
    import os, time
    class Job(CronJobBase):
        def execute(self):
            try:
                self.api.find_job("answered too late")
            finally:
                print("interrupted")
        def tear_down(self):
            while not os.path.exists("../../answered"):
                time.sleep(0.005)
            print(self.api.find_job("again"), self.heartbeat())
    """
    execution_id = runs.start(code)
    first = runs.wait_for(Call, execution_id)
    runs.runner.stop(execution_id, Status.CANCELLED, "cancelled")
    wait_until(lambda: runs.runner.take_output(execution_id))
    runs.runner.reply(execution_id, first.call_id, result="too late")
    (runs.directory / "answered").touch()
    runs.events.remove(first)
    runs.runner.reply(execution_id, runs.wait_for(Call, execution_id).call_id, result="in time")
    outcome = runs.outcome(execution_id)
    assert (outcome.status, outcome.output) == (Status.CANCELLED, "in time False\n")


def test_the_state_is_kept_only_when_the_run_completes_and_changed_it(runs: Runs) -> None:
    add = "self.state['seen'] = self.state.get('seen', 0) + 1"
    assert runs.run(add, state={"seen": 2}).state == {"seen": 3}
    assert runs.run("self.state = {'new': True}", state={"seen": 2}).state == {"new": True}
    assert runs.run("self.state.clear()", state={"seen": 2}).state == {}
    assert runs.run("self.state['seen'] = 2", state={"seen": 2}).state is None
    assert runs.run("self.state['a'].append(1)", state={"a": []}).state == {"a": [1]}
    assert runs.run(f"{add}\nraise ValueError").state is None
    assert runs.run(f"{add}\nraise SkipRun('x')").state is None


def test_a_state_that_cannot_be_kept_fails_the_run(runs: Runs) -> None:
    not_json = runs.run("self.state['when'] = {1, 2}")
    assert not_json.status is Status.FAILED
    assert not_json.error == "self.state cannot be kept: Object of type set is not JSON serializable"
    too_much = runs.run("self.state['log'] = 'x' * 70_000")
    assert too_much.error == "self.state cannot be kept: it takes 70,011 characters of at most 65,536"
    too_deep = runs.run("for _ in range(31): self.state = {'in': [self.state]}")
    assert too_deep.error == "self.state cannot be kept: it is nested more than 31 levels deep"
    assert "TypeError: self.state must be a dict" in (runs.run("self.state = []").error or "")


def test_secrets_are_read_only_and_named_when_missing(runs: Runs) -> None:
    body = """
    try:
        self.secrets["other"]
    except KeyError as error:
        missing = str(error)
    try:
        self.secrets["token"] = "x"
    except TypeError:
        pass
    return [missing, len(self.secrets["token"]), sorted(self.secrets), "other" in self.secrets, repr(self.secrets)]
    """
    result = runs.run(body, secrets={"token": "hunter22"}).result
    assert result == [
        "\"secret 'other' is not granted to this job\"",
        8,
        ["token"],
        False,
        "<secrets: token>",
    ]
    assert "granted" in (runs.run("self.secrets['nothing']").error or "")


def test_nonsense_on_the_channel_does_no_harm(runs: Runs) -> None:
    """A job that writes to the socket itself, on purpose or by accident."""
    nonsense = [
        b"\xff\xfe not json\n",
        b"[1, 2]\n{}\nnull\n",
        b'{"end": "completed"}\n{"end": 1, "at": 0}\n{"progress": "x", "note": 1}\n',
        b'{"call": 77, "method": "heartbeat", "arguments": {"seconds": NaN}}\n',
        b'{"call": "x", "method": 7, "arguments": []}\n',
        b"[" * 100_000 + b"\n",
        b'{"half": ',
    ]
    body = f"for line in {nonsense!r}: os.write(4095, line)\nprint('written')\nreturn self.heartbeat()"
    outcome = runs.run(body)
    assert (outcome.status, outcome.result, outcome.output) == (Status.COMPLETED, True, "written\n")


def test_an_endless_line_on_the_channel_is_not_kept(runs: Runs) -> None:
    outcome = runs.run("for _ in range(100): os.write(4095, b'x' * 100_000)\nreturn 'fine'")
    assert outcome.result == "fine"


def test_the_job_may_print_what_looks_like_a_report(runs: Runs) -> None:
    outcome = runs.run('print(\'{"end": "completed", "at": 0}\')\nraise ValueError(\'no\')')
    assert outcome.error == "ValueError: no"
    assert json.loads(outcome.output)["end"] == "completed"


def test_code_is_compiled_once_per_version_and_traces_stay_the_same(runs: Runs) -> None:
    code = """
    class Job(CronJobBase):
        def execute(self):
            self.state["n"] = self.state.get("n", 0) + {step}
            {then}
    """
    failing = code.format(step=1, then="raise ValueError('no')")
    first, second = runs.run(failing), runs.run(failing)
    assert first.stack_trace == second.stack_trace
    assert "raise ValueError('no')" in (second.stack_trace or "")
    request = runs.request(failing)
    assert runs.runner._compiled.get(request)
    # The same version number with other code (a test, a restored database) must not run what was compiled before.
    assert runs.run(code.format(step=10, then="return self.state['n']")).result == 10
    assert runs.runner._compiled.get(request) is None


def test_compiled_code_is_kept_within_bounds() -> None:
    kept = _Compiled()
    requests = [
        RunRequest(execution_id=n, job_id=n, job_name="x", version=1, code=f"# {n}") for n in range(20)
    ]
    for request in requests:
        kept.put(request, "00" * (COMPILED_BYTES // 10))
    assert [kept.get(request) is not None for request in requests] == [False] * 10 + [True] * 10
    kept.put(requests[-1], "11")
    assert kept.get(requests[-1]) == bytes(COMPILED_BYTES // 10)
    kept.put(requests[0], "no hexadecimal")
    assert kept.get(requests[0]) is None
