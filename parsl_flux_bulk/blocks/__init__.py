"""Blocks, instances that a Parsl provider launches: their manager, the program in each, the relay between.

May import `instances`, `providers`, and what is below them.
"""
