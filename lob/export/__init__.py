"""What the exporter adds to the encoder: a policy, files in two formats, and their check."""
