"""The optional packages: which are here, and what each of the others would bring."""

from collections.abc import Iterator
from dataclasses import replace

from packaging.requirements import Requirement

from rmcli.doctor.finding import Finding
from rmcli.doctor.packages import installed_version, of_package
from rmcli.installed import install_command, requirements

TOPIC = "extras"
BRINGS = {
    "fast": "tokenizes many times faster (data.tokenizer_engine)",
    "flash": "model.attention=flash on CUDA",
    "fp8": "train.fp8 on CUDA",
    "gguf": "loads .gguf files",
    "liger": "train.kernels=liger on CUDA",
    "internlm2": "reads InternLM2's tokenizer and checkpoints",
    "lora": "adapters (lora.r)",
    "qlora": "adapters beside 4-bit weights (model.quantization=nf4)",
    "report": "--report with plots",
    "serve": "rmcli serve",
    **{name: f'train.trackers=["{name}"]' for name in ("tensorboard", "wandb", "trackio", "mlflow")},
}
FOR_DEVELOPERS = ("test", "lint")
_OPTIONS = {"flash": ("--no-build-isolation",)}  # built against the torch that is here


def look() -> Iterator[Finding]:
    """A package that is not here is a note; one that is here and will not do is a fault."""
    for extra, lines in requirements().extras.items():
        if extra in FOR_DEVELOPERS:
            continue
        brings, command = BRINGS.get(extra, f"the extra {extra}"), install_command(extra, *_OPTIONS.get(extra, ()))
        for requirement in map(Requirement, lines):
            if installed_version(requirement.name) is None:
                said, facts = f"not installed; {brings}", {"version": None, "extra": extra}
                yield Finding(TOPIC, requirement.name, "note", said, command, facts)
            else:
                found = of_package(TOPIC, requirement, command)
                yield replace(found, said=f"{found.said}: {brings}", facts={**found.facts, "extra": extra})
