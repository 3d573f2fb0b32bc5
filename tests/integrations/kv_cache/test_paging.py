"""What is stored and fetched, and when: each token once, and layers as they are needed."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence

import pytest
import torch

from aqua_client.errors import InsufficientMemory, InvalidRequest, InvalidSetting, LeaseLost
from aqua_client.integrations.kv_cache import AquaCache, segments
from aqua_client.integrations.kv_cache.layer import AquaLayer
from aqua_client.tensors import OffloadedTensor
from tests.client.pagers import two_gpus
from tests.fakes.session import FakeNode
from tests.integrations.kv_cache import models
from tests.integrations.kv_cache.feeding import feed
from tests.integrations.kv_cache.models import LAYERS, TOKEN_BYTES
from tests.integrations.kv_cache.stores import PagerClient, storing
from tests.nodes import wait_until

PROMPT = 60
TAIL = 4


class Watched(AquaCache):
    """Notes what is resident after each layer's update."""

    seen_bytes: tuple[int, ...] = ()
    seen_next: tuple[bool, ...] = ()  # whether the next layer is there, or on its way

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = super().update(key_states, value_states, layer_idx)
        self.seen_bytes += (self.resident_bytes,)
        following = self.layers[(layer_idx + 1) % len(self.layers)]
        assert isinstance(following, AquaLayer)
        self.seen_next += (following._arrival is not None or following._start == 0,)
        return found


class FailingAhead:
    """A client that fails whenever a thread of the library's own fetches."""

    def __init__(self, client: PagerClient) -> None:
        self._client = client
        self.offload_many = client.offload_many
        self.failures = 0

    def fetch_many(
        self, handles: Sequence[OffloadedTensor], outs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        if threading.current_thread() is not threading.main_thread():
            self.failures += 1
            raise RuntimeError("no copy ahead")
        return self._client.fetch_many(handles, outs)


def test_each_steps_bytes_are_the_suffix_alone() -> None:
    """What has gone out is never more than the tokens that there are, each once."""
    with storing() as client:
        cache = AquaCache(tail_tokens=TAIL, client=client)
        models.read(cache, models.prompt(PROMPT))
        for step in range(1, 41):
            models.read(cache, models.prompt(1, seed=step))
            out_bytes = client.count("peer_out_bytes")
            assert out_bytes <= (PROMPT + step) * LAYERS * TOKEN_BYTES
        assert out_bytes >= (PROMPT + 40 - 2 * TAIL) * (LAYERS - 1) * TOKEN_BYTES
        assert client.count("peer_in_bytes") > 40 * (PROMPT - TAIL) * (LAYERS - 1) * TOKEN_BYTES
        assert max(client.stored_bytes[LAYERS:]) <= 2 * TAIL * TOKEN_BYTES


def test_beams_change_places_without_being_stored_again() -> None:
    """Each beam's tokens go out once, though beams are reordered at each step."""
    with storing() as client:
        cache = AquaCache(tail_tokens=TAIL, client=client)
        models.generate(cache, models.prompt(PROMPT), {"num_beams": 3}, new=24)
        whole = 3 * cache.get_seq_length() * LAYERS * TOKEN_BYTES
        assert whole / 2 < client.count("peer_out_bytes") <= whole


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_more_layers_are_resident_than_may_be(limit: int) -> None:
    """The others have no more than their tails, at every moment of every pass."""
    with storing() as client:
        cache = Watched(resident_layers=limit, tail_tokens=TAIL, client=client)
        models.read(cache, models.prompt(PROMPT))
        for step in range(5):
            models.read(cache, models.prompt(1, seed=step))
        whole = (PROMPT + 5 + 2 * TAIL) * TOKEN_BYTES
        assert len(cache.seen_bytes) == 6 * LAYERS
        assert max(cache.seen_bytes) <= limit * whole + LAYERS * 2 * TAIL * TOKEN_BYTES


def test_the_next_layer_comes_while_one_computes() -> None:
    """From the first pass on, in which there is nothing yet to come but the first layer."""
    with storing() as client:
        cache = Watched(resident_layers=2, tail_tokens=TAIL, client=client)
        for step in range(4):
            models.read(cache, models.prompt(PROMPT if step == 0 else 1, seed=step))
        assert len(cache.seen_next) == 4 * LAYERS
        assert all(cache.seen_next[LAYERS - 1 :])


def test_what_fails_ahead_of_its_use_is_read_at_its_use() -> None:
    """Whatever a background copy ran into, the bytes are right."""
    with storing() as client:
        failing = FailingAhead(client)
        cache = AquaCache(tail_tokens=TAIL, client=failing)
        assert feed(cache, device="cpu", prompt_tokens=PROMPT, steps=20) == []
        assert failing.failures > 0


def test_a_long_prompt_comes_and_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call reads more than one: between two a process that ends is noticed."""
    monkeypatch.setattr(segments, "PIECE_BYTES", 4096)
    with storing() as client:
        cache = AquaCache(tail_tokens=TAIL, client=client)
        assert feed(cache, device="cpu", prompt_tokens=500, steps=30) == []
        assert client.fetched_bytes
        assert max(client.fetched_bytes) <= 2 * (
            4096 + 2048
        )  # keys and values; small ones together


def test_layers_that_there_is_room_for_stay_for_good() -> None:
    """With room for three of four, two stay and two come and go."""
    with storing() as client:
        cache = AquaCache(resident_layers=3, tail_tokens=TAIL, client=client)
        models.read(cache, models.prompt(PROMPT))
        models.read(cache, models.prompt(1))
        before = client.count("peer_in_bytes")
        for step in range(10):
            models.read(cache, models.prompt(1, seed=step))
        fetched = client.count("peer_in_bytes") - before
        assert fetched <= 10 * 2 * (PROMPT + 12) * TOKEN_BYTES


@pytest.mark.parametrize("limit", [1, 2, 3, None])
def test_every_byte_comes_back_whatever_is_done_between_steps(limit: int | None) -> None:
    """Parked, resumed, cropped and reordered at random: each update gives what the stock one does."""
    for seed in range(3):
        with storing() as client:
            cache = AquaCache(resident_layers=limit, tail_tokens=4, client=client)
            assert feed(cache, device="cpu", prompt_tokens=50, steps=60, seed=seed) == []
            assert client.count("peer_in_bytes") > 0


def test_a_small_crop_touches_nothing_that_is_stored() -> None:
    """As assisted generation does after each step: no layer comes back for it."""
    with storing() as client:
        cache = AquaCache(resident_layers=1, tail_tokens=TAIL, client=client)  # none comes ahead
        models.read(cache, models.prompt(PROMPT))
        models.read(cache, models.prompt(1))
        before = client.pager.stats()
        cache.crop(-TAIL)
        after = client.pager.stats()
        assert (after["fetches"], after["offloads"]) == (before["fetches"], before["offloads"])


def test_a_parked_conversation_takes_no_memory_here_and_parking_again_only_what_is_new() -> None:
    """All is stored in one call; after a turn the next park stores that turn, and a tail at most."""
    with storing() as client:
        cache = AquaCache(resident_layers=None, tail_tokens=TAIL, client=client)
        models.read(cache, models.prompt(PROMPT))
        assert client.stored_bytes == []
        cache.park()
        assert client.stored_bytes == [PROMPT * LAYERS * TOKEN_BYTES]
        assert (cache.resident_bytes, cache.stored_bytes) == (0, client.stored_bytes[0])
        assert cache.get_seq_length() == PROMPT
        cache.park()
        assert len(client.stored_bytes) == 1
        models.read(cache, models.prompt(2))
        cache.park()
        models.read(cache, models.prompt(3))
        cache.park()
        per_token = LAYERS * TOKEN_BYTES
        assert client.stored_bytes[1:] == [2 * per_token, 5 * per_token]  # two were a short segment
        assert cache.stored_bytes == client.count("peer_bytes") == (PROMPT + 5) * per_token


@pytest.mark.parametrize(("limit", "layers"), [(None, LAYERS), (2, 2)])
def test_resume_brings_back_what_may_be_resident(limit: int | None, layers: int) -> None:
    """The next pass finds these layers there."""
    with storing() as client:
        cache = AquaCache(resident_layers=limit, tail_tokens=TAIL, client=client)
        models.read(cache, models.prompt(PROMPT))
        cache.park()
        cache.resume()
        assert cache.resident_bytes >= layers * PROMPT * TOKEN_BYTES
        fetched = client.count("peer_in_bytes")
        assert fetched == layers * PROMPT * TOKEN_BYTES
        cache.resume()
        assert client.count("peer_in_bytes") == fetched


def test_memory_goes_back_with_the_cache() -> None:
    """Without waiting for a collection of cycles."""
    with storing() as client:
        cache = AquaCache(tail_tokens=TAIL, client=client)
        models.read(cache, models.prompt(PROMPT))
        cache.park()
        gc.disable()
        try:
            del cache
            assert client.count("peer_bytes") == 0
        finally:
            gc.enable()


def test_a_conversation_that_was_dropped_is_said_to_be_lost() -> None:
    """`cache` may be dropped at a revoke: the next turn raises, and after reset all is well."""
    node = two_gpus()
    with storing(node) as client:
        cache = AquaCache(tail_tokens=TAIL, keep="cache", client=client)
        models.read(cache, models.prompt(PROMPT))
        cache.park()
        for gpu in ("SHM-1", "SHM-2"):
            node.revoke(gpu)
        wait_until(lambda: client.count("peer_bytes") == 0, what="all is dropped")
        for call in (cache.resume, lambda: models.read(cache, models.prompt(1))):
            with pytest.raises(LeaseLost, match="conversation"):
                call()
        cache.reset()
        models.read(cache, models.prompt(PROMPT))
        assert cache.get_seq_length() == PROMPT


def test_a_park_without_room_changes_nothing() -> None:
    """The error has the figures, and the conversation goes on."""
    with storing(FakeNode(unreachable="no_daemon"), host_limit_bytes=2**13) as client:
        cache = AquaCache(resident_layers=None, client=client)
        models.read(cache, models.prompt(PROMPT))
        resident = cache.resident_bytes
        with pytest.raises(InsufficientMemory):
            cache.park()
        assert (cache.resident_bytes, cache.stored_bytes) == (resident, 0)
        models.read(cache, models.prompt(1))


def test_what_can_not_be_is_refused() -> None:
    """Gradients, another batch, no layers, no tail, an unknown class."""
    with storing() as client:
        cache = AquaCache(client=client)
        with pytest.raises(InvalidRequest, match="no_grad"):
            models.model()(models.prompt(3), past_key_values=cache)
        cache.reset()
        models.read(cache, models.prompt(3, batch=2))
        with pytest.raises(InvalidRequest, match="batch"):
            models.read(cache, models.prompt(3, batch=1))
        (first, *_) = cache.layers
        assert isinstance(first, AquaLayer)
        with pytest.raises(InvalidRequest, match="crop"):
            first.keys = torch.zeros(2, 2, 1, 16)
    with pytest.raises(InvalidSetting, match="resident_layers"):
        AquaCache(resident_layers=0)
    with pytest.raises(InvalidSetting, match="tail_tokens"):
        AquaCache(tail_tokens=0)
    with pytest.raises(InvalidRequest, match="keep"):
        AquaCache(keep="always")
