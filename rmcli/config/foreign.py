"""What other trainers call things: the one table from their names to our keys, or to an answer where there is none.

XTuner's reward-model configs, TRL's RewardConfig and TrainingArguments, OpenRLHF's train_rm and LLaMA-Factory's YAML
(docs/migrate.md). Where XTuner has a name for a key, ours is the same, so those need no line here.
"""

from collections.abc import Mapping
from typing import Any

from rmcli.config.sections import SECTIONS

KEYS = {
    "model_name_or_path": "model.pretrained_model_name_or_path",
    "pretrain": "model.pretrained_model_name_or_path",
    "model_revision": "model.revision",
    "chat_template_path": "model.chat_template",
    "torch_dtype": "model.dtype",
    "dataset_name": "data.sources",
    "dataset_split": "data.split",
    "dataset_train_split": "data.split",
    "max_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "dataset_num_proc": "data.num_proc",
    "preprocessing_num_workers": "data.num_proc",
    "val_size": "data.eval_fraction",
    "data_seed": "data.seed",
    "loss": "loss.loss_type",
    "learning_rate": "train.lr",
    "num_train_epochs": "train.max_epochs",
    "epochs": "train.max_epochs",
    "train_batch_size": "train.pairs_per_step",
    "lr_warmup_ratio": "train.warmup_ratio",
    "l2": "train.weight_decay",
    "adam_betas": "train.betas",
    "max_grad_norm": "train.max_norm",
    "optim": "train.optimizer",
    "logging_steps": "train.log_every",
    "full_determinism": "train.deterministic",
    "gradient_checkpointing": "train.activation_checkpointing",
    "use_liger_kernel": "train.kernels",
    "enable_liger_kernel": "train.kernels",
    "torch_compile": "train.kernels",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "load_in_4bit": "model.quantization",
}

VALUES: dict[str, dict[Any, Any]] = {
    "loss.loss_type": {"sigmoid": "ranking"},
    "model.dtype": {"torch.bfloat16": "bfloat16", "torch.float32": "float32", "bf16": "bfloat16", "fp32": "float32"},
    "train.optimizer": {
        **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "AdamW"), "adamw"),
        **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"),
    },
    "train.activation_checkpointing": {True: "full", False: "none"},
    "use_liger_kernel": {True: "liger", False: "torch"},
    "enable_liger_kernel": {True: "liger", False: "torch"},
    "torch_compile": {True: "compile", False: "torch"},
    "load_in_4bit": {True: "nf4", False: "none"},
}

CENTERED = "center_rewards_coefficient"  # a weight that brings its penalty along
_RESUME = "a run goes on with: rmcli train --resume -o RUN"
_BEST = "train.best=eval_accuracy, eval_loss, ... exports the best evaluation's weights as model-best/"
_SETS = "[[eval.sets]] with name and path, a prepared folder; data.eval_fraction holds prompts out (docs/runs.md)"
_LORA = "set lora.r: adapters then train beside a frozen backbone (docs/lora.md)"
_QUANTIZED = "model.quantization=nf4 is the one kind, beside adapters (lora.r)"
_PROCESSES = "rmcli train --num-processes N; on several machines torchrun ... -m rmcli train (docs/launch.md)"
_SHARDING = "weights are cut over processes by torch's FSDP2: parallel.data_parallel=shard"
_NO_TENSOR_PARALLEL = "no matrix is cut over processes: parallel.data_parallel=shard cuts what is kept of them"
_TRACKERS = 'train.trackers, such as train.trackers=["wandb"]; runs have the run folder\'s name (docs/trackers.md)'
_STEP = "train.pairs_per_step is their product, times the devices that it ran on"
_COLUMNS = "a map function names the columns: --map-fn (rmcli map-fns), or file.py:function"
_OUTPUT = "the option -o of rmcli train"
_ALWAYS = "always so here"

NOT_BUILT = {
    "use_dora": "of adapters there are LoRA and rsLoRA: lora.r, lora.use_rslora",
    "push_to_hub": "uploading a model is not built yet",
    "lr_scheduler_type": "only the cosine is built, with train.warmup_ratio and train.min_lr_ratio",
    "lr_scheduler": "only the cosine is built, with train.warmup_ratio and train.min_lr_ratio",
}

ANSWERS = {
    **dict.fromkeys(["deepspeed", "fsdp", "fsdp_config", "zero_stage"], _SHARDING),
    **dict.fromkeys(
        ["report_to", "use_wandb", "wandb_project", "wandb_run_name", "use_tensorboard", "visualizer", "run_name"],
        _TRACKERS,
    ),
    **dict.fromkeys(["num_processes", "nproc_per_node", "num_gpus", "nnodes", "num_machines"], _PROCESSES),
    **dict.fromkeys(["tensor_parallel_size", "ds_tensor_parallel_size"], _NO_TENSOR_PARALLEL),
    "ring_attn_size": "parallel.sequence_parallel_size",
    "dataloader_num_workers": "batches are built by one thread ahead: there is nothing to set",
    "per_device_train_batch_size": _STEP,
    "gradient_accumulation_steps": _STEP,
    "micro_train_batch_size": "packs take its place: data.max_packed_length tokens a forward",
    "per_device_eval_batch_size": "packs take its place: data.max_packed_length tokens a forward",
    "bf16": "on CUDA arithmetic is bfloat16 by itself, with float32 weights, head and loss (model.dtype)",
    "fp16": "there is no float16: on CUDA arithmetic is bfloat16 by itself (model.dtype)",
    **dict.fromkeys(
        ["resume", "resume_from_checkpoint", "resume_from", "load_checkpoint", "load_from", "continue"], _RESUME
    ),
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    **dict.fromkeys(["dataset_test_split", "eval_split", "eval_dataset", "eval_datasets"], _SETS),
    "early_stopping_steps": "train.early_stopping_patience, in evaluations; it needs train.best and train.eval_steps",
    "output_dir": _OUTPUT,
    "save_path": _OUTPUT,
    "ckpt_path": _OUTPUT,
    "work_dir": _OUTPUT,
    "overwrite_output_dir": "a run folder is never written over: go on with it (--resume), or name another with -o",
    "prompt_key": _COLUMNS,
    "chosen_key": _COLUMNS,
    "rejected_key": _COLUMNS,
    "input_key": _COLUMNS,
    "apply_chat_template": f"the chat template is applied: {_ALWAYS}",
    "template": "the tokenizer's own chat template; another with model.chat_template",
    "packing": f"rows are packed: {_ALWAYS}",
    "packing_samples": f"rows are packed: {_ALWAYS}",
    "trust_remote_code": "code from a model folder or the Hub is never run",
    "attn_implementation": "model.attention: auto takes the fastest exact kernel",
    "flash_attn": "model.attention: auto takes the fastest exact kernel",
    "max_samples": "max_rows of a source: --source path=FILE,max_rows=N",
    "eval_strategy": "held-out prompts are scored at the end, and every train.eval_steps",
    "evaluation_strategy": "held-out prompts are scored at the end, and every train.eval_steps",
    "warmup_steps": "train.warmup_ratio is their share of all steps",
    "dataset_config": "subset of a source: --source path=org/name,subset=NAME",
    "dataset_streaming": "streaming of a source: --source path=org/name,streaming=true",
    "save_strategy": "a checkpoint every train.save_steps",
    "disable_dropout": "dropout is what the model's config says",
    "compute_fp32_loss": f"the loss is float32: {_ALWAYS}",
    "margin_loss": "loss.loss_type=margin",
    CENTERED: "loss.penalty_type=center, and loss.penalty_weight the same number",
    "stage": "rmcli trains reward models only",
    "do_train": "rmcli train",
    "finetuning_type": "all weights train, or with lora.r adapters beside a frozen backbone",
    **dict.fromkeys(["lora", "use_peft", "peft", "peft_config", "adapter"], _LORA),
    "adapter_name_or_path": "a folder of adapters is a model like any other: model.pretrained_model_name_or_path",
    **dict.fromkeys(["load_in_8bit", "quantization_config", "quantization_bit", "quantization_method"], _QUANTIZED),
    "is_reward": "rmcli trains reward models only",
    "is_dpo": "rmcli trains reward models only",
    "dataset": "rmcli prepare SOURCE: a file, folder, URL or Hub name",
    "dataset_dir": "rmcli prepare SOURCE: a file, folder, URL or Hub name",
    "optim_type": "train.optimizer: adamw or adamw_8bit",
}

COMMANDS = {
    "eval": "rmcli evaluate MODEL PAIRS.jsonl",
    "resume": _RESUME,
    "merge": "prepared parts: rmcli prepare --merge DIR... -o DIR; adapters: rmcli export RUN",
    "list-presets": "rmcli presets",
    "inspect": "rmcli inspect-token, rmcli audit",
    "compare": "rmcli report RUN RUN",
    "plot": "rmcli report RUN",
    "sft": "rmcli trains reward models only",
    "dpo": "rmcli trains reward models only",
}


def own_key(name: str) -> str | None:
    """`lr` -> train.lr. The seed of train goes before that of data, as everywhere else."""
    sections = ("model", "train", "data", "loss", "lora", "parallel", "eval")
    found = [section for section in sections if name in SECTIONS[section].model_fields]
    return f"{found[0]}.{name}" if found else None


def key_of(name: str) -> str | None:
    """Our key for a name of ours without its section, or of another trainer's."""
    return own_key(name) or KEYS.get(name)


def advice(name: str) -> str | None:
    """What to do about a name that is no key of ours; None where we know nothing of it."""
    plain = name.strip("-").replace("-", "_")
    if plain in NOT_BUILT:
        return NOT_BUILT[plain]
    key = key_of(plain)
    if key is not None:
        return (
            f"it is {key}: -s {key}=VALUE, or {key.partition('.')[2]} under [{key.partition('.')[0]}] of a TOML file"
        )
    return ANSWERS.get(plain)


def translate(values: Mapping[str, Any], *, from_xtuner: bool) -> tuple[dict[str, Any], list[str]]:
    """Another trainer's settings as ours, {"train.lr": 2e-5}, and a line for each that has no place."""
    ours: dict[str, Any] = {}
    others = []
    for name, value in values.items():
        if name == CENTERED and value is not None:
            ours |= {"loss.penalty_type": "center", "loss.penalty_weight": value}
            continue
        key = key_of(name)
        if key is None or name in NOT_BUILT:
            said = NOT_BUILT.get(name) or ANSWERS.get(name) or "no such key here"
            others.append(f"{name} = {_short(value)}: {said}")
            continue
        table = VALUES.get(name) or VALUES.get(key, {})
        ours[key] = table.get(value, value) if isinstance(value, str | bool) else value
    _whole_steps(values, ours)
    if from_xtuner and "loss.penalty_weight" in ours:
        ours["loss.penalty_weight"] *= 2  # its sum over 2N scores is divided by N, ours by 2N
    for key in [key for key in ours if ours[key] is None or ours[key] == -1]:  # -1 is "never" or "no limit" there
        others.append(f"{key.partition('.')[2]} = {ours.pop(key)}: left to its default")
    return ours, others


def _whole_steps(values: Mapping[str, Any], ours: dict[str, Any]) -> None:
    """Numbers in our types: 1.0 epochs, a split's name, a batch of so many forwards."""
    counts = [values.get(name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    if any(isinstance(count, int) for count in counts) and "train.pairs_per_step" not in ours:
        ours["train.pairs_per_step"] = (counts[0] or 1) * (counts[1] or 1)
    if "adam_beta1" in values or "adam_beta2" in values:
        ours["train.betas"] = [values.get("adam_beta1", 0.9), values.get("adam_beta2", 0.999)]
    for key, value in ours.items():
        section, _, name = key.partition(".")
        annotation = str(SECTIONS[section].model_fields[name].annotation)
        if "int" in annotation and isinstance(value, float) and value.is_integer():
            ours[key] = int(value)
        elif annotation == "<class 'float'>" and isinstance(value, int) and not isinstance(value, bool):
            ours[key] = float(value)
        elif isinstance(value, tuple):
            ours[key] = list(value)
    if isinstance(ours.get("data.sources"), str):
        ours["data.sources"] = [ours["data.sources"]]
    if isinstance(ours.get("data.dataset_map_fn"), str):
        ours["data.dataset_map_fn"] = ours["data.dataset_map_fn"].removesuffix("_map_fn")
    if ours.get("data.max_length", 0) > ours.get("data.max_packed_length", 16384):
        ours["data.max_packed_length"] = ours["data.max_length"]


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
