"""The network of a job: from its model, or from what the run itself has kept; on several processes cut over them."""

import socket
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor

from rmcli import output
from rmcli.backbones import architectures
from rmcli.errors import RmcliError
from rmcli.model import adapter
from rmcli.model.device import is_reduced
from rmcli.model.load import load_model, rebuild_network
from rmcli.model.sequence_parallel import sequence_group, set_sequence_group
from rmcli.model.shard import fill, shard, take_over
from rmcli.parallel import world
from rmcli.parallel.collectives import together
from rmcli.parallel.mesh import build_mesh
from rmcli.parallel.sequence import own_group
from rmcli.runs import backbone
from rmcli.runs.base_model import load_with_adapters
from rmcli.runs.state import read_weights
from rmcli.train.job import Job


def network_of(job: Job) -> Any:
    """With the weights that the run begins or goes on with; what a later start needs of its model is kept."""
    if job.past is not None:
        output.say(f"going on from {job.past.checkpoint}, after step {job.past.step} of {job.total_steps}")
    network = _on_one_process(job) if job.spread.processes == 1 else _on_several(job)
    network.config.name_or_path = str(job.config.model.pretrained_model_name_or_path)
    if architectures.loads_only_here(network.config):
        output.warn(f"transformers has no {type(network).__name__}: the model folder will load in rmcli only")
    return network


def in_working_precision(job: Job, network: Any) -> Any:
    """The network as it trains: where several processes compute in bfloat16, made anew around the same weights.

    What puts weights together can be told only once in which precision, and the self-test is in float32 first.
    On one process what is frozen becomes bfloat16.
    """
    if not is_reduced(job.config.model.dtype, job.device):
        return network
    if job.spread.processes == 1:
        if job.has_adapters:
            adapter.reduce_frozen(network)
        return network
    reduced = _rebuilt(job, empty=True)
    shard(reduced, build_mesh(job.spread.mesh, job.device), True, job.device)
    take_over(reduced, network)
    set_sequence_group(reduced, sequence_group(network))
    reduced.config.name_or_path = network.config.name_or_path
    return reduced


def _on_one_process(job: Job) -> Any:
    if job.past is None:
        return _loaded(job)
    network = _loaded(job) if job.has_adapters else _rebuilt(job, empty=False)
    read_weights(job.past.checkpoint, network)
    return network


def _on_several(job: Job) -> Any:
    """The first process reads the model, and hands its weights out; what a checkpoint holds each reads for itself."""
    full: dict[str, Tensor] = {}
    is_loaded = job.past is None or job.has_adapters
    with together():
        if is_loaded and world.is_first():
            loaded = _loaded(job)
            full = {name: one.detach() for name, one in (*loaded.named_parameters(), *loaded.named_buffers())}
            del loaded
    with together():
        if not (job.run_folder / backbone.FOLDER).is_dir():
            raise RmcliError(
                f"{job.run_folder.absolute()} is not on {socket.gethostname()} what the first process has made of it",
                "run folder and data must lie on a file system that all machines see: give one with -o",
            )
    network = _rebuilt(job, empty=True)
    shard(network, build_mesh(job.spread.mesh, job.device), False, job.device)
    set_sequence_group(network, own_group(job.spread.sequence))
    if is_loaded:
        fill(network, full)
    if job.past is not None:
        read_weights(job.past.checkpoint, network)
    return network


def _loaded(job: Job) -> Any:
    """On several processes it may be larger than a device."""
    model = job.config.model
    if job.has_adapters:
        return _with_adapters(job)
    device = job.device if job.spread.processes == 1 or model.random_weights else "cpu"
    network = load_model(model, job.reward, job.config.train.seed, job.batch_choice.kind, device)
    backbone.keep(job.run_folder, network, job.reward)
    return network


def _with_adapters(job: Job) -> Any:
    """On several processes in main memory, as what they cut their parts from."""
    network = load_with_adapters(job.config, job.reward, job.run_folder, job.batch_choice.kind)
    return network.to(job.device if job.spread.processes == 1 else "cpu").eval()


def _rebuilt(job: Job, empty: bool) -> Any:
    own = backbone.section(job.run_folder, job.config.model)
    network = rebuild_network(own, job.config.train.seed, job.batch_choice.kind, job.device, empty)
    if job.has_adapters:
        with init_empty_weights(include_buffers=False):
            adapter.put(network, job.config, job.reward)
    return network
