from __future__ import annotations

import sys
import threading
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core.errors import Invalid
from kytecron.core.source import CheckedSource, Problem, check, normalise, problems

JOB = "class MyJob(CronJobBase):\n    def execute(self):\n        pass\n"
BODY = "    def execute(self):\n        pass\n"


def refusal(code: str) -> Problem:
    """The one problem of `code`, told alike by both functions."""
    (problem,) = problems(code)
    with pytest.raises(Invalid) as caught:
        check(code)
    assert caught.value.fields == {"code": str(problem)}
    return problem


def place(code: str) -> tuple[int, int]:
    problem = refusal(code)
    return problem.line, problem.column


# --- what is accepted


def test_the_first_job_of_the_readme_is_accepted():
    code = '\nclass MyJob(CronJobBase):\n    def execute(self):\n        self.log("Hello World")\n'
    assert check(code) == CheckedSource("MyJob", 2)
    assert problems(code) == []


@pytest.mark.parametrize(
    "head",
    [
        "class J(CronJobBase):\n",
        "from kytecron import CronJobBase\nclass J(CronJobBase):\n",
        "from kytecron import CronJobBase as Base, SkipRun\nclass J(Base):\n",
        "from kytecron.job import CronJobBase as Base\nclass J(Base):\n",
        "from kytecron import job\nclass J(job.CronJobBase):\n",
        "import kytecron\nclass J(kytecron.CronJobBase):\n",
        "import kytecron as k\nclass J(k.CronJobBase):\n",
        "import kytecron.job\nclass J(kytecron.job.CronJobBase):\n",
        "Base = CronJobBase\nclass J(Base):\n",
        "import abc\nclass J(abc.ABC, CronJobBase):\n",
        "class J(CronJobBase, metaclass=type):\n",
        "@register\nclass J(CronJobBase):\n",
        "try:\n    from kytecron import CronJobBase as B\nexcept ImportError:\n    raise\nclass J(B):\n",
    ],
)
def test_every_usual_way_to_name_the_base_is_understood(head):
    assert check(head + BODY).class_name == "J"


def test_a_class_below_a_condition_is_found():
    code = "if True:\n    class J(CronJobBase):\n        def execute(self): pass\n"
    assert check(code) == CheckedSource("J", 2)


def test_the_leaf_of_a_family_is_the_job_and_inherits_execute():
    code = f"class Base(CronJobBase):\n{BODY}class Middle(Base):\n    pass\nclass Leaf(Middle):\n    pass\n"
    assert check(code) == CheckedSource("Leaf", 6)


def test_execute_may_come_from_a_mixin_in_the_file():
    assert check(f"class Mixin:\n{BODY}class J(Mixin, CronJobBase):\n    pass\n").class_name == "J"


def test_an_abstract_execute_is_fulfilled_by_the_leaf():
    base = "from abc import abstractmethod\nclass B(CronJobBase):\n    @abstractmethod\n" + BODY
    assert check(base + "class J(B):\n" + BODY).class_name == "J"
    assert "no execute" in refusal(base).message


def test_a_class_that_extends_its_own_namesake_is_one_job():
    assert check(f"{JOB}class MyJob(MyJob):\n    pass\n") == CheckedSource("MyJob", 4)


@pytest.mark.parametrize(
    "method",
    [
        "def execute(self, dry=False): pass",
        "def execute(self, *args, **kwargs): pass",
        "def execute(*args): pass",
        "def execute(self, *, dry=False): pass",
        "execute = run",
        "@timed\n    def execute(self, clock): pass",
        "def execute(self):\n        def rows():\n            yield 1\n        return list(rows())",
    ],
)
def test_whatever_can_be_called_without_arguments_is_a_method(method):
    check(f"class J(CronJobBase):\n    {method}\n")


# --- what is refused, and where


@pytest.mark.parametrize("code", ["", "\n\n", "  \t\n", "\ufeff"])
def test_no_code_is_refused_with_an_example(code):
    assert "class MyJob(CronJobBase)" in refusal(code).message


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("class J(CronJobBase)\n    pass\n", (1, 21)),
        (JOB + "x = (1,\n", (4, 5)),
        (JOB + 'x = "é" +* 3\n', (4, 10)),
        (JOB + "print 'a'\n", (4, 1)),
        ("class J(CronJobBase):\ndef execute(self):\n", (2, 1)),
        ("class J(CronJobBase):\n\tdef execute(self):\n            pass\n        x\n", (4, 1)),
        (JOB + 'x = f"{a b}"\n', (4, 2)),
        (JOB + '"é"; return 3\n', (4, 6)),
        (JOB.replace("pass", "await x"), (3, 9)),
        (JOB + "9" * 5000, (4, 1)),
    ],
)
def test_a_syntax_error_is_refused_with_its_line_and_column(code, where):
    assert place(code) == where


def test_tabs_mixed_with_spaces_are_refused():
    assert "tabs and spaces" in refusal(JOB.replace("pass", "x") + "\ty\n").message


def test_a_nul_byte_is_refused_with_its_place():
    problem = refusal(JOB + "é = '\0'\n")
    assert (problem.line, problem.column) == (4, 6)
    assert "NUL" in problem.message


def test_half_a_character_is_refused_with_its_place():
    problem = refusal(JOB + "x = '\ud800'\n")
    assert (problem.line, problem.column) == (4, 6)
    assert "\\ud800" in problem.message


def test_code_over_a_million_bytes_is_refused_and_just_under_it_is_not():
    room = 1_000_000 - len(JOB.encode()) - len("# \n")
    check(JOB + f"# {'é' * (room // 2)}\n")
    assert "1,000,00" in refusal(JOB + f"# {'é' * (room // 2 + 1)}\n").message


def test_no_job_class_is_refused_with_an_example():
    assert "write\nclass MyJob(CronJobBase)" in refusal("x = 1\n").message


def test_a_class_that_forgot_its_base_is_named():
    problem = refusal("import os\n" + JOB.replace("(CronJobBase)", ""))
    assert problem == Problem(2, 1, "MyJob does not extend CronJobBase: write class MyJob(CronJobBase):")


def test_a_file_that_defines_its_own_base_is_told_so():
    problem = refusal(f"class CronJobBase:\n    pass\n{JOB}")
    assert problem.line == 1
    assert "hides" in problem.message


def test_two_jobs_in_one_file_are_refused_naming_both_lines():
    problem = refusal(f"{JOB}\n{JOB.replace('MyJob', 'Other')}")
    assert problem.line == 5
    assert "MyJob (line 1) and Other (line 5)" in problem.message


def test_the_same_class_twice_is_refused_too():
    assert "MyJob (line 1) and MyJob (line 4)" in refusal(JOB + JOB).message


def test_many_jobs_are_counted():
    assert "and 3 more" in refusal(JOB * 5).message


def test_a_job_inside_a_function_is_no_job_of_the_file():
    refusal("def f():\n    class J(CronJobBase):\n        def execute(self): pass\n")


def test_a_job_without_execute_is_refused_at_its_class():
    problem = refusal("# é\nclass J(CronJobBase):\n    def run(self): pass\n")
    assert (problem.line, problem.column) == (2, 1)
    assert "def execute(self)" in problem.message


@pytest.mark.parametrize("hook", ["set_up", "execute", "tear_down"])
def test_async_hooks_are_refused_with_what_to_write_instead(hook):
    code = f"class J(CronJobBase):\n    async def {hook}(self): pass\n    def {'x' + hook}(self): pass\n"
    if hook != "execute":
        code += BODY
    problem = refusal(code)
    assert (problem.line, problem.column) == (2, 5)
    assert f"def {hook}(self)" in problem.message
    assert "asyncio.run" in problem.message


@pytest.mark.parametrize(
    "method", ["def execute(): pass", "def execute(self, when): pass", "def execute(self, *, dry): pass"]
)
def test_an_execute_that_cannot_be_called_is_refused(method):
    assert "without arguments" in refusal(f"class J(CronJobBase):\n    {method}\n").message


def test_an_execute_that_would_silently_do_nothing_is_refused():
    assert "yield" in refusal(JOB.replace("pass", "yield 1")).message


# --- hostile code


@pytest.mark.parametrize(
    "code",
    [
        "(" * 100_000,
        "-" * 400_000 + "1",
        "a" + ".b" * 300_000,
        "x" + "+x" * 300_000,
        "lambda:" * 4_000 + "1",
        "if 1: pass\n" + "elif 1: pass\n" * 60_000,
        "\n".join(" " * depth + "if 1:" for depth in range(1_000)),
        "9" * 900_000,
        # Each of these takes CPython minutes.
        'f"' + "{x}" * 300_000 + '"',
        "def f(): pass\n" * 70_000,
        "[x for x in y]\n" * 60_000,
    ],
)
def test_code_that_would_crash_or_hang_the_parser_is_refused_quickly(code):
    began = time.process_time()
    refusal(JOB + code)
    assert time.process_time() - began < 5


def test_families_built_to_be_searched_for_ever_are_searched_once():
    diamond = "class A0(CronJobBase): pass\nclass B0(CronJobBase): pass\n" + "".join(
        f"class A{n}(A{n - 1}, B{n - 1}): pass\nclass B{n}(A{n - 1}, B{n - 1}): pass\n" for n in range(1, 60)
    )
    assert "no execute" in refusal(diamond + "class J(A59, B59): pass\n").message
    chain = "class A0(CronJobBase): pass\n" + "".join(
        f"class A{n}(A{n - 1}): pass\n" for n in range(1, 1_000)
    )
    assert refusal(chain).message.startswith("A999 has no execute")


def test_a_base_of_a_thousand_names_is_read():
    refusal(f"class J(a{'.b' * 900}): pass\n")


def test_code_is_never_run():
    check("import sys\nsys.ran_by_mistake = True\n" + JOB)
    assert not hasattr(sys, "ran_by_mistake")


def test_warnings_of_the_compiler_neither_leak_nor_refuse():
    code = JOB + 'x = "\\d"\ny = x is "a"\nassert (y, "always true")\n'
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        check(code)
    assert seen == []


def test_checking_in_many_threads_leaves_the_warning_filters_as_they_were():
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [check(JOB + f"x = '\\d{n}'\n") for n in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


# --- one form


@pytest.mark.parametrize(
    "pasted",
    [JOB, JOB.replace("\n", "\r\n"), JOB.rstrip("\n"), JOB + "\n\n", "\ufeff" + JOB, JOB.replace("\n", "\r")],
)
def test_the_same_code_has_one_form_wherever_it_was_pasted_from(pasted):
    assert normalise(pasted) == JOB


def test_blank_code_becomes_empty():
    assert normalise(" \r\n\t\n") == ""


@settings(deadline=None)
@given(st.text(alphabet="a \r\n\t\ufeff"))
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text.lstrip("\ufeff"))
    assert normalise(once) == once
    assert "\r" not in once
    assert not once or (once.endswith("\n") and not once.endswith("\n\n"))


FRAGMENTS = [
    "class B(MyJob):",
    "import kytecron",
    "async ",
    "yield",
    "lambda",
    "f'{",
    "@",
    "=",
    ":",
    ";",
    "#",
]
CHARACTERS = ["\n", "\t", " " * 4, "(", ")", '"', "'''", "\\", "\0", "\x0c", "\ud800", "é", "🐍"]
PIECES = st.sampled_from([*JOB.split("\n"), *FRAGMENTS, *CHARACTERS])


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join))
def test_any_text_is_accepted_or_refused_at_a_place_that_exists(code):
    lines = normalise(code).split("\n")
    for problem in problems(code):
        assert 1 <= problem.line <= len(lines)
        assert problem.column >= 1
        assert problem.message
