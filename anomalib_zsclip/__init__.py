"""CLIP-based zero-shot anomaly detection for anomalib 2.x."""
