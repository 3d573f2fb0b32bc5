"""Elastic nodes: demand and supply that breathe, and whether everybody comes to its fair share.

Storms, in which borrowers and owners follow patterns and some die, stop or get stuck, alternate
with times in which every load stays as it is. Then shares are compared with what is fair by the
books of the oracle, and what oscillates round a threshold must move nothing.
"""
