"""The commands, a folder each: `bulksubmit`, and the subcommands of `flux-bulk`.

Only `doctor` uses the executor, in a process that has no other use. May import every other package.
"""
