"""The relay between the executor (`server`, `instance`) and the program in a block (`join`, `client`).

May import `instances.base`, `instances.events`, `protocol`, `errors`, and ZeroMQ.
"""
