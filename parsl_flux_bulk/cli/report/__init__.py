"""The report of a run: one HTML page, made of a trace.

`run_data.py` computes, `charts.py` draws with Bokeh, `page.py` puts the page together. Needs the extra
``report``. May import `trace`, `errors` and `version`.
"""
