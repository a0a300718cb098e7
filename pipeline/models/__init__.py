"""Trained weights as checked, versioned bundles, and running them through ONNX Runtime."""
