import os

import pytest

from tool_aware.beside import Beside
from tool_aware.text import shortlist


def test_another_process_works_out_the_result():
    assert Beside(shortlist, ["a", "b"]).result() == "a, b"
    assert Beside(os.getpid).result() != os.getpid()


def test_arguments_are_those_of_the_beginning_however_large():
    words = ["a"] * 1_000_000
    length = Beside(len, words)
    words.clear()
    assert length.result() == 1_000_000


def test_a_process_that_ends_without_a_result_is_replaced_by_this_one():
    assert Beside(ends_elsewhere, os.getpid()).result() == "worked out here"


def test_a_function_that_fails_fails_here_and_nowhere_else(capfd):
    with pytest.raises(ZeroDivisionError):
        Beside(divmod, 1, 0).result()
    assert capfd.readouterr().err == ""


def ends_elsewhere(here):
    if os.getpid() != here:
        os._exit(1)
    return "worked out here"
