"""The main job in small: a model server that holds more conversations than its KV budget.

`python -m aqua_client.demo` starts a node of eight shm GPUs (keeper and daemon, as processes), then
serves conversations with a Llama-architecture model: at each turn a conversation reads more of a
text and answers. Only a few conversations' KV caches fit the budget; those of the waiting ones are
parked by `aqua_client` in leases on other GPUs and fetched back at their turn. Those GPUs have owners
of their own, one of which has a burst in the middle: it takes back what is lent of its GPU, and
lends it again. At the end every answer is compared, token for token, with a run that never parked,
and every parked byte with what came back.

Then a rush: requests that come all at once to an engine (transformers' continuous batching) whose KV
cache holds a few of them, first come, first served, and in fair slices over leases; both as
timelines, a row for each request.

The text, `text.txt`, is the Declaration of Independence and two addresses by Abraham Lincoln, all
in the public domain. Weights are random and seeded: the model says nothing, exactly.

The order of the modules; each may use those after it:

    __main__ -> screen | lines | report -> board
    __main__ -> running -> middle | rush -> neighbours | watching | serving -> parking -> model
    all      -> node | gauges | summary | text -> timelines -> happenings -> plan

`owner` is a program of its own, which `neighbours` starts.
"""
