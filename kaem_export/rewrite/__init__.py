"""Rewrites of an exported graph, one file each: a function that takes a model, changes it in place and returns it.

Every file states what it matches, when it leaves the graph alone, and what holds afterwards. All of them use ONNX's
own operators alone, so that what ONNX Runtime runs is also what TensorRT and a browser run; `optimise.py` says which
ones are applied, and in which order.
"""
