"""Transposed convolutions with fewer products, for large batches."""
