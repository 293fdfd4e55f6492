"""Heads: each turns the features of one pass of the image tower into a score and a map, and knows one paper.

``base`` is the contract; ``maps``, ``losses`` and ``two_sentences`` are the mathematics that heads share. Beside the heads
stand their companions, which read the same pass: ``memory_bank`` with ``mutual`` and ``mutual_scoring`` compares patches
with those of other images, ``explanation`` names defects. All see features, never images, and run no tower; but for two
options, windows of the random-word head and image tokens of Crane. ``outputs``, ``learning``, ``models`` and ``check``
come in.
"""
