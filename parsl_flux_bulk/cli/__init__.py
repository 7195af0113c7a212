"""The commands: arguments, inputs, one module a command, report, progress.

May import every other package but `executor`.
"""
