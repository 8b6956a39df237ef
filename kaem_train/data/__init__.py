"""Image data sets, whatever files they lie in: served as float32 batches in [0, 1], split, with a fingerprint."""

from kaem_train.data.dataset import Dataset, load_dataset
from kaem_train.data.order import choose_batch, take_batch
from kaem_train.data.pixels import Images

__all__ = ["Dataset", "Images", "choose_batch", "load_dataset", "take_batch"]
