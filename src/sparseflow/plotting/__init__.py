"""How numbers, tables and figures look: shared by studies and report, of which it knows nothing.

Style, heat maps and histograms need matplotlib, which comes with the extra
``report``; whoever draws takes them from :mod:`sparseflow.plotting.drawing`.
"""
