"""One run of the demo on a node, from the model to the summary.

Answers everything once without parking (the reference), then once within the budget, with a burst
of a GPU's owner in the middle, who takes its memory back; and cleans up whatever happens.
"""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack, closing
from functools import partial

import aqua_client
from aqua_client import AquaWarning
from aqua_client.demo.board import Board
from aqua_client.demo.gauges import read_gpus
from aqua_client.demo.happenings import Happening, Stage, TakenBack, Teller
from aqua_client.demo.middle import LENDABLE_SECONDS, Middle
from aqua_client.demo.model import Model
from aqua_client.demo.neighbours import Neighbour, Owner, neighbour_command, owner_command
from aqua_client.demo.node import GPU_BYTES, GPUS, SHORTENED, Node
from aqua_client.demo.parking import Parking
from aqua_client.demo.plan import BURST_GPU, HOME_GPU, Plan
from aqua_client.demo.serving import Served, Server
from aqua_client.demo.summary import Summary
from aqua_client.demo.text import piece
from aqua_client.demo.timelines import Timeline
from aqua_client.demo.watching import Watch, count
from aqua_client.errors import InvalidRequest

NEIGHBOUR_GPUS = tuple(f"SHM-{number}" for number in range(2, GPUS))


def run(plan: Plan, node: Node, *, tell: Teller) -> Summary:
    """The demo, whole, on a node that has been started.

    Raises:
        NodeFailed: the daemon did not come up.
    """
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", AquaWarning)  # what falls back is in the summary
        model = Model(plan.shape, threads=plan.threads)
        node.ready()
        client = aqua_client.connect(socket=node.socket, home_gpu=HOME_GPU)
        undo.enter_context(closing(client))
        watch = Watch(gauges=partial(read_gpus, node.metrics), stats=client.stats, tell=tell)
        undo.enter_context(watch)
        owner = undo.enter_context(closing(_owner(plan, node, tell)))
        neighbour = undo.enter_context(closing(_neighbour(plan, node, tell)))
        tell(Stage(title="reference: the same conversations, never parked"))
        reference = Server(model, plan, tell=tell).serve_all()
        _await_neighbours(owner, neighbour, watch, tell)
        tell(Stage(title="serving within the KV budget: who waits is parked on other GPUs"))
        middle = Middle(plan, watch, owner, tell=tell)
        parking = Parking(client)
        server = Server(model, plan, tell=tell, parking=parking, reference=reference.answers)
        served = server.serve_all(middle.before_turn)
        watch.look()
        middle.look()
        timelines, why_not = _rush(plan, model, client, tell=tell)
        seconds = time.monotonic() - node.started_at
        return summary(
            plan,
            reference,
            served,
            parking,
            watch=watch,
            taken_back=owner.taken_back(),
            seconds=seconds,
            rush=timelines,
            rush_left_out=why_not,
        )


def summary(
    plan: Plan,
    reference: Served,
    served: Served,
    parking: Parking,
    *,
    watch: Watch,
    taken_back: TakenBack | None,
    seconds: float,
    rush: tuple[Timeline, ...] = (),
    rush_left_out: str = "",
) -> Summary:
    """What the parts of a run say, put together."""
    stats = parking.store.stats()
    fallbacks = stats.get("fallbacks", {})
    return Summary(
        conversations=plan.conversations,
        turns=served.turns,
        tokens=served.tokens,
        threads=plan.threads,
        kv_budget_bytes=plan.kv_budget_bytes,
        peak_resident_kv_bytes=served.peak_resident_bytes,
        all_kv_bytes=served.all_kv_bytes,
        parks=parking.parks,
        fetches=parking.fetches,
        parked_bytes=dict(parking.parked_bytes),
        fetched_bytes=dict(parking.fetched_bytes),
        lenders=dict(watch.lenders),
        revokes_served=count(stats, "revokes_served"),
        evacuated_bytes=count(stats, "evacuated_bytes"),
        fallbacks=dict(fallbacks) if isinstance(fallbacks, dict) else {},
        taken_back=taken_back,
        differing_outputs=served.differing(reference.answers),
        tensors_compared=parking.tensors_compared,
        tensors_differing=parking.tensors_differing,
        reference_seconds=reference.seconds,
        parking_seconds=served.seconds,
        seconds=seconds,
        rush=rush,
        rush_left_out=rush_left_out,
    )


def _rush(
    plan: Plan, model: Model, client: aqua_client.Client, *, tell: Teller
) -> tuple[tuple[Timeline, ...], str]:
    """The last chapter; where its engine is not to be had, nothing, and why."""
    try:
        from aqua_client.demo.rush import serve_rush
    except ImportError as error:
        return (), f"{error}; pip install 'aqua-broker[serving]'"
    tell(Stage(title="a rush of requests: first come, first served, then fair slices over leases"))
    board = Board(plan)

    def both(happening: Happening) -> None:
        board.tell(happening)
        tell(happening)

    prompts = [
        piece(plan, conversation=number, turn=0)[: plan.rush.prompt_bytes]
        for number in range(len(plan.rush.reply_tokens))
    ]
    try:
        serve_rush(model.llama, plan.rush, prompts, client, tell=both)
    except InvalidRequest as error:
        return (), f"{error}; pip install 'aqua-broker[serving]'"
    return tuple(board.timelines.values()), ""


def _owner(plan: Plan, node: Node, tell: Teller) -> Owner:
    command = owner_command(
        plan.owner_bytes,
        lend_bytes=GPU_BYTES,
        socket=node.socket,
        keeper_socket=node.keeper_socket,
    )
    return Owner(command, tell=tell)


def _neighbour(plan: Plan, node: Node, tell: Teller) -> Neighbour:
    command = neighbour_command(
        NEIGHBOUR_GPUS, plan.neighbour_bytes, keeper_socket=node.keeper_socket
    )
    return Neighbour(command, tell=tell)


def _await_neighbours(owner: Owner, neighbour: Neighbour, watch: Watch, tell: Teller) -> None:
    """Until they are there, and their GPUs have been quiet for long enough to be lent."""
    tell(Stage(title=SHORTENED))
    is_there = owner.wait_lending() and neighbour.wait_loaded(len(NEIGHBOUR_GPUS))
    for gpu in (BURST_GPU, *NEIGHBOUR_GPUS) if is_there else ():
        watch.wait_lendable(gpu, seconds=LENDABLE_SECONDS)
