"""What an encoder is worth: naive methods beside it, probes of its embedding, its latency."""
