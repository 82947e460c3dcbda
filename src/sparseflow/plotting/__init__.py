"""How numbers, tables and figures look: shared by studies and report, of which it knows nothing.

:mod:`~sparseflow.plotting.style` needs matplotlib, which comes with the extra
``report``; whoever draws imports it through :func:`sparseflow.core.extra.late`.
"""
