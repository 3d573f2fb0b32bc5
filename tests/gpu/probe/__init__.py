"""The questions that decide how memory is lent, asked of the machine's own driver.

    python -m tests.gpu.probe --json FILE

Each step is one question in a file of its own (`steps/`), answered by processes that are started,
killed and timed for it; a hang or a crash is an answer. Knows nothing of the daemon, the keeper or
the client library: what it finds is what they are built on.
"""
