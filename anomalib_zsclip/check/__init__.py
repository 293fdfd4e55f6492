"""Whether this machine computes what the papers' mathematics says, on every device, and how fast.

``python -m anomalib_zsclip.check`` makes one table and one JSON file, and ends with status 1 where something is wrong.
"""
