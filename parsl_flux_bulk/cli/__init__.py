"""The commands: arguments, inputs, one module a command, report, progress.

`bulksubmit` does without Parsl. May import every other package but `executor`.
"""
