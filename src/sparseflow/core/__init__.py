"""The ground floor: random streams, exact selection, files, errors, gradients of a loss."""
