"""Windows of states: which there are, what the market was like in them, which ones are sampled."""
