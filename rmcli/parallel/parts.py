"""A tensor that is cut over processes, and the part of it that lies on this one."""

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor


def own_part(tensor: Tensor) -> Tensor:
    """What of it lies here, sharing its memory; a tensor that is not cut is all here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process; each must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that is whole here what lies on this process when it is cut as `like` is."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()


def zeros_as(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros of this (whole) shape on the device of `like`, cut along their first axis where `like` is."""
    if not isinstance(like, DTensor):
        return torch.zeros(shape, dtype=dtype, device=like.device)
    part = like.to_local()
    own = torch.zeros((part.shape[0], *shape[1:]), dtype=dtype, device=part.device)
    return joined(own, like, shape)


def joined(own: Tensor, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """This process's part of a tensor of this (whole) shape, which is cut as `like` is."""
    if not isinstance(like, DTensor):
        return own
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def group_of_parts(tensor: Tensor) -> distributed.ProcessGroup | None:
    """The processes whose parts make up one whole; None where the tensor is whole here."""
    if not isinstance(tensor, DTensor):
        return None
    mesh = tensor.device_mesh
    axis = mesh.ndim - 1  # parts of one copy
    return mesh.get_group(axis) if mesh.size(axis) > 1 else None


def host_copy(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """A copy in main memory, cut alike over a mesh of processes' main memories."""
    own = own_part(tensor.detach()).to("cpu", copy=True)
    if not isinstance(tensor, DTensor):
        return own
    assert mesh is not None
    return DTensor.from_local(
        own, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
