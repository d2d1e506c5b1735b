"""Rooms along the pipeline; see CONTRIBUTING.md for the rule of the house."""
