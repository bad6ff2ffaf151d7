"""The start of scripts that tests share: where it does not serve, every script imports torch and its company anew."""

from __future__ import annotations

import importlib
import subprocess

from tests.fixtures.warm_start import LIBRARIES, warm_python


def test_scripts_start_warm_also_after_the_libraries_were_imported_in_this_process():
    """Libraries set variables when they are imported; none of them may be taken for one that a test has set."""
    start = warm_python()
    for library in (*LIBRARIES, "torch._inductor.compile_fx"):
        importlib.import_module(library)
    program = "import sys; print('torch' in sys.modules)"
    told = subprocess.run([*start, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"
