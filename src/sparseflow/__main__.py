"""``python -m sparseflow``, which is also how torchrun starts it."""

from sparseflow.cli import main

main()
