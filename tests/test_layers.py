"""The layers, read from the source (docs/architecture.md):

`web | api | cli -> views -> services -> store -> core`, and `engine -> services`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CORE = {"kytecron.core"}
STORE = {"kytecron.store", "kytecron.config", *CORE}
SERVICES = {"kytecron.services", "kytecron.VERSION", *STORE}
# What a front may touch of the store: connections, the read side and the rows it returns, never a write.
READ_SIDE = {f"kytecron.store.{name}" for name in ("db", "figures", "keyset", "models", "queries")}
VIEWS = {"kytecron.services", *CORE, *READ_SIDE}
FRONT = {"kytecron.views", "kytecron.services", "kytecron.config", "kytecron.requestdb", *CORE, *READ_SIDE}
PROCESS = {
    "kytecron.services",
    "kytecron.config",
    "kytecron.logs",
    "kytecron.store.db",
    "kytecron.store.schema",
}

# What each package or module may import of kytecron besides itself. One that is not named may import nothing,
# so a new one must be placed here.
MAY_IMPORT: dict[str, set[str]] = {
    # Lazily, by name: see the tests at the end.
    "kytecron": {"kytecron.job", "kytecron.engine", "kytecron.services"},
    "kytecron.core": set(),
    "kytecron.config": CORE,
    "kytecron.logs": {"kytecron.config", *CORE},
    "kytecron.store": STORE,
    "kytecron.requestdb": {"kytecron.store"},
    "kytecron.services": SERVICES,
    "kytecron.views": VIEWS,
    "kytecron.web": FRONT,
    "kytecron.api": FRONT,
    "kytecron.cli": {*FRONT, *PROCESS},
    "kytecron.engine": {"kytecron.job", *CORE, *PROCESS},
    # The two that put the rest together: the web application, and `make run`.
    "kytecron.app": {
        *("kytecron.accesslog", "kytecron.web", "kytecron.api", "kytecron.cli", "kytecron.requestdb"),
        *("kytecron.door", *SERVICES),
    },
    "kytecron.accesslog": set(),
    "kytecron.door": {"kytecron.accesslog", "kytecron.requestdb", *SERVICES},
    "kytecron.standalone": {"kytecron.examples", *SERVICES},
    # What gunicorn loads, before the app.
    "kytecron.gunicorn_conf": {"kytecron.logs", *SERVICES},
    "kytecron.webserver": {"kytecron.config", *CORE},
    "kytecron.wsgi": {"kytecron.app", "kytecron.cli", "kytecron.config", "kytecron.logs", *CORE},
    # The program: every command, `up` and the worker.
    "kytecron.program": {"kytecron.VERSION", "kytecron.cli", "kytecron.engine", "kytecron.standalone"},
    "kytecron.__main__": {"kytecron.program"},
}

FLASK = {"flask", "flask_migrate", "flask_sqlalchemy", "flask_wtf"}
INPUT_AND_OUTPUT = {
    *("asyncio", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select"),
    *("shutil", "signal", "smtplib", "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "time"),
    *("urllib.request", "uuid"),
}
CORE_LIBRARIES = {"cron_descriptor", "croniter", "pydantic", "pydantic_core", "tzdata"}
CLOCKS = {"now", "utcnow", "today"}

# Job processes are forked from these: whatever they import, every run pays for and every job sees. The process that
# compiles people's code starts from the last of them.
STANDARD_LIBRARY_ONLY = (
    "kytecron",
    "kytecron.core",
    "kytecron.core.errors",
    "kytecron.core.source",
    "kytecron.core.untrusted",
    "kytecron.engine",
    "kytecron.engine.child",
    "kytecron.engine.forkserver",
    "kytecron.engine.scratch",
    "kytecron.engine.shared",
    "kytecron.job",
    "kytecron.services",
    "kytecron.services.checker",
)
# The second hands job processes the few variables that they may see; the third adds PYTHONPATH, which is not its own.
READ_THE_ENVIRONMENT = {"kytecron.config", "kytecron.engine.server", "kytecron.engine.forkserver"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


# --- reading the source


def modules() -> dict[str, Path]:
    """Every module of the package, and the two programs beside it."""
    found = {"worker": ROOT / "worker.py", "wsgi": ROOT / "wsgi.py"}
    for path in sorted((ROOT / "kytecron").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if path.exists()}


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def imports(module: str, tree: ast.AST, *, typing_too: bool = True) -> Iterator[str]:
    """Yield what `module` imports anywhere, as full dotted names down to the imported name."""
    package = module if module in PACKAGES else module.rpartition(".")[0]
    for node in walk(tree, typing_too):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def walk(tree: ast.AST, typing_too: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        only_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if typing_too or not only_typing:
            yield from walk(node, typing_too)


def within(name: str, places: set[str] | tuple[str, ...]) -> bool:
    """Whether `name` is one of `places` or lies in one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def home(module: str) -> str:
    return ".".join(module.split(".")[:2])


def offences(module_of: str | tuple[str, ...], is_wrong: Callable[[str, str], bool]) -> list[str]:
    """List "module imports name" for each import in `module_of` that is wrong."""
    places = (module_of,) if isinstance(module_of, str) else module_of
    return sorted(
        f"{module} imports {name}"
        for module, tree in TREES.items()
        if within(module, places)
        for name in set(imports(module, tree))
        if is_wrong(module, name)
    )


# --- the rules


def test_modules_import_only_what_lies_to_their_right():
    def leads_left(module: str, name: str) -> bool:
        if not within(name, {"kytecron"}) or home(name) == home(module) != "kytecron":
            return False
        return not within(name, MAY_IMPORT.get(home(module), set()))

    assert offences("kytecron", leads_left) == []


PURE = {*CORE, "kytecron.engine.lookout"}


def test_core_and_the_lookout_know_no_clock_no_files_and_no_network():
    def is_impure(_module: str, name: str) -> bool:
        top = name.split(".")[0]
        foreign = top not in sys.stdlib_module_names and top not in {"kytecron", *CORE_LIBRARIES}
        return foreign or within(name, INPUT_AND_OUTPUT)

    assert offences(tuple(PURE), is_impure) == []
    calls = [
        f"{module}:{node.lineno} calls {name}"
        for module, tree in TREES.items()
        if within(module, PURE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (name := called(node)) in {*CLOCKS, "open", "print", "input"}
    ]
    assert calls == []


def called(node: ast.Call) -> str | None:
    """Return the name of what is called: `now` of datetime.now(), `open` of open(), but not of a `now()` of ours."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr if node.func.attr in CLOCKS else None
    return node.func.id if isinstance(node.func, ast.Name) and node.func.id not in CLOCKS else None


def test_flask_ends_at_the_fronts():
    behind = (
        "kytecron.views",
        "kytecron.core",
        "kytecron.store",
        "kytecron.services",
        "kytecron.engine",
        "kytecron.job",
        "worker",
    )
    assert offences(behind, lambda _, name: within(name, FLASK)) == []


def test_the_database_ends_at_the_store_for_views_pages_and_api():
    def builds_statements(_module: str, name: str) -> bool:
        return within(name, {"sqlalchemy"}) and not within(name, {"sqlalchemy.exc", "sqlalchemy.orm.Session"})

    assert offences(("kytecron.views", "kytecron.web", "kytecron.api"), builds_statements) == []


def test_one_module_reads_the_environment():
    found = set()
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                found |= {module} if node.attr in ENVIRONMENT else set()
        found |= {module for name in imports(module, tree) if name in {f"os.{each}" for each in ENVIRONMENT}}
    assert found <= READ_THE_ENVIRONMENT


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_what_job_processes_load_needs_the_standard_library_alone(module):
    if module not in MODULES:
        pytest.skip(f"no {module}")
    foreign = [
        name
        for name in imports(module, TREES[module], typing_too=False)
        if name.split(".")[0] not in sys.stdlib_module_names
        and name not in STANDARD_LIBRARY_ONLY
        and name.rpartition(".")[0] not in STANDARD_LIBRARY_ONLY
    ]
    assert foreign == []
    # -S: without the installed packages, so that an indirect import fails too.
    subprocess.run([sys.executable, "-S", "-c", f"import {module}"], cwd=ROOT, check=True, timeout=30)


def test_the_worker_loads_neither_flask_nor_what_comes_with_it():
    command = "import sys, worker; print(*(name.split('.')[0] for name in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, check=True, timeout=30, capture_output=True, text=True
    )
    assert not {"jinja2", "werkzeug", *FLASK} & {*loaded.stdout.split()}


def test_importing_kytecron_loads_neither_flask_nor_the_database():
    command = "import sys, kytecron; print(*(name.split('.')[0] for name in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, check=True, timeout=30, capture_output=True, text=True
    )
    assert not {"flask", "flask_sqlalchemy", "sqlalchemy", "pydantic", "cryptography"} & {
        *loaded.stdout.split()
    }


# Pages, API and commands have a module per area, which the map need not list one by one.
LISTED_AS_A_WHOLE = {"kytecron.web", "kytecron.api", "kytecron.cli"}


def test_every_module_stands_on_the_map_and_nothing_else_does():
    the_map = (ROOT / "docs" / "architecture.md").read_text().split("## The house")[1].split("\n**Layers")[0]
    named = set(re.findall(r"\b\w+\.py\b", the_map))
    present = {path.name for path in MODULES.values() if path.name != "__init__.py"}
    listed = {
        path.name
        for name, path in MODULES.items()
        if name not in PACKAGES and not within(name, LISTED_AS_A_WHOLE)
    }
    assert listed - named == set()
    assert named - present == set()


# --- the reader itself


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import kytecron.web.jobs", "kytecron.web.jobs"),
        ("from kytecron.web import jobs", "kytecron.web.jobs"),
        ("from ..web import jobs", "kytecron.web.jobs"),
        ("from ..web.jobs import page", "kytecron.web.jobs.page"),
        ("from .. import web", "kytecron.web"),
        ("from . import states", "kytecron.core.states"),
        ("def f():\n    from ..web import jobs", "kytecron.web.jobs"),
        ("if TYPE_CHECKING:\n    from ..web import jobs", "kytecron.web.jobs"),
    ],
)
def test_every_way_to_import_is_seen(source, seen):
    assert list(imports("kytecron.core.example", ast.parse(source))) == [seen]


def test_imports_for_types_alone_can_be_told_apart():
    tree = ast.parse("import os\nif TYPE_CHECKING:\n    import flask\nelse:\n    import sys")
    assert "flask" not in list(imports("kytecron.job", tree, typing_too=False))
