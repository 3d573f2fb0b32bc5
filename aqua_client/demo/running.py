"""One run of the demo on a node, from the model to the summary.

Answers everything once without parking (the reference), then once within the budget, with an owner
taking its GPU's memory back in the middle; and cleans up whatever happens.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial

import aqua_client
from aqua_client.demo.gauges import read_gpus
from aqua_client.demo.happenings import GpuBytes, Stage, Teller
from aqua_client.demo.middle import Middle
from aqua_client.demo.model import Model
from aqua_client.demo.node import Node
from aqua_client.demo.parking import Parking
from aqua_client.demo.plan import HOME_GPU, Plan
from aqua_client.demo.serving import Served, Server
from aqua_client.demo.summary import Summary, TakenBack
from aqua_client.demo.taking_back import Owner, owner_command
from aqua_client.demo.watching import Watch, count


def run(plan: Plan, node: Node, *, tell: Teller) -> Summary:
    """The demo, whole, on a node that has been started.

    Raises:
        NodeFailed: the daemon did not come up.
    """
    with ExitStack() as undo:
        model = Model(plan.shape, threads=plan.threads)
        node.ready()
        client = aqua_client.connect(socket=node.socket, home_gpu=HOME_GPU)
        undo.enter_context(closing(client))
        watch = Watch(gauges=partial(read_gpus, node.metrics), stats=client.stats, tell=tell)
        undo.enter_context(watch)
        tell(Stage(title="reference: the same conversations, never parked"))
        reference = Server(model, plan, tell=tell).serve_all()
        tell(Stage(title="serving within the KV budget: who waits is parked on other GPUs"))
        make_owner = partial(_owner, node=node, tell=tell)
        middle = Middle(plan, watch, make_owner=make_owner, tell=tell)
        undo.enter_context(closing(middle))
        parking = Parking(client)
        server = Server(model, plan, tell=tell, parking=parking, reference=reference.answers)
        served = server.serve_all(middle.before_turn)
        watch.look()
        seconds = time.monotonic() - node.started_at
        return summary(
            plan,
            reference,
            served,
            parking,
            watch=watch,
            taken_back=middle.taken_back(),
            seconds=seconds,
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
    )


def _owner(gpu: GpuBytes, *, node: Node, tell: Teller) -> Owner:
    command = owner_command(gpu, socket=node.socket, keeper_socket=node.keeper_socket)
    return Owner(gpu, command, tell=tell)
