"""What a job can count on: a directory, a home, variables, processes that find its code, files written out."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import sys
import textwrap
import zipfile
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from kytecron.config import ROOT, Settings
from kytecron.core.errors import Invalid
from kytecron.core.states import Status
from kytecron.engine import shared
from kytecron.engine.forkserver import FEW_SPARES, SPARES
from kytecron.engine.runner import Ended, Refused
from tests.runs import Runs, children_of, wait_until
from tests.workers import WorkerProcess, working

OWN = """
    import concurrent.futures, dataclasses, multiprocessing, os, signal, sys, time

    @dataclasses.dataclass
    class Point:
        x: int

    class Pair:
        def __init__(self, point): self.point = point

    def moved(pair):
        return Pair(Point(pair.point.x + 1))

    def fails(number):
        raise PermanentFailure(f"no {number}")

    class Job(CronJobBase):
        factor = 3

        def times(self, number):
            return number * self.factor * self.job.parameters["by"]

        def execute(self):
"""


def with_own(execute: str) -> str:
    return textwrap.dedent(OWN) + textwrap.indent(textwrap.dedent(execute), " " * 8)


def test_the_first_job_of_the_api_page_runs(runs: Runs) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    code = json.loads(re.findall(r'"code": ("class (?:[^"\\]|\\.)*")', page)[0])
    outcome = runs.run(code, parameters={"region": "north"})
    assert outcome.status is Status.COMPLETED, outcome.error
    assert outcome.output.endswith("Z for north\n")


def test_log_prints_as_print_does(runs: Runs) -> None:
    outcome = runs.run(
        "self.log('a', 1, None); self.log(); self.log('a', 'b', sep=''); self.log('a', 'b', sep=None)"
    )
    assert re.findall(r"Z (.*)", outcome.output) == ["a 1 None", "", "ab", "a b"]


# --- processes


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_functions_and_classes_of_a_job_cross_into_its_processes(runs: Runs, context: str) -> None:
    code = with_own(f"""
        context = multiprocessing.get_context({context!r})
        pairs = [Pair(Point(1)), Pair(Point(2))]
        with context.Pool(2) as pool:
            pooled = [pair.point.x for pair in pool.map(moved, pairs)]
            bound = pool.map(self.times, [1, 2])
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
            executed = [pair.point.x for pair in executor.map(moved, pairs)]
            refused = executor.submit(fails, 7).exception()
        return [pooled, bound, executed, repr(refused)]
    """)
    outcome = runs.outcome(runs.start(code, parameters={"by": 5}), seconds=60)
    assert outcome.result == [[2, 3], [15, 30], [2, 3], "PermanentFailure('no 7')"], outcome.stack_trace


def test_joblib_and_tqdm_work_with_functions_of_a_job(runs: Runs) -> None:
    code = with_own("""
        import joblib, tqdm
        pairs = [Pair(Point(number)) for number in tqdm.tqdm(range(3))]
        tasks = [joblib.delayed(moved)(pair) for pair in pairs]
        with joblib.parallel_config("loky", n_jobs=2):
            return [pair.point.x for pair in joblib.Parallel()(tasks)]
    """)
    outcome = runs.outcome(runs.start(code), seconds=60)
    assert outcome.result == [1, 2, 3], outcome.stack_trace


def test_a_lambda_fails_there_as_in_plain_python(runs: Runs) -> None:
    outcome = runs.run(with_own("multiprocessing.get_context('spawn').Pool(1).map(lambda x: x, [1])"))
    assert outcome.status is Status.FAILED
    assert "pickle" in (outcome.error or "")


def test_the_code_of_a_job_is_for_its_owner_alone_and_written_only_when_needed(runs: Runs) -> None:
    body = """
    found = lambda: sorted(name for name in os.listdir("..") if name.endswith(".code"))
    before = found()
    import multiprocessing
    directory = "../" + found()[0]
    modes = [oct(os.stat(os.path.join(directory, name)).st_mode & 0o777) for name in (".", *os.listdir(directory))]
    return [before, sorted(set(modes))]
    """
    assert runs.run(body).result == [[], ["0o600", "0o700"]]


def test_what_a_job_shares_is_gone_with_it_and_its_tracker_is_not_killed_at_once(runs: Runs) -> None:
    body = """
    from multiprocessing import get_context, shared_memory
    memory = shared_memory.SharedMemory(create=True, size=1000)
    lock = get_context("spawn").Lock()
    with open("../../shared.tmp", "w") as file: file.write(f"{memory.name} sem.{lock._semlock.name.strip('/')}")
    os.rename("../../shared.tmp", "../../shared")
    if 'end': os._exit(0)
    """
    assert runs.run(body).status is Status.FAILED
    assert [name for name in runs.file("shared").split() if Path("/dev/shm", name).exists()] == []


SHARES = """
import multiprocessing, os, signal
from multiprocessing import get_context, resource_tracker, shared_memory

KEPT = []

def share(name=None):
    memory = shared_memory.SharedMemory(name, create=True, size=1000)
    lock = get_context("spawn").Lock()
    KEPT.extend([memory, lock])
    return [memory.name, "sem." + lock._semlock.name.strip("/")]

def kill_tracker():
    os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)

class Job(CronJobBase):
    def execute(self):
"""


def sharing(body: str) -> str:
    return SHARES + textwrap.indent(textwrap.dedent(body), " " * 8)


def left_in_shm(names: list[str]) -> list[str]:
    return [name for name in names if Path("/dev/shm", name).exists()]


@pytest.mark.parametrize("context", [None, "fork", "spawn", "forkserver"])
def test_what_a_run_shares_is_gone_with_it_also_when_it_has_killed_the_tracker(
    runs: Runs, context: str | None
) -> None:
    made = f"get_context({context!r}).Pool(1).apply(share)" if context else "[]"
    outcome = runs.outcome(runs.start(sharing(f"names = share() + {made}\nkill_tracker()\nreturn names")), 60)
    assert outcome.status is Status.COMPLETED, outcome.stack_trace
    assert len(outcome.result) == (4 if context else 2)
    assert left_in_shm(outcome.result) == []


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError"])
def test_what_a_run_shares_is_gone_however_it_ends(runs: Runs, end: str) -> None:
    told = "open('../../shared.tmp', 'w').write(' '.join(share())); os.rename('../../shared.tmp', '../../shared')"
    assert runs.run(sharing(f"{told}\nkill_tracker()\n{end}")).status is Status.FAILED
    assert left_in_shm(runs.file("shared").split()) == []


def test_locks_of_loky_are_gone_also_when_a_run_has_killed_its_tracker(runs: Runs) -> None:
    body = """
    from joblib.externals.loky.backend import get_context, resource_tracker
    lock = get_context("loky").Lock()
    os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
    return "sem." + lock._semlock.name.strip("/")
    """
    outcome = runs.run(body)
    assert outcome.status is Status.COMPLETED, outcome.stack_trace
    assert left_in_shm([outcome.result]) == []


def test_what_a_run_has_unregistered_and_what_is_others_stays(runs: Runs) -> None:
    others = shared_memory.SharedMemory(create=True, size=1000)
    body = """
    memory = shared_memory.SharedMemory(create=True, size=1000)
    resource_tracker.unregister(memory._name, "shared_memory")  # as those do who mean it to stay
    return [memory.name, *share()]
    """
    kept, *rest = runs.run(sharing(body)).result
    try:
        assert left_in_shm([kept, others.name, *rest]) == [kept, others.name]
    finally:
        Path("/dev/shm", kept).unlink()
        others.unlink()


def test_a_name_that_was_given_again_after_the_run_stays(tmp_path: Path) -> None:
    of_run, again = (Path(f"/dev/shm/kytecron-test-{os.getpid()}-{number}") for number in (1, 2))
    of_run.touch()
    (tmp_path / "shared").mkdir()
    for path in (of_run, again):
        (tmp_path / "shared" / path.name).touch()
    noted = (tmp_path / "shared").rename(tmp_path / "s1")
    wait_until(lambda: again.touch() or again.stat().st_ctime_ns > noted.stat().st_ctime_ns)
    house = os.open(tmp_path, os.O_RDONLY)
    try:
        shared.remove_noted(house, "s1")
        assert (of_run.exists(), again.exists()) == (False, True)
    finally:
        os.close(house)
        again.unlink()


def test_what_a_killed_job_shares_is_gone_with_it(runs: Runs) -> None:
    body = """
    from multiprocessing import shared_memory
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    memory = shared_memory.SharedMemory(create=True, size=1000)
    with open("../../shared.tmp", "w") as file: file.write(memory.name)
    os.rename("../../shared.tmp", "../../shared")
    time.sleep(600)
    """
    execution_id = runs.start(body)
    name = runs.file("shared")
    runs.runner.stop(execution_id, Status.CANCELLED, "cancelled")
    assert runs.outcome(execution_id).status is Status.CANCELLED
    assert not Path("/dev/shm", name).exists()


def test_what_a_job_leaves_behind_may_end_by_itself_before_it_is_killed(runs: Runs) -> None:
    body = """
    ready, told = os.pipe()
    if os.fork() == 0:
        def end(*_):
            open("../../ended", "w").write("well")
            os._exit(0)
        signal.signal(signal.SIGTERM, end)
        os.write(told, b"x")
        while True: time.sleep(1)
    os.read(ready, 1)
    """
    assert runs.run(body).status is Status.COMPLETED
    assert runs.file("ended") == "well"


def test_what_one_job_leaves_behind_holds_up_no_other(runs: Runs) -> None:
    stay = """
    ready, told = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(told, b"x")
        while True: time.sleep(1)
    os.read(ready, 1)
    """
    leaving = runs.start(stay)
    runs.pid(leaving)
    for _ in range(5):
        assert runs.run("return 1").result == 1
    assert runs.outcome(leaving).status is Status.COMPLETED


# --- files


WAYS_TO_END = {
    "return": ("return 1", Status.COMPLETED),
    "raise": ("raise ValueError", Status.FAILED),
    "exit": ("sys.exit(3)", Status.FAILED),
    "limit": ("time.sleep(600)", Status.TIMEOUT),
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_what_was_written_to_open_files_is_on_disk_however_the_run_ended(
    runs: Runs, tmp_path: Path, way: str
) -> None:
    ending, status = WAYS_TO_END[way]
    code = f"""
import csv, gzip, os, sys, time, zipfile
os.chdir({str(tmp_path)!r})
writer = csv.writer(open("module.csv", "w"))
packed = gzip.open("packed.gz", "wt")

class Keeper:
    def __init__(self): self.me, self.file = self, open("cycle", "w")

class Job(CronJobBase):
    def set_up(self):
        self.file = open("attribute", "wb")
        self.archive = zipfile.ZipFile("archive.zip", "w")
    def execute(self):
        Keeper().file.write("kept")
        writer.writerow([1, 2])
        packed.write("packed")
        self.file.write(b"bytes")
        self.archive.writestr("name", "content")
        local = open("local", "w")
        local.write("local")
        {ending}
"""
    assert runs.run(code, timeout_seconds=1 if way == "limit" else None).status is status
    read = {name: (tmp_path / name).read_text() for name in ("module.csv", "cycle", "attribute", "local")}
    assert read == {"module.csv": "1,2\n", "cycle": "kept", "attribute": "bytes", "local": "local"}
    assert gzip.decompress((tmp_path / "packed.gz").read_bytes()) == b"packed"
    assert zipfile.ZipFile(tmp_path / "archive.zip").read("name") == b"content"


def test_files_of_a_job_with_a_daemon_thread_are_written_out_too(runs: Runs, tmp_path: Path) -> None:
    body = f"""
    import threading
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    global kept
    kept = open({str(tmp_path / "kept")!r}, "w")
    kept.write("kept")
    """
    outcome = runs.run(body)
    assert (outcome.status, outcome.output) == (Status.COMPLETED, "")
    assert (tmp_path / "kept").read_text() == "kept"


# --- the scratch directory


def entries(runs: Runs) -> list[str]:
    """What there is below the directories of the fork servers, but for directories that wait for a run."""
    houses = [path for path in runs.directory.iterdir() if path.name.startswith("runs-")]
    return [str(path) for house in houses for path in house.iterdir() if path.name.startswith("x")]


def test_each_run_has_an_empty_directory_that_is_gone_afterwards(runs: Runs) -> None:
    body = "found = os.listdir(); open('mine', 'w').close(); return [found, os.getcwd()]"
    results = [runs.run(body).result for _ in range(3 * SPARES)]
    assert [found for found, _ in results] == [[]] * 3 * SPARES
    assert len({directory for _, directory in results}) == 3 * SPARES
    wait_until(lambda: not [path for _, path in results if Path(path).exists()] and not entries(runs))


def test_a_directory_that_a_run_has_only_looked_at_serves_another(runs: Runs) -> None:
    directories = {runs.run("os.listdir(); return os.getcwd()").result for _ in range(4 * SPARES)}
    assert len(directories) <= 2 * SPARES, "also those that were made a moment before"


@pytest.mark.parametrize(
    "touch", ["open('f', 'w').close(); os.remove('f')", "os.mkdir('d')", "os.chmod('.', 0o500)"]
)
def test_a_directory_that_a_run_has_touched_serves_no_other(runs: Runs, touch: str) -> None:
    directories = {runs.run(f"{touch}; return os.getcwd()").result for _ in range(3 * SPARES)}
    assert len(directories) == 3 * SPARES


HOSTILE = {
    "many files": "for n in range(100_000): os.close(os.open(f'f{n}', os.O_CREAT | os.O_WRONLY))",
    "a closed directory": "os.makedirs('d/e'); open('d/e/f', 'w').close(); os.chmod('d/e', 0); os.chmod('d', 0)",
    "itself closed": "open('f', 'w').close(); os.chmod('.', 0)",
    "a link to everything": "os.symlink('/', 'root'); os.symlink(OUTSIDE, 'outside')",
    "itself a link": "name = os.getcwd(); os.rename(name, name + '.away'); os.symlink(OUTSIDE, name)",
    "a long name": "open('n' * 255, 'w').close(); os.mkdir('m' * 255); open('m' * 255 + '/f', 'w').close()",
    "a deep tree": "\nfor n in range(3_000):\n    os.mkdir('d'); os.chdir('d')\nopen('f', 'w').close()",
    "strange names": "os.mkdir(b'\\xff\\n'); os.mkfifo('p'); open(b'\\xff\\n/\\xfe', 'w').close()",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_a_run_leaves_is_removed_and_holds_up_nothing(runs: Runs, tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    action = HOSTILE[what].replace("OUTSIDE", repr(str(outside)))
    outcome = runs.outcome(
        runs.start(
            f"import os\ndef leave():\n{textwrap.indent(action, '    ')}\n"
            "class Job(CronJobBase):\n    def execute(self):\n"
            "        here = os.getcwd()\n        leave()\n        return here\n"
        ),
        60,
    )
    assert outcome.status is Status.COMPLETED, outcome.stack_trace
    assert runs.run("return 1").result == 1
    wait_until(lambda: not os.path.lexists(outcome.result) and not entries(runs), 60)
    assert (outside / "precious").exists()


def test_what_a_killed_fork_server_left_is_removed_at_the_next_start(
    runs: Runs, make_runs: Callable[..., Runs]
) -> None:
    running = runs.start(
        "open('mine', 'w').close(); open('../../there', 'w').write(os.getcwd()); time.sleep(600)"
    )
    left = Path(runs.file("there"))
    os.kill(runs.runner.server_pid or 0, signal.SIGKILL)
    assert runs.outcome(running).status is Status.FAILED
    kept = runs.run("open('../../second', 'w').write(os.getcwd()); return os.getcwd()").result
    wait_until(lambda: not left.parent.exists())
    assert Path(kept).parent.exists(), "one that lives keeps its own"


def test_a_clean_end_leaves_no_directories(runs: Runs) -> None:
    runs.run("open('mine', 'w').close()")
    runs.runner.close()
    assert [path.name for path in runs.directory.iterdir() if path.name != "home"] == []


def test_a_directory_that_cannot_be_made_is_a_refusal_to_start(runs: Runs) -> None:
    """And not a job that runs somewhere else: the runner is told of an OSError, as when no process can be made."""
    # A file where the directory was: not even root can make one there.
    wait_until(lambda: len(children_of(runs.runner.server_pid, spare=True)) > FEW_SPARES)
    away = runs.directory.rename(runs.directory.with_name("away"))
    runs.directory.touch()
    event = runs.wait_for(Ended | Refused, runs.start("return 1"))
    assert isinstance(event, Refused)
    assert event.reason.startswith("cannot start a process: ")
    runs.directory.unlink()
    away.rename(runs.directory)
    assert runs.run("return 1").result == 1


# --- HOME, variables, modules


def test_jobs_have_a_home_that_exists_and_can_be_written_to(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = "path = os.path.expanduser('~/.tool'); os.makedirs(path, exist_ok=True); return os.environ['HOME']"
    monkeypatch.setenv("HOME", "/nonexistent")
    made = make_runs()
    assert made.run(body).result == str(made.directory / "home")
    assert (made.directory / "home").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_runs().run(body).result == str(tmp_path)


def test_jobs_see_the_variables_that_are_documented_and_those_that_the_setting_names(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {
        "HTTPS_PROXY": "http://proxy",
        "no_proxy": "localhost",
        "REQUESTS_CA_BUNDLE": "/ca",
        "LC_TIME": "C.UTF-8",
    }
    named = {"STRIPE_MODE": "test"}
    for name, value in {**seen, **named, "OTHER": "1", "KYTECRON_SECRET_KEY": "k", "UV_INDEX": "i"}.items():
        monkeypatch.setenv(name, value)
    found = make_runs(job_variables=["STRIPE_MODE"]).run("return dict(os.environ)").result
    assert {name: found.get(name) for name in (seen | named)} == seen | named
    assert found.keys().isdisjoint({"OTHER", "KYTECRON_SECRET_KEY", "UV_INDEX"})


@pytest.mark.parametrize("names", ["KYTECRON_DATABASE_URL", "A, uv_index", "A=B", "AWS_*"])
def test_variables_that_no_job_may_have_are_refused(names: str) -> None:
    with pytest.raises(Invalid) as caught:
        Settings.load({"job_variables": names})
    assert list(caught.value.fields) == ["KYTECRON_JOB_VARIABLES"]


def test_jobs_and_their_programs_import_from_the_directory_of_modules(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("modules", "path"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of_{name}.py").write_text("value = 1")
    (tmp_path / "path" / "sitecustomize.py").write_text(
        f"open({str(tmp_path / 'planted')!r}, 'a').write('x')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    runs = make_runs(job_modules=str(tmp_path / "modules"))
    assert runs.run("import of_modules, of_path; return of_modules.value + of_path.value").result == 2
    assert not (tmp_path / "planted").exists(), "the fork server imports nothing from there"
    program = (
        "import subprocess; return subprocess.call([sys.executable, '-c', 'import of_modules, of_path'])"
    )
    assert runs.run(program).result == 0


def test_nothing_that_a_job_plants_in_its_home_reaches_the_fork_server(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    site = tmp_path / f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    for name in ("usercustomize.py", "sitecustomize.py"):
        (site / name).write_text(f"open({str(tmp_path / 'planted')!r}, 'w')")
    (site / "planted.pth").write_text(f"import os; open({str(tmp_path / 'planted')!r}, 'w')")
    runs = make_runs()
    flags = runs.run(
        "return [sys.flags.no_user_site, sys.flags.safe_path, os.environ['PYTHONNOUSERSITE']]"
    ).result
    assert flags == [1, True, "1"]
    runs.run("os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    assert runs.run("return 1").result == 1
    assert not (tmp_path / "planted").exists()


# --- no .env above a job


def test_load_dotenv_in_a_job_does_not_find_one_of_kytecron(
    make_runs: Callable[..., Runs], tmp_path: Path
) -> None:
    (tmp_path / "instance").mkdir()
    (tmp_path / ".env").write_text("PLANTED=1")
    directory = Settings(instance_path=tmp_path / "instance").make_job_directory()
    assert tmp_path not in directory.parents
    body = "import dotenv; return [dotenv.find_dotenv(), dotenv.load_dotenv(), os.environ.get('PLANTED')]"
    assert make_runs().runner.job_directory.is_relative_to(tmp_path)
    runs = Runs(directory)
    try:
        assert runs.run(body).result == ["", False, None]
    finally:
        runs.runner.close()


def test_a_job_directory_below_a_dotenv_is_refused_when_it_was_chosen(tmp_path: Path) -> None:
    (tmp_path / ".env").touch()
    with pytest.raises(Invalid, match=r"load_dotenv\(\)"):
        Settings(job_directory=str(tmp_path / "a" / "b")).make_job_directory()


def test_the_job_directory_is_in_the_instance_directory_and_for_its_owner_alone(tmp_path: Path) -> None:
    directory = Settings(instance_path=tmp_path / "instance").make_job_directory()
    assert directory == tmp_path / "instance" / "jobs"
    assert directory.stat().st_mode & 0o077 == 0


# --- a whole worker


def test_a_worker_in_production_needs_no_key_of_the_pages(sqlite_settings: Settings) -> None:
    with working(
        sqlite_settings, "--drain", environment="production", database_url=sqlite_settings.url
    ) as worker:
        worker.ended()


def test_a_worker_whose_directory_was_chosen_below_a_dotenv_says_so_and_does_not_start(
    sqlite_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / ".env").touch()
    worker = WorkerProcess(sqlite_settings, job_directory=tmp_path / "taken" / "jobs")
    worker.process.communicate()
    assert worker.process.returncode == 2
    assert "load_dotenv()" in worker.log()


def test_a_job_whose_code_cannot_be_left_for_its_processes_fails_at_once(runs: Runs) -> None:
    """A full disk, say: a pool would start one process after the other, and none would find its function."""
    body = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); import multiprocessing"
    outcome = runs.run(body)
    assert outcome.status is Status.FAILED
    assert "the processes that this job starts need a copy of its code" in (outcome.error or "")
