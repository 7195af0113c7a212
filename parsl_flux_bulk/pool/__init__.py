"""The interface of :mod:`concurrent.futures`: functions on Flux without Parsl's apps.

May import every package but `cli` and `bulk`.
"""
