"""What both ends must agree on: frames, serialization, names of variables.

May import `errors`.
"""
