"""A job's code: brought into one form and checked before it is saved. It is parsed, never run.

What anybody may send goes through services.checking: CPython takes minutes for some code, or crashes on it, and only a
process of its own bounds that.
"""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from kytecron.core.errors import Invalid

MAX_BYTES = 1_000_000
"""The longest code that is accepted, in UTF-8."""

EXAMPLE = "class MyJob(CronJobBase):\n    def execute(self):\n        ..."

# CPython takes time quadratic in these, among others, hence minutes for less than a megabyte: named here, because
# the limits of the process that compiles cannot say what was too much. A megabyte of the standard library holds
# 3,300 of the first and 440 of the second.
_CROWDS = (
    (re.compile(r"\b(?:def|class|lambda|for)\b"), 5_000, "functions, classes and loops"),
    (re.compile(r"\{"), 10_000, "opening braces"),
)
TOO_LARGE = "nested too deeply or too large to be compiled: split it into smaller steps"
_SURROGATE = re.compile("[\ud800-\udfff]")
_HOOKS = ("set_up", "execute", "tear_down")

# The filters of `warnings` belong to the whole process; two threads must not restore each other's.
_silence = threading.Lock()


@dataclass(frozen=True, slots=True)
class CheckedSource:
    """The job class that acceptable code defines, and the line of its `class` statement."""

    class_name: str
    line: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Why code is refused. Line and column count from 1, the column in characters."""

    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


def normalise(code: str) -> str:
    """Return `code` as it is stored: no byte order mark, lines end with LF, exactly one of them at the end.

    The same code pasted in a browser (which sends CRLF) or read from a file has one hash then.
    """
    text = code.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return text.rstrip("\n") + "\n" if text.strip() else ""


def check(code: str) -> CheckedSource:
    """Return the job class that `code` defines. Raises Invalid, for the field `code`, if it is no job."""
    found = examine(normalise(code))
    if isinstance(found, Problem):
        raise Invalid({"code": str(found)})
    return found


def problems(code: str) -> list[Problem]:
    """Return what `check` would refuse, for an editor's margin. Empty when the code is fine."""
    found = examine(normalise(code))
    return [found] if isinstance(found, Problem) else []


def examine(text: str) -> CheckedSource | Problem:
    """Return the job class that normalised source defines, or why it is none."""
    if problem := text_problem(text):
        return problem
    lines = text.split("\n")
    try:
        job = _job_class(_parse(text, lines), lines)
        _check_hooks(job, lines)
    except _Refused as refused:
        return refused.problem
    return CheckedSource(job.name, job.line)


class _Refused(Exception):
    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.problem = Problem(line, column, message)


def text_problem(text: str) -> Problem | None:
    """Return why normalised source need not be parsed, if there is a reason. Takes time linear in its length."""
    try:
        _check_text(text)
    except _Refused as refused:
        return refused.problem
    return None


def _check_text(code: str) -> None:
    if not code:
        raise _Refused(f"there is no code: write at least\n{EXAMPLE}")
    if (size := len(code.encode("utf-8", "surrogatepass"))) > MAX_BYTES:
        raise _Refused(f"the code has {size:,} bytes, at most {MAX_BYTES:,} are kept: move data elsewhere")
    if (at := code.find("\0")) >= 0:
        raise _Refused("a NUL byte: write \\0 inside a string", *_position(code, at))
    if found := _SURROGATE.search(code):
        half = f"\\u{ord(found.group()):04x}"
        raise _Refused(f"half a character ({half}) that no file can hold", *_position(code, found.start()))
    for pattern, most, what in _CROWDS:
        if (count := sum(1 for _ in pattern.finditer(code))) > most:
            raise _Refused(f"too much for one job: {count:,} {what}, at most {most:,}")


def _position(code: str, at: int) -> tuple[int, int]:
    return code.count("\n", 0, at) + 1, at - code.rfind("\n", 0, at)


def _parse(code: str, lines: list[str]) -> ast.Module:
    try:
        with _silence, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
            try:
                # Finds what the grammar alone allows: `return` outside a function, `await` in a plain one.
                compile(code, "<job>", "exec", dont_inherit=True)
            except SyntaxError as error:
                # This pass counts columns in bytes.
                error.offset = _column(lines, error.lineno or 1, (error.offset or 1) - 1)
                raise
    except SyntaxError as error:
        line = min(max(error.lineno or 1, 1), len(lines))
        raise _Refused(error.msg, line, max(error.offset or 1, 1)) from None
    except (RecursionError, MemoryError):
        raise _Refused(TOO_LARGE) from None
    except ValueError as error:
        raise _Refused(str(error)) from None
    return tree


def _column(lines: list[str], line: int, offset: int) -> int:
    """Turn CPython's offset, in UTF-8 bytes from 0, into characters from 1."""
    if not 1 <= line <= len(lines):
        return 1
    return len(lines[line - 1].encode()[:offset].decode(errors="ignore")) + 1


# --- which class is the job


@dataclass(eq=False, slots=True)
class _Class:
    name: str
    line: int
    column: int
    is_job: bool
    parents: list[_Class]
    members: dict[str, ast.stmt] = field(default_factory=dict)


def _job_class(tree: ast.Module, lines: list[str]) -> _Class:
    classes = _top_level_classes(tree, lines)
    extended = {id(parent) for cls in classes for parent in cls.parents}
    leaves = [cls for cls in classes if cls.is_job and id(cls) not in extended]
    if not leaves:
        raise _no_job(classes)
    if len(leaves) > 1:
        named = " and ".join(f"{cls.name} (line {cls.line})" for cls in leaves[:2])
        more = f" and {len(leaves) - 2} more" if len(leaves) > 2 else ""
        raise _Refused(
            f"{len(leaves)} classes extend CronJobBase: {named}{more}. Keep one, or make each a job of its own",
            leaves[1].line,
            leaves[1].column,
        )
    return leaves[0]


def _no_job(classes: list[_Class]) -> _Refused:
    for cls in classes:
        if cls.name == "CronJobBase":
            return _Refused(
                "this class hides the CronJobBase that every job extends: remove it", cls.line, cls.column
            )
    for cls in reversed(classes):
        if "execute" in cls.members:
            return _Refused(
                f"{cls.name} does not extend CronJobBase: write class {cls.name}(CronJobBase):",
                cls.line,
                cls.column,
            )
    return _Refused(f"no class extends CronJobBase: write\n{EXAMPLE}")


def _top_level_classes(tree: ast.Module, lines: list[str]) -> list[_Class]:
    classes: list[_Class] = []
    # What a name stands for at this point of the file; None is CronJobBase itself.
    known: dict[str, _Class | None] = {"CronJobBase": None}
    for statement in _statements(tree.body):
        if isinstance(statement, ast.ClassDef):
            cls = _read_class(statement, known, lines)
            classes.append(cls)
            known[cls.name] = cls
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            known.update(dict.fromkeys(_imported_bases(statement), None))
        elif isinstance(statement, ast.Assign) and (source := _dotted(statement.value)) in known:
            known.update((name, known[source]) for name in _assigned(statement))
    return classes


def _read_class(node: ast.ClassDef, known: dict[str, _Class | None], lines: list[str]) -> _Class:
    bases = [known[name] for base in node.bases if (name := _dotted(base)) in known]
    parents = [base for base in bases if base is not None]
    is_job = None in bases or any(parent.is_job for parent in parents)
    column = _column(lines, node.lineno, node.col_offset)
    cls = _Class(node.name, node.lineno, column, is_job, parents)
    for statement in _statements(node.body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            cls.members[statement.name] = statement
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            cls.members.update((name, statement) for name in _assigned(statement))
    return cls


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of one scope in their order, those inside `if`, `try`, `with` and loops too."""
    todo: list[ast.AST] = list(reversed(body))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.stmt):
            yield node
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
        if isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case)):
            todo.extend(reversed(list(ast.iter_child_nodes(node))))


def _imported_bases(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the names by which an import makes CronJobBase known."""
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            if statement.module in {"kytecron", "kytecron.job"} and alias.name == "CronJobBase":
                yield alias.asname or alias.name
            elif statement.module == "kytecron" and alias.name == "job":
                yield f"{alias.asname or alias.name}.CronJobBase"
        elif alias.name in {"kytecron", "kytecron.job"}:
            yield f"{alias.asname or alias.name}.CronJobBase"
            if not alias.asname:
                yield "kytecron.CronJobBase"


def _assigned(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _dotted(node: ast.expr) -> str | None:
    """Return `a.b` of the expression a.b or a.b[T], None of anything else."""
    if isinstance(node, ast.Subscript):
        node = node.value
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(attributes)]) if isinstance(node, ast.Name) else None


# --- what the worker will call


def _check_hooks(job: _Class, lines: list[str]) -> None:
    if _find(job, "execute") is None:
        raise _Refused(
            f"{job.name} has no execute method: add\n    def execute(self):\n        ...",
            job.line,
            job.column,
        )
    for hook in _HOOKS:
        method = _find(job, hook)
        if method is not None and (message := _unusable(method)):
            column = _column(lines, method.lineno, method.col_offset)
            raise _Refused(message, method.lineno, column)


def _find(cls: _Class, name: str) -> ast.stmt | None:
    """Return what `name` is in this class or in the nearest of its bases in the same file."""
    todo, seen = [cls], set()
    while todo:
        here = todo.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        member = here.members.get(name)
        if member is None:
            todo.extend(reversed(here.parents))
        elif not _is_abstract(member):
            return member
    return None


def _is_abstract(member: ast.stmt) -> bool:
    decorators = getattr(member, "decorator_list", [])
    return any((_dotted(d) or "").endswith("abstractmethod") for d in decorators)


def _unusable(method: ast.stmt) -> str | None:
    """Say why the worker could not call `method`, or would call it in vain."""
    if isinstance(method, ast.AsyncFunctionDef):
        return (
            f"{method.name} cannot be async: write def {method.name}(self): "
            "and in it asyncio.run(self.main()), with async def main(self): for the rest"
        )
    if not isinstance(method, ast.FunctionDef) or method.decorator_list:
        return None
    if not _takes_only_self(method.args):
        return (
            f"{method.name} is called without arguments: write def {method.name}(self): "
            "and read what a run was given from self.job.parameters"
        )
    if _yields(method):
        return f"{method.name} holds a yield, so calling it would do nothing: use self.log or return"
    return None


def _takes_only_self(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    takes_self = positional > 0 or arguments.vararg is not None
    return takes_self and required <= 1 and None not in arguments.kw_defaults


def _yields(function: ast.FunctionDef) -> bool:
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        # A yield in there belongs to somebody else.
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            todo.extend(ast.iter_child_nodes(node))
    return False
