"""One instance: jobs in through the submitter, ends out through the completion thread.

May import `instances` and what is below it.
"""
