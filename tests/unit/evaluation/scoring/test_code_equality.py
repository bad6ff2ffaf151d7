import pytest

from tool_aware.evaluation.scoring.code_equality import same_output, same_syntax
from tool_aware.sandbox import Limits


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("print(1+2)", "print(1 + 2)  # sum\n", True),
        ("x = 1\nprint(x)", "total = 1\nprint(total)", True),
        ('def f(a):\n    """Doc."""\n    return a\nprint(f(1))', "def g(b):\n    return b\nprint(g(1))", True),
        ("import math\nprint(math.pi)", "import cmath\nprint(cmath.pi)", False),
        ("print(a, b)", "print(b, a)", False),  # names that the program does not bind keep theirs
        ("f(key=1)", "f(other=1)", False),
        ("not python at all", "not  python at all", False),
        ("not python at all", " not python at all\n", True),
        ("print(1)", "not python at all", False),
    ],
)
def test_programs_are_equal_by_syntax_tree(one, other, is_same):
    assert same_syntax(one, other) == is_same


def test_programs_are_equal_by_what_they_print():
    assert same_output("print(sum(range(5)))", "print(4 * 5 // 2)")
    assert not same_output("print(1)", "print(2)")
    assert not same_output("pass", "pass")  # printing nothing proves nothing
    assert not same_output("print(1)\n1/0", "print(1)\n1/0")


def test_a_program_is_run_without_our_environment_and_within_limits(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert same_output("import os; print(os.environ.get('HF_TOKEN'))", "print(None)")
    too_much_memory = "x = bytearray(2**31); print(1)"
    assert not same_output(too_much_memory, "print(1)")
    too_large_a_file = "open('x', 'wb').write(b'0' * 2**21); print(1)"
    assert not same_output(too_large_a_file, "print(1)")


def test_a_program_that_never_ends_is_stopped():
    assert not same_output("while True: pass", "while True: pass", Limits(time_s=1))


@pytest.mark.parametrize(
    "code", ["print(" + "+".join(["1"] * 5000) + ")", "(" * 500 + ")" * 500, "-" * 5000 + "1", "'\ud83d'", "\x00", ""]
)
def test_a_program_of_any_depth_is_compared(code):
    assert same_syntax(code, code)
    assert not same_syntax(code, "print(1)")
