"""Which weights train, and over how many processes: the sections [lora] and [parallel]."""

from typing import Literal

from pydantic import Field, model_validator

from rmcli.config.section import Section


class LoraSection(Section):
    """Adapters on the backbone (LoRA, arXiv 2106.09685) in place of training all of it; the extra `lora`.

    The head trains whole, in float32, and so does the reward token's embedding row in reserved mode.
    """

    r: int | None = Field(None, ge=1, description="rank of each adapter; unset: no adapters, all weights train")
    lora_alpha: int = Field(16, ge=1, description="adapters are scaled by lora_alpha / r")
    lora_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout before each adapter; in packed rows the answers of a prompt share the prompt's mask",
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="names of the linear layers that get adapters; all-linear: all of the backbone's"
    )
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)")


class ParallelSection(Section):
    """How one step is spread over processes, one for each device; `rmcli train --num-processes` starts them."""

    data_parallel: Literal["auto", "replicate", "shard"] = Field(
        "auto",
        description="replicate: the whole model on each process; shard: weights, gradients and optimizer states cut "
        "over them (FSDP2); auto: replicate where that fits into memory",
    )
    dp_replicate_size: int | None = Field(
        None,
        ge=1,
        description="copies of the model, each cut over as many processes as that leaves (HSDP); one by default",
    )
    sequence_parallel_size: int = Field(
        1, ge=1, description="neighbouring processes that share each row, for long conversations"
    )

    @model_validator(mode="after")
    def _copies_are_cut(self) -> "ParallelSection":
        if self.dp_replicate_size is not None and self.data_parallel == "replicate":
            raise ValueError("dp_replicate_size is for data_parallel=shard or auto: replicate cuts nothing")
        return self
