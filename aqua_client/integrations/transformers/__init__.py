"""Fair time slices, and KV caches paged to leases, in transformers' continuous batching.

    config = ContinuousBatchingConfig(scheduler_type="aqua_fair", use_cuda_graph=False)
    manager = model.init_continuous_batching(continuous_batching_config=config)
    aqua_client.integrations.transformers.attach(manager)
    manager.start()

From then on a request that has to give way keeps its KV cache in leased memory, and is continued
from there; without AQUA it would be computed again. `python -m aqua_client.integrations.transformers
serve MODEL_DIR` is a server with it. No fork: what is replaced is what the manager asks, and it is
tested on transformers 5.17 and 5.23.

The order of the modules; each may use those after it:

    __main__ -> serving -> attaching | lending -> fair -> paging -> copies -> engine
"""

from __future__ import annotations

from aqua_client.integrations.transformers.attaching import attach
from aqua_client.integrations.transformers.lending import Lending
from aqua_client.integrations.transformers.paging import Paging

__all__ = ["Lending", "Paging", "attach"]
