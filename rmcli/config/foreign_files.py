"""A configuration of another trainer given with -c: read, never run, and answered with the TOML that it becomes."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from rmcli.config.foreign import translate
from rmcli.config.presets import preset_names, read_preset
from rmcli.config.sections import SECTIONS
from rmcli.errors import ConfigError

ENDINGS = (".py", ".yaml", ".yml", ".json")
_DEPTH = 100  # of nested values


def as_toml(path: Path) -> str:
    """The TOML that the file's known keys become; every other key is a comment that says why.

    Raises ConfigError when the file cannot be read, is too deep, or holds no settings.
    """
    try:
        values = _read(path)
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    ours, others = translate(values, from_xtuner=path.suffix == ".py")
    others += _refused(ours)
    if ours and path.suffix != ".py":
        ours = {"loss.loss_type": "ranking", "loss.penalty_type": "none"} | ours  # what those trainers do unasked
    if not ours:
        raise ConfigError(f"{path} holds no setting that rmcli knows", "rmcli config lists the keys")
    others += _reward_token(ours)
    document = tomlkit.document()
    document.add(tomlkit.comment(f"what {path.name} becomes; docs/migrate.md says where the trainers differ"))
    for section in SECTIONS:
        keys = {key.partition(".")[2]: value for key, value in ours.items() if key.partition(".")[0] == section}
        if keys:
            document.add(section, tomlkit.item(keys))
    text = tomlkit.dumps(document)
    if others:
        text += "\n# not taken over:\n" + "".join(f"# {line}\n" for line in others)
    return text


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".py":
        return _flat(_assignments(ast.parse(text)))
    if path.suffix == ".json":
        values = json.loads(text)
    else:
        import yaml

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(error) from error
    if not isinstance(values, dict):
        raise ValueError("it holds no settings")
    return {str(key): _number(value) for key, value in values.items()}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as text, which those trainers turn into a number."""
    if isinstance(value, str):
        try:
            return float(value) if value[:1] in "0123456789.-+" and "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _assignments(module: ast.Module) -> dict[str, Any]:
    """The names that a Python file sets at its top, as far as they are literals or follow from literals."""
    names: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = _value(node.value, names)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names[node.target.id] = _value(node.value, names)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = _arithmetic(node.op, names.get(node.target.id), _value(node.value, names))
    return names


def _value(node: ast.expr, names: Mapping[str, Any], depth: int = 0) -> Any:
    """A literal, a name set before, arithmetic on them, or dict(...); a function or class is its name. Else None."""
    if depth > _DEPTH:
        raise ValueError(f"values nested more than {_DEPTH} deep")
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element, names, depth + 1) for element in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {
            str(_value(key, names, depth + 1)): _value(value, names, depth + 1)
            for key, value in pairs
            if key is not None
        }
    if isinstance(node, ast.Call):
        keywords = {word.arg: _value(word.value, names, depth + 1) for word in node.keywords if word.arg is not None}
        return keywords if keywords else None
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, names, depth + 1)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, ast.BinOp):
        return _arithmetic(node.op, _value(node.left, names, depth + 1), _value(node.right, names, depth + 1))
    return None


def _arithmetic(operator: ast.operator, left: Any, right: Any) -> Any:
    if not all(isinstance(number, int | float) and abs(number) < 1e12 for number in (left, right)):
        return None
    if isinstance(operator, ast.Mult):
        return left * right
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Div | ast.FloorDiv) and right:
        return left / right if isinstance(operator, ast.Div) else left // right
    return None


# What XTuner's parts hold beyond what they repeat from the top of the file.
_PARTS = {
    "model": ("penalty_weight", "loss_type", "penalty_type", "reward_token_id", "use_varlen_attn", "gamma", "lora"),
    "train_dataset": ("dataset_map_fn", "num_proc", "shuffle_before_pack", "max_length", "max_packed_length"),
    "llm": ("pretrained_model_name_or_path", "quantization_config"),
}
_MACHINERY = {
    "tokenizer",
    "model",
    "train_dataset",
    "train_dataloader",
    "sampler",
    "optim_wrapper",
    "param_scheduler",
    "train_cfg",
    "custom_hooks",
    "default_hooks",
    "env_cfg",
    "log_level",
    "log_processor",
    "randomness",
}


def _flat(names: Mapping[str, Any]) -> dict[str, Any]:
    """XTuner's settings: the values at the top of the file, and what only its parts say."""
    values = {name: value for name, value in names.items() if name not in _MACHINERY and value is not None}
    parts: dict[str, Any] = dict(names)
    model = names.get("model")
    parts["llm"] = model.get("llm") if isinstance(model, dict) else None
    for part, keys in _PARTS.items():
        inside = parts.get(part)
        for key in keys:
            if isinstance(inside, dict) and inside.get(key) is not None:
                values.setdefault(key, inside[key])
    dataset = names.get("train_dataset")
    source = dataset.get("dataset") if isinstance(dataset, dict) else None
    if isinstance(source, dict):
        files = source.get("data_files") or source.get("path")
        values.setdefault("sources", [files] if isinstance(files, str) else files)
    return values


def _refused(ours: dict[str, Any]) -> list[str]:
    """Take out what our keys cannot hold, and say so."""
    lines = []
    for dotted in list(ours):
        section, _, key = dotted.partition(".")
        try:
            SECTIONS[section].model_validate({key: ours[dotted]})
        except ValidationError as error:
            about_it = [one["msg"] for one in error.errors() if one["loc"][:1] == (key,)]
            if about_it:
                lines.append(f"{dotted} = {ours.pop(dotted)!r}: {about_it[0]}")
    return lines


def _reward_token(ours: dict[str, Any]) -> list[str]:
    """Trainers without a reward token score at the last token: take the preset's where one has this backbone."""
    model = ours.get("model.pretrained_model_name_or_path")
    if model is None or "model.reward_token_id" in ours or "model.reward_token" in ours:
        return []
    for name in preset_names():
        keys = read_preset(name).values["model"]
        if keys.get("pretrained_model_name_or_path") == model:
            ours["model.reward_token"] = keys["reward_token"]
            ours["model.reward_token_id"] = keys["reward_token_id"]
            return [f"the reward token above is that of the preset {name}; reward_token = 'natural' appends none"]
    ours["model.reward_token"] = "natural"
    return [f"reward_token = 'natural' scores at the template's own end of turn; else: rmcli inspect-token {model}"]
