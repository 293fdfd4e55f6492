"""Comparison, number by number, with recorded outputs of the published programs."""
