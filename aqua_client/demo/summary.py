"""What a run came to, as one record, and what about it is wrong, as sentences. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from aqua_client.demo.happenings import TakenBack
from aqua_client.demo.timelines import Timeline

SCHEMA = 1
TIERS = ("peer", "host", "mixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run, whole. Bytes by tier are by the tier that a tensor was in as it went or came."""

    conversations: int
    turns: int
    tokens: int
    threads: int
    kv_budget_bytes: int
    peak_resident_kv_bytes: int
    all_kv_bytes: int  # of all conversations at the end
    parks: int
    fetches: int
    parked_bytes: dict[str, int]
    fetched_bytes: dict[str, int]
    lenders: dict[str, int]  # by GPU, the most that was lent at once
    revokes_served: int
    evacuated_bytes: int
    fallbacks: dict[str, int]  # of the client to host memory, by reason
    taken_back: TakenBack | None
    differing_outputs: list[int]  # conversations
    tensors_compared: int
    tensors_differing: int
    reference_seconds: float
    parking_seconds: float
    seconds: float
    rush: tuple[Timeline, ...] = ()  # first come first served, then in fair slices
    rush_left_out: str = ""  # why there was none

    @property
    def peer_bytes(self) -> int:
        """What went to other GPUs; a tensor in both tiers counts."""
        return self.parked_bytes.get("peer", 0) + self.parked_bytes.get("mixed", 0)

    def faults(self) -> list[str]:
        """Each thing that the demo promises and that did not come true."""
        return [
            *self._outputs_fault(),
            *self._bytes_fault(),
            *self._peer_fault(),
            *self._revokes_fault(),
            *self._burst_fault(),
            *self._budget_fault(),
            *self._rush_fault(),
        ]

    def document(self) -> dict[str, object]:
        """For machines."""
        faults = self.faults()
        return {
            "schema": SCHEMA,
            "passed": not faults,
            "faults": faults,
            "outputs_equal": not self.differing_outputs,
            "parked_bytes_equal": self.tensors_compared > 0 and self.tensors_differing == 0,
            **asdict(self),
            "parked_bytes": {**dict.fromkeys(TIERS, 0), **self.parked_bytes},
            "fetched_bytes": {**dict.fromkeys(TIERS, 0), **self.fetched_bytes},
            "rush": [one.document() for one in self.rush],
        }

    def _outputs_fault(self) -> list[str]:
        if not self.differing_outputs:
            return []
        named = ", ".join(str(number) for number in self.differing_outputs)
        return [f"The answers of conversations {named} differ from the run that never parked."]

    def _bytes_fault(self) -> list[str]:
        if self.tensors_differing:
            return [
                (
                    f"{self.tensors_differing} of {self.tensors_compared} parked tensors came back "
                    "with other bytes than they went with."
                )
            ]
        if not self.tensors_compared:
            return ["Nothing was parked and fetched, so nothing was compared."]
        return []

    def _peer_fault(self) -> list[str]:
        if self.peer_bytes:
            return []
        reasons = ", ".join(f"{reason} {count}x" for reason, count in self.fallbacks.items())
        because = f" The client fell back to host memory because of: {reasons}." if reasons else ""
        return [f"Nothing was parked on another GPU.{because}"]

    def _revokes_fault(self) -> list[str]:
        if not self.revokes_served:
            return ["No revoke was served: the model server gave nothing back."]
        return []

    def _burst_fault(self) -> list[str]:
        taken = self.taken_back
        if taken is None:
            return ["The owner that asked for its GPU's memory got no answer."]
        if not taken.freed_bytes:
            return [f"The burst on {taken.gpu} got nothing back of what was lent there."]
        if not taken.lent_again_bytes:
            return [f"Nothing of {taken.gpu} was lent again after the burst."]
        return []

    def _budget_fault(self) -> list[str]:
        if self.peak_resident_kv_bytes <= self.kv_budget_bytes:
            return []
        return [
            (
                f"Resident KV reached {self.peak_resident_kv_bytes} bytes, "
                f"more than the budget of {self.kv_budget_bytes}."
            )
        ]

    def _rush_fault(self) -> list[str]:
        if not self.rush:
            return []
        plain, fair = self.rush
        if plain.tokens != fair.tokens:
            return [f"The rush was answered with {plain.tokens} tokens, in slices {fair.tokens}."]
        if not fair.parked:
            return ["Nobody gave way in the rush, so fair slices were not shown."]
        return []
