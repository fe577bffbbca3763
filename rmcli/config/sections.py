"""The whole configuration: seven sections, one description per key. Key names follow XTuner's reward-model configs
where those have one.
"""

import re
from typing import Any, Literal

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from rmcli.config.section import Section
from rmcli.config.sections_of_evaluation import EvalSection, check_best
from rmcli.config.sections_of_training import LoraSection, LossSection, ParallelSection


class ModelSection(Section):
    """The backbone and its reward token."""

    pretrained_model_name_or_path: str | None = Field(
        None, description="Hub id, folder or .gguf file of the backbone; {presets} is the folder of shipped presets"
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit)")
    tokenizer_name_or_path: str | None = Field(None, description="tokenizer, where it is not the model's own")
    random_weights: bool = Field(False, description="build the model from its config alone, with random weights")
    chat_template: str | None = Field(
        None,
        description="chat template, where the tokenizer has none or another is wanted: a file, or a built-in one: "
        "chatml, llama3, plain",
    )
    reward_token: str | None = Field(
        None,
        description="the token appended to each conversation, by its text; natural is the chat template's own "
        "end-of-turn token, where the conversation is then cut; last is whatever token the template ends with, as "
        "public reward models without a reward token are scored",
    )
    reward_token_id: int | None = Field(None, ge=0, description="the same token by id; both are checked")
    allow_ordinary_reward_token: bool = Field(
        False,
        description="take a reward token that is an ordinary word: rows whose text holds it are lost, and training "
        "overwrites what the model knows of it",
    )
    use_varlen_attn: bool = Field(
        True, description="packed rows with shared prompts; false runs padded conversations (slow, the reference)"
    )
    attention: Literal["auto", "varlen", "fa3", "flash", "sdpa", "flex"] = Field(
        "auto",
        description="what computes attention over packed rows (docs/attention.md): varlen is torch's kernel, fa3 "
        "FlashAttention 3's in its place (Hopper), flash the package flash-attn 2 (the extra `flash`), flex "
        "FlexAttention, all on CUDA; sdpa is torch anywhere. auto is sdpa on CPU and in float32, varlen on CUDA, "
        "flex there for soft-capping and sinks",
    )
    trim_last_layer: bool = Field(
        True, description="compute the last layer at the reward positions only, where that is proven exact"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the backbone's arithmetic; auto is bfloat16 on CUDA, float32 on CPU. "
        "Weights (see train.master_weights), head and loss stay float32",
    )
    quantization: Literal["none", "nf4"] = Field(
        "none",
        description="nf4: the backbone's linear layers in 4 bits (QLoRA's; the extra `qlora`), to train adapters "
        "beside them (lora.r) or to score; one process",
    )


class SourceSection(Section):
    """One source of rows: a `[[data.sources]]` table, `--source KEY=VALUE,...`, or a plain text, its path."""

    path: str = Field(
        min_length=1, description="file, folder, URL (s3://, gs://, hf://, ...), Hub name org/name, or - for stdin"
    )
    name: str | None = Field(None, min_length=1, description="what reports call it; the path if there is none")
    dataset_map_fn: str | None = Field(
        None, description="its own map function, in place of data.dataset_map_fn; `map_fn` in --source"
    )
    split: str | None = Field(None, description="split of a Hub data set or of a folder, in place of data.split")
    subset: str | None = Field(None, description="configuration of a Hub data set that has several")
    revision: str | None = Field(None, description="revision of a Hub data set (branch, tag or commit)")
    streaming: bool = Field(False, description="read a Hub data set without downloading it whole")
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="how often a row is taken: 0.5 takes half of the rows (chosen by a hash, counted as not taken), "
        "2 each row twice, 2.5 twice and half of them once more. The eval split holds each row once",
    )
    max_rows: int | None = Field(
        None, ge=1, description="rows kept at most, the first ones; the rest is counted as not taken"
    )
    system: str | None = Field(
        None, min_length=1, description="system message put before each conversation that has none"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _a_text_is_a_path(cls, value: Any, handler: ModelWrapValidatorHandler["SourceSection"]) -> "SourceSection":
        return handler({"path": value} if isinstance(value, str) else value)

    @model_serializer(mode="wrap")
    def _as_short_as_it_was_written(self, handler: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """The path alone when nothing else is set, else the keys that are."""
        keys = {
            key: value for key, value in handler(self).items() if value != SourceSection.model_fields[key].default
        }
        return self.path if keys.keys() == {"path"} else keys

    @property
    def label(self) -> str:
        return self.name or self.path

    def as_arguments(self) -> list[str]:
        """The source as it is typed after `rmcli prepare`."""
        keys = self.model_dump()
        if isinstance(keys, str):
            return [keys]
        spelled = {OPTION_OF_SOURCE.get(key, key): _option_text(value) for key, value in keys.items()}
        return ["--source", ",".join(f"{key}={value}" for key, value in spelled.items())]


OPTION_OF_SOURCE = {"dataset_map_fn": "map_fn"}  # as the option --map-fn is called


def _option_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class DataSection(Section):
    """What prepare reads and how it becomes packed rows."""

    dataset_map_fn: str | None = Field(
        None,
        description="row -> pair: a named one, module:function or file.py:function; auto, and none with sources, "
        "recognise one by the columns",
    )
    sources: list[SourceSection] = Field(
        [],
        description="files, folders, URLs, Hub names, - for stdin, or [[data.sources]] tables; empty means the map "
        "function's own data set",
    )
    split: str = Field(
        "train",
        description="split to read of a Hub data set, and of a folder that holds several; a map function's own set "
        "may have another default",
    )
    max_length: int = Field(2048, ge=2, description="tokens of one conversation, the reward token included")
    overlong: Literal["truncate_left", "drop", "truncate_right"] = Field(
        "truncate_left",
        description="a conversation over max_length: cut the prompt (what stands before the last user message, then "
        "the start of that message; docs/format.md), drop the row, or cut the end of the reply",
    )
    max_characters: int = Field(
        2_000_000,
        ge=1,
        description="characters of one conversation: over it a row is rejected as too_long_text and never tokenized",
    )
    max_row_bytes: int = Field(
        2**26,
        ge=1,
        description="bytes of one row in its file, rejected over it as too_long_text and never held whole",
    )
    control_tokens: Literal["keep", "reject"] = Field(
        "keep",
        description="a message whose text holds a special token of the tokenizer, such as <|im_end|>: keep it, which "
        "is counted and said, or reject the row",
    )
    max_packed_length: int = Field(16384, ge=2, description="tokens of one packed row")
    shuffle_before_pack: bool = Field(True, description="shuffle (in windows, seeded) before packing")
    pairs: Literal["all", "best_worst", "adjacent"] = Field(
        "all", description="which pairs of a K-way group in strict order train; others keep all their comparisons"
    )
    eval_fraction: float = Field(0.05, ge=0, lt=1, description="share of prompts held out, by a hash of the prompt")
    eval_seed: int = Field(0, ge=0, description="another seed holds out other prompts")
    allow_no_prompt: bool = Field(
        False, description="take answers to no question: conversations in which no user says anything"
    )
    keep_duplicates: bool = Field(False, description="keep exact duplicates of an earlier row")
    max_rejects: int | str | None = Field(
        None, description='stop when more rows are rejected: a number of rows, or a share such as "5%"'
    )
    decontaminate: list[str] = Field(
        [], description="evaluation files: rows whose prompt is in one of them are left out (docs/audit.md)"
    )
    seed: int = Field(
        0,
        ge=0,
        description="seed of the shuffle before packing, and of the choice where a source's weight is no whole",
    )
    num_proc: int = Field(1, ge=1, description="threads to tokenize and audit with; any number gives the same")
    tokenizer_engine: Literal["auto", "transformers", "gigatoken"] = Field(
        "auto",
        description="what tokenizes; gigatoken (the extra `fast`) is used only where its ids equal transformers' on "
        "this data, and auto uses it where it is installed",
    )
    shard: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]*/[1-9][0-9]*$",
        description="I/N: only every Nth row, from the Ith on, for one of N machines",
    )

    @field_validator("max_rejects")
    @classmethod
    def _rows_or_a_share(cls, value: int | str | None) -> int | str | None:
        share = isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.\d+)?%", value) and float(value[:-1]) <= 100
        if (isinstance(value, str) and not share) or (isinstance(value, int) and value < 0):
            raise ValueError("must be a number of rows from 0, or a share such as 5%")
        return value

    @model_validator(mode="after")
    def _shard_is_one_of_n(self) -> "DataSection":
        if self.shard_number > self.num_shards:
            raise ValueError(f"shard = {self.shard!r} is past the last one, {self.num_shards}/{self.num_shards}")
        return self

    @property
    def shard_number(self) -> int:
        """From 1."""
        return int(self.shard.split("/")[0]) if self.shard else 1

    @property
    def num_shards(self) -> int:
        return int(self.shard.split("/")[1]) if self.shard else 1

    @model_validator(mode="after")
    def _pack_holds_a_conversation(self) -> "DataSection":
        if self.max_packed_length < self.max_length:
            raise ValueError(f"max_packed_length = {self.max_packed_length} is below max_length = {self.max_length}")
        return self


class TrainSection(Section):
    """The loop."""

    batch_size: int = Field(1, ge=1, description="stored rows per forward: packs, or pairs when not varlen")
    accumulative_counts: int = Field(1, ge=1, description="forwards per optimizer step")
    pairs_per_step: int | None = Field(
        None,
        ge=1,
        description="so many groups per step (a pair is one; an epoch's last may hold fewer): packs are cut to fit. "
        "Of batch_size and accumulative_counts only the first counts, for padded rows. A preset's gives way when a "
        "config file or --set names one of those",
    )
    max_epochs: int = Field(1, ge=1, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps")
    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    head_lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of the score head, which starts from zero; none is lr",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="adamw keeps its two states per weight in float32; adamw_8bit in blocks of 8 bits (6 bytes less "
        "per parameter, not the same steps)",
    )
    master_weights: Literal["float32", "split"] = Field(
        "float32",
        description="split trains bfloat16 weights whose exact float32 masters are 16 more bits beside them: 4 "
        "bytes less per parameter, 2 where a step has several forwards. It needs bfloat16 arithmetic",
    )
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2, description="AdamW betas")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay, on matrices only")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="share of the steps with rising learning rate")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="the cosine ends at this share of the peak rates")
    max_norm: float = Field(1.0, gt=0, description="gradient norm is clipped to this")
    seed: int = Field(0, ge=0, description="seed of the data order, dropout and random weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run; auto is cuda if there is one")
    deterministic: bool = Field(
        False, description="the same weights, bit by bit, from the same data, config and machine; slower on CUDA"
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="recompute activations for less memory: selective keeps what matmuls and attention gave and "
        "recomputes the rest (cheap), full keeps one hidden state per layer",
    )
    kernels: Literal["torch", "compile", "liger"] = Field(
        "torch",
        description="compile: layers through torch.compile, rows laid out to fixed shapes (CUDA); liger: Liger's "
        "kernels for norms, rotations and MLPs (CUDA, the extra `liger`)",
    )
    fp8: Literal["none", "tensorwise", "rowwise"] = Field(
        "none",
        description="matrix products of training in 8-bit floats, with a scale per tensor or per row (CUDA, the "
        "extra `fp8`; docs/performance.md); evaluation and the exported model do without",
    )
    check_memory: bool = Field(True, description="stop before loading when the estimate exceeds free memory")
    peak_tflops: float | None = Field(
        None, gt=0, description="what the device can do at most, for MFU; none is what its data sheet says, if known"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        [], description="experiment trackers that get the lines of metrics.jsonl, too (docs/trackers.md)"
    )
    log_every: int = Field(10, ge=1, description="steps between log lines")
    eval_steps: int | None = Field(None, ge=1, description="steps between evaluations; always one at the end")
    save_steps: int = Field(500, ge=1, description="steps between checkpoints; always one at the end")
    save_minutes: float | None = Field(None, gt=0, description="minutes between checkpoints, besides save_steps")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept")
    async_checkpoint: bool = Field(
        False,
        description="write checkpoints beside the training, from a copy in main memory; one at a time",
    )
    best: str | None = Field(
        None,
        description="keep the weights of the best evaluation by this figure, too, and export them as model-best/: "
        "eval_accuracy, eval_loss, eval_ece, ..., or eval_NAME_accuracy of a set in eval.sets (docs/runs.md)",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many evaluations in a row in which the figure of best has not got better; unset: "
        "never. It needs best and eval_steps",
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="by how much it must get better to count as better for early_stopping_patience"
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="a loss or gradient norm that is not finite: stop before the update, or leave the step out, "
        "counted and said (the device is then waited for in each step)",
    )
    max_skipped: int = Field(10, ge=1, description="steps that nonfinite = skip leaves out at most")

    @model_validator(mode="after")
    def _betas_below_one(self) -> "TrainSection":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {self.betas} must lie in [0, 1)")
        return self

    @model_validator(mode="after")
    def _early_stopping_sees_evaluations(self) -> "TrainSection":
        missing = [key for key in ("best", "eval_steps") if getattr(self, key) is None]
        if self.early_stopping_patience is not None and missing:
            raise ValueError(
                f"early_stopping_patience = {self.early_stopping_patience} needs train.best, the figure that has to "
                f"get better, and train.eval_steps: {' and '.join(f'train.{key} is not set' for key in missing)}"
            )
        return self


class Config(Section):
    """All sections."""

    model: ModelSection = ModelSection.model_validate({})
    data: DataSection = DataSection.model_validate({})
    loss: LossSection = LossSection.model_validate({})
    train: TrainSection = TrainSection.model_validate({})
    lora: LoraSection = LoraSection.model_validate({})
    parallel: ParallelSection = ParallelSection.model_validate({})
    eval: EvalSection = EvalSection.model_validate({})

    @model_validator(mode="after")
    def _best_is_a_figure(self) -> "Config":
        if self.train.best is not None:
            check_best(self.train.best, self.eval.names)
        return self


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "data": DataSection,
    "loss": LossSection,
    "train": TrainSection,
    "lora": LoraSection,
    "parallel": ParallelSection,
    "eval": EvalSection,
}
