"""Distributions to quantile tables: quadrature, leaves, search trees, and the nodes that look them up."""
