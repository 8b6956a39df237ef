"""How good a model is: distances of its samples from real images, likelihood, reconstruction.

`evaluate.evaluate` is the whole story on one page; every figure has a file of its own.
"""
