"""Benchmarks of truly sparse execution: layers, whole steps, inference, memory, the roofline."""
