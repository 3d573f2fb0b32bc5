"""The record of all steps in one JSON file, written whole after each, so that a call can resume."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tests.gpu.probe.running import CUT, Record


class Results:
    """Records by step; kept in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        """Take up what the file holds.

        Raises:
            ValueError: it is not a file of this kind.
        """
        self._path = path
        self.records: dict[str, Record] = {}
        if path is not None and path.exists():
            try:
                steps = json.loads(path.read_text())["steps"]
                self.records = {name: Record(**record) for name, record in steps.items()}
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{path} holds no results of this probe: {error!r}") from None

    def has(self, name: str, *, quick: bool) -> bool:
        """Whether a step is done; a rehearsal does not stand for the real thing."""
        record = self.records.get(name)
        return record is not None and record.outcome != CUT and (quick or not record.quick)

    def begun(self, name: str) -> Record | None:
        """What a step had found when its time was up; None: it is done, or was not begun."""
        record = self.records.get(name)
        return record if record is not None and record.outcome == CUT else None

    def add(self, name: str, record: Record) -> None:
        """Keep it; the file is replaced whole."""
        self.records[name] = record
        if self._path is None:
            return
        steps = {step: asdict(known) for step, known in self.records.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(json.dumps({"steps": steps}, indent=2) + "\n")
        beside.replace(self._path)
