"""The objective, which weights train, and over how many processes: the sections [loss], [lora] and [parallel]."""

from typing import Literal

from pydantic import Field, model_validator

from rmcli.config.section import Section


class LossSection(Section):
    """The objective: weighted mean of the pair loss + penalty_weight * mean of the penalty over all scores.

    A group of more than two answers weighs as much as one pair, and its comparisons share that; the data's `weight`
    multiplies it. The penalty `center` is of pairs, and weighs as their loss does.
    """

    loss_type: Literal["ranking", "focal", "margin", "ties", "plackett_luce"] = Field(
        "focal",
        description="ranking is Bradley-Terry; focal is InternLM2's (arXiv 2403.17297); margin is Llama 2's (arXiv "
        "2307.09288); ties is Rao and Kupper's (arXiv 2410.05328); plackett_luce takes a K-way group as one list",
    )
    gamma: float = Field(2.0, ge=0, description="exponent of the focal loss")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="probability that a label is wrong; for ranking, margin, plackett_luce's pairs",
    )
    margin_scale: float = Field(1.0, ge=0, description="the margin loss takes this times the data's margin")
    tie_threshold: float = Field(
        0.6931471805599453, gt=0, description="the ties loss's log theta: how close two scores of a tie are; ln 2"
    )
    penalty_type: Literal["log_barrier", "L2", "center", "none"] = Field(
        "log_barrier", description="penalty on each score; center is (c + r)^2 on each pair (arXiv 2312.09244)"
    )
    penalty_weight: float = Field(
        0.02,
        ge=0,
        description="weight of the mean penalty; XTuner's 0.01 (sum over 2N, divided by N) is our 0.02; for center "
        "it is TRL's center_rewards_coefficient",
    )
    penalty_bound: float = Field(5.0, gt=0.01, description="where the log barrier stands: scores in (-bound, bound)")

    @model_validator(mode="after")
    def _smoothing_is_felt(self) -> "LossSection":
        if self.label_smoothing and self.loss_type in ("focal", "ties"):
            raise ValueError(f"label_smoothing = {self.label_smoothing} has no meaning with {self.loss_type}")
        return self


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
