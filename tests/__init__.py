"""Tests of anomalib-zsclip."""
