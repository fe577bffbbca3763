"""The whole configuration: five sections, one description per key, layers with origins.

Layers, later ones win: defaults < preset < each --config < each --set. There is no environment layer.
Key names follow XTuner's reward-model configs where those have one.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import tomlkit
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from rmcli.errors import ConfigError
from rmcli.plugins import did_you_mean

DEFAULT_PRESET = "smollm2-135m"
PRESETS_PLACEHOLDER = "{presets}"


class Section(BaseModel):
    """A table of the TOML file. Unknown keys are refused; values are never coerced (true is not 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


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
        "end-of-turn token, where the conversation is then cut",
    )
    reward_token_id: int | None = Field(None, ge=0, description="the same token by id; both are checked")
    use_varlen_attn: bool = Field(
        True, description="packed rows with shared prompts; false runs padded conversations (slow, the reference)"
    )
    attention: Literal["auto", "varlen", "flash", "sdpa", "flex"] = Field(
        "auto",
        description="what computes attention over packed rows (docs/attention.md): varlen is torch's kernel, flash "
        "the package flash-attn 2 (the extra `flash`), flex FlexAttention, all on CUDA; sdpa is torch anywhere. "
        "auto is sdpa on CPU and in float32, varlen on CUDA, flex there for soft-capping and sinks",
    )
    trim_last_layer: bool = Field(
        True, description="compute the last layer at the reward positions only, where that is proven exact"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the backbone's arithmetic; auto is bfloat16 on CUDA, float32 on CPU. "
        "Weights (see train.master_weights), head and loss stay float32",
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
    split: str | None = Field(None, description="split of a Hub data set, in place of data.split")
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
        spelled = {_OPTION_OF_SOURCE.get(key, key): _option_text(value) for key, value in keys.items()}
        return ["--source", ",".join(f"{key}={value}" for key, value in spelled.items())]


_OPTION_OF_SOURCE = {"dataset_map_fn": "map_fn"}  # as the option --map-fn is called


def _option_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_source(text: str) -> SourceSection:
    """`path=FILE,map_fn=F,weight=2,max_rows=1000`, or a path alone. A comma parts only before a KEY=.

    Raises ConfigError for an unknown key, one given twice, no path, or a value of the wrong type.
    """
    parts = re.split(r",(?=[a-z_]+=)", text) if re.match(r"[a-z_]+=", text) else [f"path={text}"]
    fields = {_OPTION_OF_SOURCE.get(key, key): key for key in SourceSection.model_fields}
    values: dict[str, Any] = {}
    for key, _, value in (part.partition("=") for part in parts):
        if key not in fields:
            raise ConfigError(f"--source {text!r}: unknown key {key}", did_you_mean(key, fields))
        if fields[key] in values:
            raise ConfigError(f"--source {text!r}: {key} is given twice")
        kind = SourceSection.model_fields[fields[key]].annotation
        values[fields[key]] = value if kind in (str, str | None) else _toml_value(value)
    if "path" not in values:
        raise ConfigError(f"--source {text!r}: no path", "e.g. --source path=FILE,map_fn=F,weight=2")
    try:
        return SourceSection.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = _OPTION_OF_SOURCE.get(str(first["loc"][0]), str(first["loc"][0]))
        raise ConfigError(f"--source {text!r}: {key} = {first['input']!r}: {first['msg']}") from error


class DataSection(Section):
    """What prepare reads and how it becomes packed rows."""

    dataset_map_fn: str | None = Field(
        None, description="row -> pair: a named one, module:function or file.py:function"
    )
    sources: list[SourceSection] = Field(
        [],
        description="files, folders, URLs, Hub names, - for stdin, or [[data.sources]] tables; empty means the map "
        "function's own data set",
    )
    split: str = Field(
        "train", description="split to read of a Hub data set; a map function's own set may have another default"
    )
    max_length: int = Field(2048, ge=2, description="tokens of one conversation, the reward token included")
    overlong: Literal["truncate_left", "drop", "truncate_right"] = Field(
        "truncate_left",
        description="a conversation over max_length: cut the shared prompt after BOS, drop the row, or cut the end",
    )
    max_packed_length: int = Field(16384, ge=2, description="tokens of one packed row")
    shuffle_before_pack: bool = Field(True, description="shuffle (in windows, seeded) before packing")
    pairs: Literal["all", "best_worst", "adjacent"] = Field(
        "all", description="which pairs of a K-way group in strict order train; others keep all their comparisons"
    )
    eval_fraction: float = Field(0.05, ge=0, lt=1, description="share of prompts held out, by a hash of the prompt")
    eval_seed: int = Field(0, ge=0, description="another seed holds out other prompts")
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


class LossSection(Section):
    """The objective: weighted mean of the pair loss + penalty_weight * mean of the penalty over all scores.

    A group of more than two answers weighs as much as one pair, and its comparisons share that; the data's `weight`
    multiplies it.
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
    penalty_type: Literal["log_barrier", "L2", "none"] = Field("log_barrier", description="penalty on each score")
    penalty_weight: float = Field(
        0.02, ge=0, description="weight of the mean penalty; XTuner's 0.01 (sum over 2N, divided by N) is our 0.02"
    )
    penalty_bound: float = Field(5.0, gt=0.01, description="where the log barrier stands: scores in (-bound, bound)")

    @model_validator(mode="after")
    def _smoothing_is_felt(self) -> "LossSection":
        if self.label_smoothing and self.loss_type in ("focal", "ties"):
            raise ValueError(f"label_smoothing = {self.label_smoothing} has no meaning with {self.loss_type}")
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
    check_memory: bool = Field(True, description="stop before loading when the estimate exceeds free memory")
    peak_tflops: float | None = Field(
        None, gt=0, description="what the device can do at most, for MFU; none is what its data sheet says, if known"
    )
    log_every: int = Field(10, ge=1, description="steps between log lines")
    eval_steps: int | None = Field(None, ge=1, description="steps between evaluations; always one at the end")
    save_steps: int = Field(500, ge=1, description="steps between checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept")

    @model_validator(mode="after")
    def _betas_below_one(self) -> "TrainSection":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {self.betas} must lie in [0, 1)")
        return self


class ParallelSection(Section):
    """How one step is spread over devices."""

    sequence_parallel_size: int = Field(1, ge=1, description="ranks that share one sequence; only 1 works so far")

    @model_validator(mode="after")
    def _only_one(self) -> "ParallelSection":
        if self.sequence_parallel_size != 1:
            raise ValueError("sequence_parallel_size other than 1 is not built yet; set it to 1")
        return self


class Config(Section):
    """All sections."""

    model: ModelSection = ModelSection.model_validate({})
    data: DataSection = DataSection.model_validate({})
    loss: LossSection = LossSection.model_validate({})
    train: TrainSection = TrainSection.model_validate({})
    parallel: ParallelSection = ParallelSection.model_validate({})


class About(Section):
    """Facts on a preset's backbone: notes, never part of the configuration.

    Every preset has them; a `--config` file may.
    """

    embedding_rows: int = Field(ge=1, description="rows of the input embedding, vocab_size of the model's config")
    pad_token: str | None = Field(None, min_length=1, description="the tokenizer's pad token; none if it has none")
    template: str = Field(
        min_length=1, description="what the chat template does: its end, default system prompt, refused roles"
    )
    source: str = Field(min_length=1, description="where the ids were read")
    verified: Literal["tokenizer", "read"] = Field(
        description="tokenizer: a test loads this tokenizer and checks it; read: ids from the named source alone"
    )


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "data": DataSection,
    "loss": LossSection,
    "train": TrainSection,
    "parallel": ParallelSection,
}


@dataclass(frozen=True)
class Layer:
    """Keys set in one place. `values` is nested as in TOML; `origin` is what --dry-run shows.

    `explicit` tells what the user asked for (files, options, --set) from what merely comes with a preset.
    """

    origin: str
    values: Mapping[str, Any]
    explicit: bool = True


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, the name its outputs carry, and where each key's value comes from."""

    config: Config
    name: str
    origins: Mapping[str, str]
    explicit: frozenset[str]

    def toml(self, with_origins: bool = False) -> str:
        """The configuration as TOML. It loads back equal; keys without a value are left out."""
        document = tomlkit.document()
        document.add("name", self.name)
        for section_name, values in self.config.model_dump(exclude_none=True).items():
            table = tomlkit.table()
            for key, value in values.items():
                item = _toml_item(value)
                if with_origins:
                    item.comment(self.origins.get(f"{section_name}.{key}", "default"))
                table.add(key, item)
            document.add(section_name, table)
        return tomlkit.dumps(document)


def _toml_item(value: Any) -> Any:
    """As tomlkit does, but a list stays inside its table: [[tables]] would swallow the keys after them."""
    if not isinstance(value, list):
        return tomlkit.item(value)
    items = tomlkit.array()
    for element in value:
        if isinstance(element, dict):
            table = tomlkit.inline_table()
            table.update(element)
            items.append(table)
        else:
            items.append(element)
    return items


def trained_model_layers(folder: Path) -> tuple[Layer, Layer]:
    """What a trained model's folder says of itself, and that it is the model to load.

    A folder without rmcli.toml is described by the reward token of its config.json, if it names one.
    """
    recorded = folder / "rmcli.toml"
    if recorded.is_file():
        base = replace(read_config_file(recorded), explicit=False)
    else:
        config = read_json(folder / "config.json")
        natural = config.get("reward_mode") == "natural"
        model = {"reward_token": "natural"} if natural else {"reward_token_id": config.get("reward_token_id")}
        base = Layer(f"{folder}/config.json", {"model": model}, explicit=False)
    here = {
        "pretrained_model_name_or_path": str(folder),
        "tokenizer_name_or_path": None,
        "chat_template": None,  # the folder's tokenizer carries it
        "revision": None,
        "random_weights": False,
    }
    return base, Layer("MODEL", {"model": here})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConfigError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return value


def presets_folder() -> Path:
    """Where the presets are: inside an installed wheel, else beside the package."""
    inside = Path(__file__).parent.parent / "presets"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def read_preset(name: str) -> Layer:
    return _read_preset(name)[0]


def read_about(name: str) -> About:
    """The [about] table of a preset. Raises ConfigError when the preset, the table or a key is missing or wrong."""
    return _read_preset(name)[1]


def preset_reward_tokens() -> frozenset[str]:
    """What the shipped presets have as reward token, by name."""
    tokens = (read_preset(name).values["model"].get("reward_token") for name in preset_names())
    return frozenset(token for token in tokens if token is not None)


def _read_preset(name: str) -> tuple[Layer, About]:
    if name not in preset_names():
        raise ConfigError(f"unknown preset {name!r}", did_you_mean(name, preset_names()))
    origin = f"preset {name}"
    values, about = _split_about(_read_toml(presets_folder() / f"{name}.toml"), origin)
    if about is None:
        raise ConfigError(f"{origin}: [about] is missing", f"it needs {', '.join(About.model_fields)}")
    return Layer(origin, values, explicit=False), about


def _split_about(values: dict[str, Any], origin: str) -> tuple[dict[str, Any], About | None]:
    """The settings of a file and its checked [about], which is None where the file has none."""
    if "about" not in values:
        return values, None
    table = _table(Layer(origin, values), "about")
    for key in table:
        if key not in About.model_fields:
            raise ConfigError(f"{origin}: unknown key about.{key}", did_you_mean(key, About.model_fields))
    try:
        about = About.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise ConfigError(
                f"{origin}: about.{key} is missing", About.model_fields[str(key)].description
            ) from error
        raise ConfigError(f"{origin}: about.{key} = {first['input']!r}: {first['msg']}") from error
    return {section: value for section, value in values.items() if section != "about"}, about


def about_backbone(resolved: Resolved) -> About | None:
    """The [about] of the preset whose backbone `resolved` uses; None when another place names the backbone."""
    origin = resolved.origins.get("model.pretrained_model_name_or_path", "")
    return read_about(resolved.name) if origin == f"preset {resolved.name}" else None


def read_config_file(path: Path) -> Layer:
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file")
    values, _ = _split_about(_read_toml(path), str(path))  # a copied preset brings its notes along
    return Layer(str(path), values)


def parse_setting(setting: str) -> Layer:
    """`section.key=value`, the value as in TOML; what is no TOML value is taken as text, `none` as no value."""
    dotted, equals, text = setting.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not equals or not dot or not key:
        raise ConfigError(f"--set {setting!r} is not of the form section.key=value", "e.g. --set train.lr=1e-5")
    field = SECTIONS[section].model_fields.get(key) if section in SECTIONS else None
    is_a_choice = field is not None and text.strip() in get_args(field.annotation)  # where `none` is one
    value = text.strip() if is_a_choice else _toml_value(text)
    return Layer(f"--set {dotted.strip()}", {section: {key: value}})


def _toml_value(text: str) -> Any:
    """The text as a TOML value; what is none is taken as text, `none` as no value."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None if text.strip() == "none" else text.strip()


def resolve(
    preset: str | None,
    config_files: Sequence[Path] = (),
    settings: Sequence[str] = (),
    *,
    base: Layer | None = None,
    options: Sequence[Layer] = (),
) -> Resolved:
    """Lay defaults, preset, files, options and settings over each other and check the result.

    The default preset is the lowest layer unless a config file names a model of its own, or `base` (a trained
    model's own configuration) takes its place. `options` are layers from a command's own arguments.
    Raises ConfigError for unknown presets, sections and keys, wrong types and values out of range.
    """
    file_layers = [read_config_file(path) for path in config_files]
    names_model = [layer for layer in file_layers if "pretrained_model_name_or_path" in _table(layer, "model")]
    lowest: list[Layer] = [base] if base else []
    name = preset or DEFAULT_PRESET
    if preset is not None:
        lowest.append(read_preset(preset))
    elif base is None and not names_model:
        lowest.append(read_preset(DEFAULT_PRESET))
    elif names_model:
        name = Path(names_model[-1].origin).stem
    if preset is None:
        name = next((str(layer.values["name"]) for layer in reversed(file_layers) if "name" in layer.values), name)
    layers = [*lowest, *file_layers, *options, *(parse_setting(setting) for setting in settings)]
    return _merge(layers, name)


def relayer(resolved: Resolved, layer: Layer) -> Resolved:
    """The configuration with one more layer on top."""
    below = Layer("", resolved.config.model_dump(), explicit=False)
    merged = _merge([below, layer], resolved.name)
    origins = {**resolved.origins, **dict.fromkeys(merged.explicit, layer.origin)}
    return Resolved(merged.config, resolved.name, origins, resolved.explicit | merged.explicit)


def _merge(layers: Sequence[Layer], name: str) -> Resolved:
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    explicit: set[str] = set()
    for layer in layers:
        for section, key, value in _entries(layer):
            values.setdefault(section, {})[key] = value
            origins[f"{section}.{key}"] = layer.origin
            if layer.explicit:
                explicit.add(f"{section}.{key}")
    asked = sorted(explicit & {"train.batch_size", "train.accumulative_counts"})
    if asked and "train.pairs_per_step" in origins and "train.pairs_per_step" not in explicit:
        values["train"]["pairs_per_step"] = None
        origins["train.pairs_per_step"] = f"given up for {asked[0]}"
    natural = values.get("model", {}).get("reward_token") == "natural"
    if natural and "model.reward_token" in explicit and "model.reward_token_id" not in explicit:
        values["model"]["reward_token_id"] = None
        origins["model.reward_token_id"] = "given up for model.reward_token = natural"
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _as_config_error(error, origins) from error
    return Resolved(config, name, origins, frozenset(explicit))


def _table(layer: Layer, section: str) -> Mapping[str, Any]:
    table = layer.values.get(section, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{layer.origin}: [{section}] must be a table, not {table!r}")
    return table


def _entries(layer: Layer) -> Iterator[tuple[str, str, Any]]:
    for section in layer.values:
        if section == "name":  # what outputs are called; not a setting
            continue
        if section not in SECTIONS:
            raise ConfigError(f"{layer.origin}: unknown section [{section}]", did_you_mean(section, SECTIONS))
        for key, value in _table(layer, section).items():
            if key not in SECTIONS[section].model_fields:
                raise ConfigError(f"{layer.origin}: unknown key {section}.{key}", _key_hint(section, key))
            yield section, key, value


def _key_hint(section: str, key: str) -> str:
    for other, model in SECTIONS.items():
        if key in model.model_fields:
            return f"did you mean {other}.{key}?"
    return did_you_mean(key, SECTIONS[section].model_fields)


def _as_config_error(error: ValidationError, origins: Mapping[str, str]) -> ConfigError:
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"][:2])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return ConfigError(f"[{dotted}] {message}")
    origin = origins.get(dotted, "default")
    inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][2:])
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(str(first["loc"][-1]), SourceSection.model_fields)
        return ConfigError(f"unknown key {dotted}{inside} ({origin})", hint)
    return ConfigError(f"{dotted}{inside} = {first['input']!r} ({origin}): {message}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def pretrained_arguments(name_or_path: str, revision: str | None = None) -> dict[str, str]:
    """Arguments for `from_pretrained`: a folder, a .gguf file (as its folder and name) or a Hub id.

    Raises ConfigError when the name looks like a path and nothing is there.
    """
    expanded = name_or_path.replace(PRESETS_PLACEHOLDER, str(presets_folder()))
    path = Path(expanded).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"model {name_or_path}: no such .gguf file")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    looks_like_path = expanded.startswith((".", "/", "~")) or expanded.count("/") > 1 or path.exists()
    if looks_like_path:
        raise ConfigError(
            f"model {name_or_path}: no such folder",
            "give a folder with config.json, a .gguf file, or a Hub id such as org/name",
        )
    arguments = {"pretrained_model_name_or_path": expanded}
    return arguments | ({"revision": revision} if revision else {})
