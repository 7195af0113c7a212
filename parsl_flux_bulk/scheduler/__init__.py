"""Which jobs exist, and which worker gets which task: a state machine without threads, clock or I/O.

May import the job record of `pipeline`, `instances.base` and `jobspec`.
"""
