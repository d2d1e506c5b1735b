"""What the scripts are made of: one room (a package) for each part of the pipeline.

The rule of the house: scripts tell, rooms do. What reads the config or decides the order of a
stage's work stands in its script. All else stands in the room of the first stage that needs it. A
room imports only from rooms above it in this list, or left of it in its line:

    config storage results jit plotting
    feeds, book, windows, model
    training | evaluation | export

The last three don't import one another. `feeds`, `book` and `windows` don't import torch, and only
one module imports Transformer Engine. No room takes a config dict: it takes the values that it
needs. CONTRIBUTING.md says more, and tests/test_house.py enforces it.
"""
