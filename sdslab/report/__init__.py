"""``report.html``: a page that shows a run; ``python -m sdslab.report`` makes and compares them."""
