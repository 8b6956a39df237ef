"""Rows of many requests share batches: who is let in, who goes next, what a batch costs."""
