"""Image data sets, whatever files they lie in: served as float32 batches in [0, 1], split, with a fingerprint."""

from kaem_train.data.dataset import Dataset, load_dataset
from kaem_train.data.order import batch_indices, training_batch
from kaem_train.data.pixels import Images

__all__ = ["Dataset", "Images", "batch_indices", "load_dataset", "training_batch"]
