"""Which job exists, and which worker gets which task: a state machine without clock or I/O.

May import the records of `pipeline`, `instances.base` and `jobspec`, and nothing that waits or sends.
"""
