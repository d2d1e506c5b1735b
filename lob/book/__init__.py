"""The order book: update rows in, complete states out, and their files."""
