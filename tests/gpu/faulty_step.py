"""Steps that go wrong: what tests/gpu/test_probe.py has the probe run in place of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.gpu.probe.findings import Findings


def main() -> None:
    """Say one thing, and go wrong as the first argument says."""
    findings = Findings(known=sys.argv[2:])
    if not findings.knows("what is known before"):
        findings.both("what is known before", {"legacy": "this", "vmm": "that"})
    findings.figures("numbers", [1, 2])
    match sys.argv[1]:
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "raises":
            raise RuntimeError("CUDA said something unheard of")
        case "fails in part":
            with findings.attempt("first"):
                int("no room for the first")
            findings.row("second", "there is")
            sys.exit(findings.failed)
        case "takes long":
            if not findings.knows("first"):
                findings.row("first", "of two calls")
                time.sleep(600)
            findings.row("second", "of two calls")
        case "hangs":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            findings.row("the child's number", str(child.pid))
            time.sleep(600)
        case _:  # half a line
            sys.stdout.write('{"row": {"question": "cut')


if __name__ == "__main__":
    main()
