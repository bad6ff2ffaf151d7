import pytest

from tool_aware.evaluation.scoring.code_equality import same_syntax


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("print(1+2)", "print(1 + 2)  # sum\n", True),
        ("x = 1\nprint(x)", "total = 1\nprint(total)", True),
        ('def f(a):\n    """Doc."""\n    return a\nprint(f(1))', "def g(b):\n    return b\nprint(g(1))", True),
        ("import math\nprint(math.pi)", "import cmath\nprint(cmath.pi)", False),
        ("print(a, b)", "print(b, a)", False),  # names that the program does not bind keep theirs
        ("f(key=1)", "f(other=1)", False),
        ("class A:\n    'What it is.'\n    x = 1", "class B:\n    y = 1", True),
        ("def f():\n    'all of it'", "def f():\n    'another'", False),
        ("import a as b", "import a as c", False),
        ("print('1')", "print(1)", False),
        ("not python at all", "not  python at all", False),
        ("not python at all", " not python at all\n", True),
        ("print(1)", "not python at all", False),
    ],
)
def test_programs_are_equal_by_syntax_tree(one, other, is_same):
    assert same_syntax(one, other) == is_same


@pytest.mark.parametrize(
    "code", ["print(" + "+".join(["1"] * 5000) + ")", "(" * 500 + ")" * 500, "-" * 5000 + "1", "'\ud83d'", "\x00", ""]
)
def test_a_program_of_any_depth_is_compared(code):
    assert same_syntax(code, code)
    assert not same_syntax(code, "print(1)")
