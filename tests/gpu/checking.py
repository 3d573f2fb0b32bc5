"""One check in a process of its own: pytest's tests, and what came of each as findings.

python -m tests.gpu.checking NAME [--quick]

pytest's own words go to standard error; what failed is in the findings.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.gpu.probe.findings import Findings
from tests.gpu.tasks import CHECKS

_ENDED = re.compile(r"\S+::(?P<name>.+?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED)\b")
_WORDS = 160  # of what failed
# What packages of a machine that nobody chose plan to change is told, and fails nothing.
_LENIENT = [
    f"-Wdefault::{kind}"
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "UserWarning")
] + ["-Werror::aqua_client.AquaWarning"]


def main() -> int:
    """Run the check; 0 if no test failed and some passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.checking")
    parser.add_argument("name", choices=[check.name for check in CHECKS])
    parser.add_argument("--quick", action="store_true", help="means nothing here")
    chosen = parser.parse_args()
    (check,) = (check for check in CHECKS if check.name == chosen.name)
    return run(("-m", "gpu", *check.words), Findings())


def run(words: Sequence[str], findings: Findings) -> int:
    """Run pytest with *words*; 0 if no test failed and some passed: skipping shows nothing."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "results.xml"
        arguments = ["-v", "-p", "no:cacheprovider", f"--junitxml={path}", *_LENIENT, *words]
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        ) as done:
            assert done.stdout is not None
            _tell(done.stdout, findings)
        cases = list(_cases(path)) if path.exists() else []
    others = [(name, text) for name, text, _ in cases if text]
    passed = len(cases) - len(others)
    findings.row("passed", f"{passed} of {len(cases)}")
    for name, text in others:
        findings.row(name, text)
    findings.figures("seconds by test", {name: seconds for name, _, seconds in cases})
    return 0 if done.returncode == 0 and passed else 1


def _tell(said: Iterable[str], findings: Findings) -> None:
    """As each test ends, for the record of a check that its time ends before."""
    so_far: dict[str, str] = {}
    for line in said:
        sys.stderr.write(line)
        found = _ENDED.match(line)
        if found is not None:
            so_far[found["name"]] = found["outcome"].lower()
            findings.figures("so far", so_far)


def _cases(path: Path) -> Iterator[tuple[str, str, float]]:
    """Each test: its name, what it came to (empty: it passed), and its seconds."""
    root = ET.parse(path).getroot()  # noqa: S314 - pytest has just written it
    for case in root.iter("testcase"):
        others = [child for child in case if child.tag in {"failure", "error", "skipped"}]
        text = f"{others[0].tag}: {others[0].get('message', '')}" if others else ""
        yield case.get("name", ""), " ".join(text.split())[:_WORDS], float(case.get("time", "0"))


if __name__ == "__main__":
    sys.exit(main())
