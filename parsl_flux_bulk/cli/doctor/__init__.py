"""What `flux-bulk doctor` checks: whether this machine can run jobs and tasks.

May import every package below `cli`.
"""
