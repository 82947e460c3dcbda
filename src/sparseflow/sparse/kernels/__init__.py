"""The C++ core, and its kernels as functions on tensors and patterns."""
