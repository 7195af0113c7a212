"""Packed jobs: small jobs that share one Flux job on each node, instead of being one each.

`packed_jobs` is the instance, `node_job_launcher` starts the node jobs, `node_job` is their program.
May import `blocks.relay`, `instances`, and what is below them.
"""
