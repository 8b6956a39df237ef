"""A device that is not the CPU, computed on the CPU: what holds for a GPU about where tensors are, without one.

Its tensors say that they are on `meta`, carry real numbers, and refuse to meet tensors of the CPU as those of a GPU
do: single numbers, indices and copies are allowed, all else is a RuntimeError.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")

_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default}


class OtherTensor(torch.Tensor):
    """A tensor of the other device around the tensor that holds its numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )

    def __init__(self, inner):
        self.inner = inner

    is_meta = False  # torch would not load weights into it

    def tolist(self):
        if not _waiting_is_allowed:
            raise RuntimeError("tolist waits for the other device")
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, _types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


_waiting_is_allowed = True
_uploads_are_allowed = False
_WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._linalg_check_errors.default,
}
_FACTORISATIONS = {  # whose workspace is not for a recording
    torch.ops.aten.linalg_inv_ex.default,
    torch.ops.aten._linalg_slogdet.default,
    torch.ops.aten._linalg_solve_ex.default,
}


@contextmanager
def no_waiting(*, uploads=False):
    """Refuse what a CUDA graph cannot hold: questions about values, and moves between devices, or only those back."""
    global _waiting_is_allowed, _uploads_are_allowed
    before = _waiting_is_allowed, _uploads_are_allowed
    _waiting_is_allowed, _uploads_are_allowed = False, uploads
    try:
        yield
    finally:
        _waiting_is_allowed, _uploads_are_allowed = before


@contextmanager
def waiting():
    """Allow inside `no_waiting` what only this simulation needs."""
    global _waiting_is_allowed  # noqa: PLW0603
    before, _waiting_is_allowed = _waiting_is_allowed, True
    try:
        yield
    finally:
        _waiting_is_allowed = before


class OtherDevice(TorchDispatchMode):
    """Inside, tensors can be made on `DEVICE` and moved to it."""

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _is_move(there, wanted, operation):
    is_to = torch.device(wanted) == DEVICE
    is_move = operation is torch.ops.aten._to_copy.default and bool(there) != is_to
    return is_move and not (is_to and _uploads_are_allowed)


def _run(operation, args, kwargs):
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    if any(value.device == DEVICE and not isinstance(value, OtherTensor) for value in tensors):
        raise RuntimeError(f"{operation} got a tensor that was made past the device, as from a list of indices")
    there = [value for value in tensors if isinstance(value, OtherTensor)]
    wanted = kwargs.get("device")
    if there and operation not in _COPIES | _INDEXING:
        strangers = [value for value in tensors if not isinstance(value, OtherTensor) and value.dim() > 0]
        if strangers:
            raise RuntimeError(f"{operation} got tensors of the CPU and of the other device")
    refused = _WAITS if _uploads_are_allowed else _WAITS | _FACTORISATIONS
    if not _waiting_is_allowed and (
        operation in refused or (wanted is not None and _is_move(there, wanted, operation))
    ):
        raise RuntimeError(f"{operation} waits for the other device")
    is_there = bool(there) if wanted is None else torch.device(wanted) == DEVICE
    if operation is torch.ops.aten.copy_.default:
        is_there = isinstance(args[0], OtherTensor)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare = tree_map(lambda value: value.inner if isinstance(value, OtherTensor) else value, (args, kwargs))
    found = operation(*bare[0], **bare[1])
    if operation._schema.is_mutable and isinstance(found, torch.Tensor):
        return kwargs["out"] if "out" in kwargs else args[0]
    if not is_there:
        return found
    return tree_map(lambda value: OtherTensor(value) if isinstance(value, torch.Tensor) else value, found)
