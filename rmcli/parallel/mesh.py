"""How the weights of one model lie on the processes: so many copies of it, each cut into so many parts."""

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

REPLICATE, SHARD = "replicate", "shard"


@dataclass(frozen=True)
class MeshShape:
    """`replicate` copies of the weights, each cut into `shard` parts; together as many as there are processes."""

    replicate: int = 1
    shard: int = 1

    @property
    def size(self) -> int:
        return self.replicate * self.shard


def build_mesh(shape: MeshShape, device: torch.device) -> DeviceMesh:
    """Parts of one copy lie on neighbouring ranks. Of one axis where there is one copy, else of both."""
    mesh = init_device_mesh(device.type, (shape.replicate, shape.shard), mesh_dim_names=(REPLICATE, SHARD))
    return mesh[SHARD] if shape.replicate == 1 else mesh
