"""Settings that the user asked for and that change nothing: named, never passed over in silence."""

from collections.abc import Callable, Iterator, Mapping

from rmcli.config.layers import Resolved
from rmcli.config.presets import pretrained_arguments
from rmcli.config.sections import SECTIONS, Config


def _of_loss(name: str) -> Callable[[Config], str | None]:
    """For a key that one loss alone reads."""
    return lambda config: None if config.loss.loss_type == name else f"only loss.loss_type = {name} reads it"


def _of_penalty(config: Config) -> str | None:
    return "loss.penalty_type is none" if config.loss.penalty_type == "none" else None


def _of_weighted_penalty(config: Config) -> str | None:
    return _of_penalty(config) or (None if config.loss.penalty_weight else "loss.penalty_weight is 0")


def _of_barrier(config: Config) -> str | None:
    other = config.loss.penalty_type != "log_barrier"
    return "only loss.penalty_type = log_barrier reads it" if other else _of_weighted_penalty(config)


def _of_packs(config: Config) -> str | None:
    each = config.train.pairs_per_step
    return None if each is None else f"train.pairs_per_step = {each} sets how large a step is"


def _of_stored_rows(config: Config) -> str | None:
    return _of_packs(config) if config.model.use_varlen_attn else None


def _of_packed_rows(config: Config) -> str | None:
    return None if config.model.use_varlen_attn else "model.use_varlen_attn is false"


def _of_hub_models(config: Config) -> str | None:
    name, revision = config.model.pretrained_model_name_or_path, config.model.revision
    if name is None or revision is None:  # nothing to say, and a run that goes on may have lost its folder
        return None
    return None if "revision" in pretrained_arguments(name, revision) else f"{name} is not on the Hub"


def _of_adapters(config: Config) -> str | None:
    return "lora.r is not set: all weights train" if config.lora.r is None else None


def _of_early_stopping(config: Config) -> str | None:
    return "train.early_stopping_patience is not set" if config.train.early_stopping_patience is None else None


def _of_held_out_prompts(config: Config) -> str | None:
    return None if config.data.eval_fraction else "data.eval_fraction is 0"


# Key -> why it changes nothing in a configuration, None where it does.
_READERS: dict[str, Callable[[Config], str | None]] = {
    "model.revision": _of_hub_models,
    "model.trim_last_layer": _of_packed_rows,
    "lora.lora_alpha": _of_adapters,
    "lora.lora_dropout": _of_adapters,
    "lora.target_modules": _of_adapters,
    "lora.use_rslora": _of_adapters,
    "data.eval_seed": _of_held_out_prompts,
    "loss.gamma": _of_loss("focal"),
    "loss.margin_scale": _of_loss("margin"),
    "loss.tie_threshold": _of_loss("ties"),
    "loss.penalty_type": lambda config: None if config.loss.penalty_weight else "loss.penalty_weight is 0",
    "loss.penalty_weight": _of_penalty,
    "loss.penalty_bound": _of_barrier,
    "train.accumulative_counts": _of_packs,
    "train.batch_size": _of_stored_rows,
    "train.early_stopping_threshold": _of_early_stopping,
}


def without_effect(resolved: Resolved, *sections: str) -> Iterator[str]:
    """One sentence for each key of these sections that the user set and that changes nothing."""
    readers = {key: reader for key, reader in _READERS.items() if key.split(".")[0] in sections}
    # Only of what is set: a run that goes on needs no model where it once was.
    yield from in_vain(
        resolved, {key: of(resolved.config) for key, of in readers.items() if _is_asked(resolved, key)}
    )


def in_vain(resolved: Resolved, reasons: Mapping[str, str | None]) -> Iterator[str]:
    """One sentence for each key (section.key) with a reason why it changes nothing, where the user set it."""
    for dotted, reason in reasons.items():
        if reason is not None and _is_asked(resolved, dotted):
            yield sentence(resolved, dotted, _value(resolved, dotted), reason)


def _is_asked(resolved: Resolved, dotted: str) -> bool:
    """A preset's own value is not the user's, and one that equals the default takes nothing from anyone.

    A run's resolved.toml names every key.
    """
    section, _, key = dotted.partition(".")
    default = SECTIONS[section].model_fields[key].default
    return dotted in resolved.explicit and _value(resolved, dotted) != default


def _value(resolved: Resolved, dotted: str) -> object:
    section, _, key = dotted.partition(".")
    return getattr(getattr(resolved.config, section), key)


def sentence(resolved: Resolved, dotted: str, value: object, reason: str) -> str:
    return f"{dotted} = {value!r} ({resolved.origins[dotted]}) has no effect: {reason}"
