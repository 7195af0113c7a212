"""The live view of a run in a terminal, made of its trace as the trace grows.

`summary.py` computes and words what is shown, `app.py` shows it with Textual. Needs the extra ``top``.
May import `trace`, `jobspec`, `errors` and `version`.
"""
