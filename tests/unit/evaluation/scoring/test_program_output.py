import pytest

from tool_aware.evaluation.scoring.program_output import (
    RUNS_OF_VARYING,
    ProgramRuns,
    kinds_of_runs,
    output_problem,
    same_print,
)
from tool_aware.sandbox import Limits


@pytest.fixture(scope="module")
def programs():
    return ProgramRuns(Limits(time_s=1))


def problem(programs, answered, wanted):
    programs.run([answered, wanted])
    return output_problem(programs.of(answered), programs.of(wanted))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "3.0"),
        ("1628.89", "1628.894626777442"),  # rounded
        ("Total: 1,628.89 EUR", "1628.89"),
        ("[1, 2, 3]", "1\n2\n3\n"),
        ("0.3", "0.30000000000000004"),
        ("1e-7", "0.0000001"),
        ("-5", "−5"),
        (str(7**900), str(7**900)),
        ("5e-324", "0"),
        ("Monday", " monday\n"),
        ("x1 = 2", "x1: 2"),  # a digit inside a name is none
    ],
)
def test_outputs_that_say_the_same(one, other):
    assert same_print(one, other)
    assert same_print(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "3.14"),  # a whole number is no rounded one
        ("3.1", "3.14"),  # one decimal is too few to stand for more
        ("1628.88", "1628.894626777442"),
        ("1 2", "2 1"),
        ("1", "1 1"),
        ("0", "Monday"),
        ("['b', 'a']", "['a', 'b']"),
        ("5 apples", "5 pears"),
        ("100000", "100001"),
        (str(7**900), str(7**901)),  # both beyond the range of floats
        ("1e999999999", "1e99999"),
        ("", "1"),
    ],
)
def test_outputs_that_do_not_say_the_same(one, other):
    assert not same_print(one, other)


def test_programs_are_compared_by_what_they_print(programs):
    assert problem(programs, "print(sum(range(5)))", "print(4 * 5 // 2)") == ""
    assert problem(programs, "print(1)", "print(2)") == "prints something else"
    assert problem(programs, "x = 1", "print(1)") == "prints nothing"
    assert problem(programs, "print(1)\n1/0", "print(1)") == "ZeroDivisionError: division by zero"
    assert problem(programs, "print(1", "print(1)").startswith("SyntaxError")
    assert problem(programs, "print(1)", "1/0") == "the reference prints nothing to compare with"
    assert problem(programs, "while True: pass", "print(1)") == "runs longer than 1 s"
    assert not programs.print_alike("print(1)\n1/0", "print(1)\n1/0")
    assert not programs.print_alike("pass", "pass")  # printing nothing proves nothing
    assert not programs.print_alike("print(1.0)", "print(1)")  # to the letter
    assert programs.print_alike("print('a')", "print('a', end='')")


def test_a_program_is_run_without_our_environment_and_within_limits(monkeypatch):
    programs = ProgramRuns()
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert programs.print_alike("import os; print(os.environ.get('HF_TOKEN'))", "print(None)")
    assert not programs.print_alike("x = bytearray(2**31); print(1)", "print(1)")
    assert not programs.print_alike("open('x', 'wb').write(b'0' * 2**21); print(1)", "print(1)")


def test_each_program_is_run_once_and_one_that_may_vary_several_times(monkeypatch):
    from tool_aware.evaluation.scoring import program_output

    ran = []
    run_program = program_output.run_program
    run_warm = program_output.WarmInterpreter.run
    monkeypatch.setattr(program_output, "run_program", lambda code, *a, **k: (ran.append(code), run_program(code))[1])
    monkeypatch.setattr(
        program_output.WarmInterpreter, "run", lambda warm, code: (ran.append(code), run_warm(warm, code))[1]
    )
    runs = ProgramRuns()
    draws, shows_a_set = "import random\nprint(random.random())", "print({'a', 'b', 'c', 'd', 'e'})"
    runs.run(["print(1)", "print(1)", draws, shows_a_set])
    runs.run(["print(1)"])
    assert ran.count("print(1)") == 1
    assert ran.count(draws) == ran.count(shows_a_set) == program_output.RUNS_OF_VARYING == len(runs.of(draws))
    assert len({run.printed for run in runs.of(draws)}) == program_output.RUNS_OF_VARYING
    assert len({run.printed for run in runs.of(shows_a_set)}) > 1


DICE = "import random\nprint(sum(random.randint(1, 6) for _ in range(2000)) / 2000)"


@pytest.mark.parametrize(
    ("answered", "is_like"),
    [
        ("from random import choice\nprint(sum(choice(range(1, 7)) for _ in range(2000)) / 2000)", True),
        ("import random\nrandom.seed(1)\nprint(sum(random.randint(1, 6) for _ in range(2000)) / 2000)", True),
        ("import random\nprint(sum(random.randint(1, 6) for _ in range(2000)) / 1000)", False),
        ("print(42)", False),
    ],
)
def test_a_simulation_is_held_against_the_range_of_the_references_runs(programs, answered, is_like):
    assert (problem(programs, answered, DICE) == "") == is_like


PASSWORD = "import secrets\nprint(''.join(secrets.choice('abcdefgh1') for _ in range({})))"


def test_a_random_text_is_held_against_the_shape_of_the_references(programs):
    other = "import random\nprint(''.join(random.choices('xyz', k=17)))"
    assert problem(programs, other, PASSWORD.format(17)) == ""
    assert problem(programs, PASSWORD.format(16), PASSWORD.format(17)) != ""
    assert problem(programs, f"print({'q' * 17!r})", PASSWORD.format(17)) != ""  # always the same one


def test_a_set_may_be_printed_in_any_order_and_a_list_may_not(programs):
    a_set = "print({'fig', 'pear', 'plum', 'kiwi', 'lime'})"
    assert problem(programs, "print(set(['lime', 'plum', 'kiwi', 'fig', 'pear']))", a_set) == ""
    assert problem(programs, "print(['b', 'a'])", "print(['a', 'b'])") != ""


def test_an_interpreter_with_numpy_is_for_programs_that_import_it():
    assert kinds_of_runs("# no numpy\nprint(1)") == ["plain"]
    assert set(kinds_of_runs("import numpy.linalg as n\nprint(1)")) == {"numpy"}
    assert kinds_of_runs("from numpy import array\nprint({1, 2})") == list(range(RUNS_OF_VARYING))
    assert kinds_of_runs("not python (") == ["plain"]


def test_what_may_differ_from_run_to_run_is_found():
    varies = ("import random", "from time import time", "seed(1)", "print({1, 2})", "print(set(x))", "print(id(x))")
    assert {len(kinds_of_runs(program)) for program in varies} == {RUNS_OF_VARYING}
    same = ("print({1: 2})", "import math", "not python (", "print(reset(x))")
    assert {len(kinds_of_runs(program)) for program in same} == {1}
