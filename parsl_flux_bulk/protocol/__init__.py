"""What both ends must agree on: frames, serialization, names of environment variables.

May import `errors`.
"""
