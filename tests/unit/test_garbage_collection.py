"""The search for circles is paused within the block alone, also where it ends with an error."""

from __future__ import annotations

import gc

import pytest

from tool_aware.garbage_collection import no_search_for_circles


def test_the_search_for_circles_goes_on_after_the_block_and_after_an_error() -> None:
    with no_search_for_circles():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), no_search_for_circles():
        raise ZeroDivisionError
    assert gc.isenabled()
