"""A long prompt whose keys and values are above the budget, streamed layer by layer."""
