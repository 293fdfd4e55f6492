"""Heads: each turns the features of one pass of the image tower into a score and a map, and knows one paper.

``base`` is the contract; ``maps`` and ``losses`` are the mathematics that heads share. A head sees features, never
images, and never runs a tower of its own. ``models`` and ``learning`` come in.
"""
