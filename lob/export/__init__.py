"""What the exporter adds to the encoder: a policy, and ONNX."""
