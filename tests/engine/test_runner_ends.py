"""Every way in which a run can end is told apart and named."""

from __future__ import annotations

import signal

import pytest

from kytecron.core.states import Status
from tests.runs import Runs


def test_a_job_that_returns_completes_with_its_result(runs: Runs) -> None:
    outcome = runs.run("print('working'); return {'rows': 3, 'names': ['a', 'b']}")
    assert outcome.status is Status.COMPLETED
    assert outcome.result == {"rows": 3, "names": ["a", "b"]}
    assert outcome.exit_code == 0
    assert outcome.error is None
    assert outcome.output == "working\n"


@pytest.mark.parametrize(
    ("returned", "kept"),
    [
        ("'a text'", "a text"),
        ("None", None),
        ("{1, }", "{1}"),
        ("float('nan')", "nan"),
        (
            "object.__new__(type('Strange', (), {'__repr__': lambda self: 1 / 0}))",
            "<Strange that cannot be shown>",
        ),
        ("'nul \\0 and \\ud800'", "nul ␀ and \\ud800"),
    ],
)
def test_a_result_is_kept_as_json_or_as_its_repr(runs: Runs, returned: str, kept: object) -> None:
    outcome = runs.run(f"return {returned}")
    assert outcome.status is Status.COMPLETED
    assert outcome.result == kept


def test_a_long_result_is_cut_and_says_so(runs: Runs) -> None:
    assert runs.run("return 'x' * 100_000").result == "x" * 65_536 + "[... 34,464 characters cut ...]"
    assert runs.run("return ['x' * 100_000]").result.endswith("characters cut ...]")


def test_a_deeply_nested_result_completes(runs: Runs) -> None:
    outcome = runs.run("deep = []\nfor _ in range(500): deep = [deep]\nreturn deep")
    assert outcome.status is Status.COMPLETED
    assert "(nested too deeply)" in str(outcome.result)


def test_an_exception_fails_with_its_line_and_a_trace_that_shows_the_source(runs: Runs) -> None:
    outcome = runs.run("table = {}\nreturn table['missing']")
    assert outcome.status is Status.FAILED
    assert outcome.error == "KeyError: 'missing'"
    assert outcome.exit_code == 1
    assert not outcome.permanent
    assert outcome.stack_trace == (
        "Traceback (most recent call last):\n"
        '  File "<job 12 v3>", line 5, in execute\n'
        "    return table['missing']\n"
        "           ~~~~~^^^^^^^^^^^\n"
        "KeyError: 'missing'\n"
    )


def test_chained_exceptions_are_shown_without_frames_of_kytecron(runs: Runs) -> None:
    outcome = runs.run(
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('two\\nlines') from error"
    )
    assert outcome.error == "ValueError: two"
    assert outcome.stack_trace is not None
    assert "ZeroDivisionError" in outcome.stack_trace
    assert "direct cause" in outcome.stack_trace
    assert "child.py" not in outcome.stack_trace


def test_a_permanent_failure_says_so(runs: Runs) -> None:
    outcome = runs.run("raise PermanentFailure('the account is closed')")
    assert outcome.status is Status.FAILED
    assert outcome.permanent
    assert outcome.error == "PermanentFailure: the account is closed"


def test_a_skipped_run_carries_its_reason(runs: Runs) -> None:
    outcome = runs.run("raise SkipRun('nothing to do')")
    assert outcome.status is Status.SKIPPED
    assert outcome.skipped_reason == "nothing to do"
    assert outcome.error is None


@pytest.mark.parametrize(
    ("argument", "error", "code"),
    [
        ("3", "exited with status 3", 3),
        ("'no disk'", "exited with status 1: no disk", 1),
        ("256 + 7", "exited with status 7", 7),
    ],
)
def test_sys_exit_with_a_status_is_a_failure(runs: Runs, argument: str, error: str, code: int) -> None:
    outcome = runs.run(f"sys.exit({argument})")
    assert (outcome.status, outcome.error, outcome.exit_code) == (Status.FAILED, error, code)


@pytest.mark.parametrize("argument", ["", "0", "None"])
def test_sys_exit_without_a_status_completes(runs: Runs, argument: str) -> None:
    outcome = runs.run(f"sys.exit({argument})")
    assert (outcome.status, outcome.exit_code) == (Status.COMPLETED, 0)


@pytest.mark.parametrize(
    ("status", "error"),
    [(5, "exited with status 5"), (0, "exited with status 0 before execute returned")],
)
def test_os_exit_is_a_failure_with_its_status(runs: Runs, status: int, error: str) -> None:
    outcome = runs.run(f"print('before'); os._exit({status})")
    assert (outcome.status, outcome.error, outcome.exit_code) == (Status.FAILED, error, status)
    assert outcome.output == "before\n"


FATAL = sorted(
    number
    for number in signal.valid_signals()
    if number
    not in {
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),  # ignored by default
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),  # stop
        *(signal.SIGPIPE, signal.SIGXFSZ),  # ignored by Python
    }
)


def test_every_fatal_signal_is_named(runs: Runs) -> None:
    started = {number: runs.start(f"os.kill(os.getpid(), {int(number)}); time.sleep(30)") for number in FATAL}
    for number, execution_id in started.items():
        outcome = runs.outcome(execution_id)
        name = f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
        assert outcome.status is Status.FAILED
        assert outcome.error == f"killed by signal {int(number)}{name}"
        assert outcome.exit_code == 128 + number


def test_code_that_does_not_compile_fails_with_its_line(runs: Runs) -> None:
    outcome = runs.run("class Job(CronJobBase):\n    def execute(self) return 1\n")
    assert outcome.status is Status.FAILED
    assert outcome.error == "SyntaxError: expected ':' (<job 12 v3>, line 2)"
    assert "def execute(self) return 1" in (outcome.stack_trace or "")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("class Job: pass", "the code has no class that extends CronJobBase"),
        (
            "class A(CronJobBase): pass\nclass B(CronJobBase): pass",
            "the code has several classes that extend CronJobBase: A, B",
        ),
    ],
)
def test_code_without_the_one_class_fails_for_good(runs: Runs, code: str, error: str) -> None:
    outcome = runs.run(code)
    assert outcome.error == f"PermanentFailure: {error}"
    assert outcome.permanent


def test_a_class_that_another_one_extends_is_not_the_job(runs: Runs) -> None:
    code = """
    from kytecron import CronJobBase as Imported
    class Base(Imported):
        def execute(self):
            return self.name()
    class Job(Base):
        def name(self):
            return "leaf"
    """
    assert runs.run(code).result == "leaf"


def test_an_exception_at_import_and_one_in_the_constructor_fail(runs: Runs) -> None:
    assert runs.run("class Job(CronJobBase): pass\nimport no_such_module").error == (
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert runs.run("class Job(CronJobBase):\n    def __init__(self): self.x = 1 / 0").error == (
        "ZeroDivisionError: division by zero"
    )


def test_tear_down_runs_after_set_up_or_execute_raised(runs: Runs) -> None:
    code = """
    class Job(CronJobBase):
        def set_up(self):
            {set_up}
        def execute(self):
            print("execute")
            {execute}
        def tear_down(self):
            print("torn down")
    """
    after_set_up = runs.run(code.format(set_up="raise ValueError('early')", execute="pass"))
    assert (after_set_up.error, after_set_up.output) == ("ValueError: early", "torn down\n")
    after_execute = runs.run(code.format(set_up="pass", execute="raise ValueError('late')"))
    assert (after_execute.error, after_execute.output) == ("ValueError: late", "execute\ntorn down\n")
    after_skip = runs.run(code.format(set_up="raise SkipRun('not today')", execute="pass"))
    assert (after_skip.status, after_skip.output) == (Status.SKIPPED, "torn down\n")


def test_an_error_in_tear_down_does_not_hide_the_first_one(runs: Runs) -> None:
    code = """
    class Job(CronJobBase):
        def execute(self):
            {execute}
        def tear_down(self):
            raise OSError("cannot clean up")
    """
    both = runs.run(code.format(execute="raise PermanentFailure('first')"))
    assert both.error == "PermanentFailure: first"
    assert both.permanent
    assert both.stack_trace is not None
    assert both.stack_trace.index("first") < both.stack_trace.index("being torn down")
    assert "OSError: cannot clean up" in both.stack_trace
    alone = runs.run(code.format(execute="return 1"))
    assert (alone.status, alone.error) == (Status.FAILED, "OSError: cannot clean up")
    after_skip = runs.run(code.format(execute="raise SkipRun('x')"))
    assert (after_skip.status, after_skip.error) == (Status.FAILED, "OSError: cannot clean up")


def test_threads_and_exit_handlers_finish_before_the_run_is_over(runs: Runs) -> None:
    outcome = runs.run(
        """
        import atexit, threading
        atexit.register(lambda: print("exit handler"))
        threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
        return "returned first"
        """
    )
    assert outcome.result == "returned first"
    assert outcome.output == "thread\nexit handler\n"


def test_an_exception_that_cannot_be_shown_is_still_a_failure(runs: Runs) -> None:
    outcome = runs.run(
        """
        class Nasty(Exception):
            def __str__(self):
                raise RuntimeError("no")
        class Job(CronJobBase):
            def execute(self):
                raise Nasty()
        """
    )
    assert outcome.status is Status.FAILED
    assert outcome.error == "Nasty: (its message cannot be shown)"


def test_what_a_run_cost_is_recorded(runs: Runs) -> None:
    outcome = runs.run(
        "block = bytearray(50_000_000)\nwhile time.process_time() < 0.2: pass\ntime.sleep(0.1)"
    )
    assert outcome.duration_ms is not None
    assert outcome.cpu_ms is not None
    assert outcome.memory_peak_mb is not None
    assert 200 <= outcome.cpu_ms < outcome.duration_ms < 10_000
    assert 50 < outcome.memory_peak_mb < 90


def test_500_quick_runs_end_exactly_once_each(runs: Runs) -> None:
    requests = [
        runs.request("class Job(CronJobBase):\n    def execute(self): return self.execution.id")
        for _ in range(500)
    ]
    runs.runner.start_many(requests)
    for request in requests:
        assert runs.outcome(request.execution_id, 60).result == request.execution_id
    ended = [event.execution_id for event in runs.events if type(event).__name__ == "Ended"]
    assert sorted(ended) == [request.execution_id for request in requests]
    assert runs.runner.running == set()
