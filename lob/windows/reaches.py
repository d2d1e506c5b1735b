"""How far the features of a market look back and into the book.

Two modules share these numbers: the outlook, which is a task in training
(lob/training/objective.py), and the hand-made features that a trained encoder is compared with
(lob/evaluation/probe_tasks.py).
"""

REACHES = (5, 20, 80)  # states back; the whole window is looked at too
DEPTHS = (1, 3, 10)  # levels of a side, counted from the best; the whole side is looked at too
