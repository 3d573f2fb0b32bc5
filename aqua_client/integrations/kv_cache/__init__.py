"""A KV cache for `generate()` of transformers whose layers lie in leased memory."""

from aqua_client.integrations.kv_cache.cache import AquaCache

__all__ = ["AquaCache"]
