"""An hour of ordinary trouble: every byte is right, and memory and descriptors stay flat."""
