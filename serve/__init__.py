"""The server: rows of many requests share batches, images come back as streams; no torch, no training code."""
