"""One instance made of others that come and go: blocks, or node jobs inside a Flux instance.

May import `instances.base`, `instances.events`, `instances.flux`, `jobspec` and `protocol`.
"""
