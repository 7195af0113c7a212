"""The `bulksubmit` command, which does without Parsl: arguments, inputs, the run, what is printed.

May import every other package but `executor`, `pool` and the other commands, of which it uses `report`.
"""
