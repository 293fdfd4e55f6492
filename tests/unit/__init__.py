"""Tests of single parts, with numbers that can be checked by hand."""
