"""Instances launched through a Parsl provider: their manager, the program in each, and the relay between.

May import `instances` and what is below it.
"""
