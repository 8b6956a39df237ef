"""Image data sets as float32 tensors (N, C, H, W) in [0, 1] with a held-out split and a fingerprint."""

from kaem_train.data.dataset import Dataset, batch_indices, load_dataset

__all__ = ["Dataset", "batch_indices", "load_dataset"]
