"""The demo: its parts with a stand-in store, and the whole of it once."""
