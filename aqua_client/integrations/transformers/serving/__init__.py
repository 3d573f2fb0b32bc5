"""A server of OpenAI's completions and chat over one engine; `app` says what there is.

    python -m aqua_client.integrations.transformers serve MODEL_DIR

The order of the modules; each may use those after it:

    app -> speaking | gauges | answering -> answers -> asked | pieces | paces -> refusals
    starting makes the engine from a directory; `__main__` beside this package puts it together.
"""
