"""Every expected failure is two lines and an exit code, or JSON; what is not expected keeps its traceback."""

from __future__ import annotations

import errno
import subprocess

import pytest

from tests.cli.run import command, zipmoe
from zipmoe import errors
from zipmoe.cli.problem import problem_of

USAGE_ERRORS = [
    errors.InvalidRequest,
    errors.ContextLengthExceeded,
    errors.NotFound,
    errors.BudgetInfeasible,
    errors.UnsupportedStore,
    errors.UnsupportedModel,
    errors.StoreMismatch,
    errors.Unauthenticated,
]
FAILURES = [
    errors.ResourceExhausted,
    errors.AlreadyRunning,
    errors.CorruptData,
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Cancelled,
    errors.InternalError,
    errors.StaleSlot,
    errors.SlotLeased,
]


def test_every_error_class_has_an_exit_code_here() -> None:
    ours = {value for value in vars(errors).values() if isinstance(value, type)} - {errors.ZipMoeError}
    assert set(USAGE_ERRORS) | set(FAILURES) == ours


@pytest.mark.parametrize("kind", USAGE_ERRORS)
def test_what_the_caller_has_to_change_exits_with_2(kind: type[errors.ZipMoeError]) -> None:
    problem = problem_of(kind("it is 3, not 4"))
    assert problem is not None
    assert (problem.kind, problem.message, problem.exit_code) == (kind.__name__, "it is 3, not 4", 2)


@pytest.mark.parametrize("kind", FAILURES)
def test_what_failed_this_time_exits_with_1(kind: type[errors.ZipMoeError]) -> None:
    problem = problem_of(kind("it is 3, not 4"))
    assert problem is not None
    assert (problem.next_step, problem.exit_code) == (kind.next_step, 1)


def test_an_error_is_two_lines_on_stderr() -> None:
    ran = zipmoe("inspect", "/nonexistent")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == "error: store /nonexistent is not a directory\n  what to do: check the name or path\n"


def test_an_error_is_json_on_stderr_where_json_was_asked_for() -> None:
    ran = zipmoe("inspect", "/nonexistent", "--json")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.error == {
        "class": "NotFound",
        "message": "store /nonexistent is not a directory",
        "next_step": "check the name or path",
    }


@pytest.mark.parametrize(
    "arguments", [("inspect", "--json"), ("inspect", "a", "b", "--json"), ("pack", "--json", "--nope"), ("--json",)]
)
def test_wrong_usage_is_json_where_json_was_asked_for(arguments: tuple[str, ...]) -> None:
    ran = zipmoe(*arguments)
    assert ran.exit_code == 2
    assert ran.error["class"] == "UsageError"


@pytest.mark.parametrize("arguments", [("inspect",), ("inspect", "a", "b"), ("pack", "--nope"), ("nonsense",)])
def test_wrong_usage_exits_with_2_and_no_traceback(arguments: tuple[str, ...]) -> None:
    ran = zipmoe(*arguments)
    assert ran.exit_code == 2
    assert "Error" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_word_json_in_a_text_is_not_the_flag() -> None:
    ran = zipmoe("generate", "--target", "unix:/nonexistent", "--", "--json")
    assert (ran.exit_code, ran.stderr.splitlines()[0][:6]) == (1, "error:")


def test_a_system_error_names_its_file_and_a_way_out() -> None:
    problem = problem_of(OSError(errno.ENOSPC, "No space left on device", "/store/x"))
    assert problem is not None
    assert (problem.message, problem.exit_code) == ("no space left on device: /store/x", 1)
    assert "free some space" in problem.next_step


def test_an_interrupt_exits_with_130() -> None:
    problem = problem_of(KeyboardInterrupt())
    assert problem is not None
    assert problem.exit_code == 130


def test_a_bug_is_no_problem_of_the_caller() -> None:
    assert problem_of(ZeroDivisionError()) is None


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    with subprocess.Popen(command("--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, stderr = process.communicate()
    assert b"Traceback" not in stderr
