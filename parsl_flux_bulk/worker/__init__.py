"""What runs inside a job: managers, worker processes, MPI ranks.

Standard library only until a task needs more.

May import `protocol` and `errors`.
"""
