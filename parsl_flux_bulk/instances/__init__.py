"""Where jobs run: the seam (`base`), the choice (`factory`), and the implementations in folders below.

May import `jobspec`, `worker` and `protocol`.
"""
