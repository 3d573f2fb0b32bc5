"""Figures: ours beside the rival, in the same run. Printed and kept, never asserted."""
