"""Models in one file: architecture as data, weights by their non-zeros; and ONNX."""
