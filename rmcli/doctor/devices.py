"""Where a network can run: each device with its memory, bfloat16, and the attention kernels that work there."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from rmcli.doctor.finding import GIB, Finding, load
from rmcli.errors import ConfigError
from rmcli.model.attention.needs import NEEDS_CUDA

TOPIC = "devices"
_DRIVER = Path("/proc/driver/nvidia/version")


def look() -> Iterator[Finding]:
    torch, broken = load("torch")
    if torch is None:
        yield Finding(TOPIC, "devices", "fault", f"not known without torch: {broken}")
        return
    yield _cpu(torch)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(torch, index)
    elif _DRIVER.exists():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
        yield Finding(
            TOPIC,
            "cuda",
            "fault",
            f"an NVIDIA driver is here, but torch {torch.__version__} (for {build}) sees no GPU: runs go to the CPU",
            "install a torch for this driver (pytorch.org), or look at CUDA_VISIBLE_DEVICES",
            {"torch": torch.__version__, "built_for": torch.version.cuda},
        )


def attention_names() -> list[str]:
    """The values of model.attention, but auto."""
    from rmcli.config.sections import ModelSection

    return [name for name in get_args(ModelSection.model_fields["attention"].annotation) if name != "auto"]


def _cpu(torch: Any) -> Finding:
    works = [name for name in attention_names() if name not in NEEDS_CUDA]
    threads, cores = torch.get_num_threads(), os.cpu_count()
    instructions = torch.backends.cpu.get_cpu_capability()
    _multiply(torch, torch.device("cpu"), torch.bfloat16)
    said = (
        f"{platform.machine()}, {instructions}, {threads} threads on {cores} cores, bfloat16 (slow); "
        f"attention: {', '.join(works)}"
    )
    facts = {"threads": threads, "cores": cores, "instructions": instructions, "bf16": True, "attention": works}
    return Finding(TOPIC, "cpu", "ok", said, facts=facts)


def _gpu(torch: Any, index: int) -> Finding:
    """A fault where the GPU does not compute; a note where bfloat16 is no arithmetic of its own."""
    device, known = torch.device("cuda", index), torch.cuda.get_device_properties(index)
    name = f"cuda:{index}"
    facts: dict[str, Any] = {"device": known.name, "capability": f"{known.major}.{known.minor}"}
    try:
        _multiply(torch, device, torch.float32)
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        said = f"{known.name} does not compute: {str(error).strip().splitlines()[0]}"
        return Finding(TOPIC, name, "fault", said, "nvidia-smi, and a torch built for this GPU", facts)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    works = _works_on(device, reduced=bf16)
    facts |= {"free": free, "total": total, "bf16": bf16, "attention": works}
    said = (
        f"{known.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {'' if bf16 else 'no '}bfloat16; "
        f"attention: {', '.join(works)}"
    )
    return Finding(TOPIC, name, "ok" if bf16 else "note", said, None if bf16 else "set model.dtype=float32", facts)


def _multiply(torch: Any, device: Any, dtype: Any) -> None:
    """Raises RuntimeError where the device does not compute."""
    ones = torch.ones(8, 8, device=device, dtype=dtype)
    ones.matmul(ones).sum().item()


def _works_on(device: Any, reduced: bool) -> list[str]:
    from rmcli.model.attention.shared_prefix import check_backend

    works = []
    for name in attention_names():
        try:
            check_backend(name, device, reduced)
        except ConfigError:
            continue
        works.append(name)
    return works
