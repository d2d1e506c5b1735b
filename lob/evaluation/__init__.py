"""What an encoder is worth: untrained and fitted methods beside it, probes of its vector, its latency."""
