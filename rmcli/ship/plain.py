"""Score a folder's golden.jsonl as anybody would: with torch and transformers, and nothing else of this package.

Run as a script by `rmcli verify`, in a process that imports no rmcli: the request on stdin, a JSON line for each case
on stdout. A case is {"dtype", "attention", "batch", "side", "limit"}.
"""

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

MULTIPLE = 8  # rows are padded to such a length, so that one alone has padding, too
Case = dict[str, Any]
Load = Callable[..., Any]
Score = Callable[[Any, dict[str, Any]], torch.Tensor]


def logits(network: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """(B,) scores, as the classifier itself takes them from its last token that is no padding."""
    return network(**inputs).logits[:, 0]


def load_classifier(folder: str, trust_remote_code: bool, **arguments: Any) -> Any:
    """transformers' classifier; of a folder of adapters its base model, with peft's PeftModel around it."""
    assert not trust_remote_code
    if not Path(folder, "adapter_config.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False, **arguments)
    load = AutoModelForSequenceClassification.from_pretrained
    return load_with_adapters(folder, load, trust_remote_code=False, **arguments)


def load_with_adapters(folder: str, load: Load, **arguments: Any) -> Any:
    """PeftModel around the base model that `load` gives; one that was in 4 bits when it was trained is so again."""
    from peft import PeftModel

    settings, config = (
        json.loads(Path(folder, name).read_text(encoding="utf-8")) for name in ("adapter_config.json", "config.json")
    )
    toml = Path(folder, "rmcli.toml")
    model = tomllib.loads(toml.read_text(encoding="utf-8"))["model"] if toml.is_file() else {}
    is_packed = model.get("quantization") == "nf4"
    if is_packed:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=arguments["dtype"],
            llm_int8_skip_modules=["score"],
        )
    base, _ = load(
        settings["base_model_name_or_path"],
        revision=settings.get("revision") or "main",
        num_labels=1,
        pad_token_id=(config.get("text_config") or config).get("pad_token_id"),
        **arguments,
    )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # else the first evaluation changes the weights for good
            module.support_avx512bf16_for_cpu = False
    rows = (config.get("text_config") or config)["vocab_size"]
    if rows > len(base.get_input_embeddings().weight):
        base.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(base, folder), {}


def measure(
    folder: str,
    cases: list[Case],
    load_model: Load = load_classifier,
    load_tokenizer: Load = AutoTokenizer.from_pretrained,
    score: Score = logits,
) -> Iterator[Case]:
    """Each case with `difference`, the largest between golden and measured scores, or with `fault`, in words.

    Where that is above the limit on the left side, `with_positions` is what it is when positions are counted from
    the first token that is no padding.
    The tokenizer is the first, a case of its own; where it fails nothing is scored.
    """
    golden = [json.loads(line) for line in Path(folder, "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    pad_token_id = (config.get("text_config") or config).get("pad_token_id")
    fault = tokenizer_fault(tokenizer, golden, pad_token_id)
    yield {"tokenizer": True, "fault": fault}
    if fault is not None:
        return
    for (dtype, attention), same in groupby(cases, key=lambda case: (case["dtype"], case["attention"])):
        network, fault = _loaded(load_model, folder, dtype, attention)
        for case in same:
            yield case | ({"fault": fault} if network is None else _answer(network, tokenizer, golden, case, score))


def tokenizer_fault(tokenizer: Any, golden: list[dict[str, Any]], pad_token_id: int | None) -> str | None:
    """What the tokenizer does to the golden conversations that training did not; None where all is as it was.

    `pad_token_id` is the model's, which looks for the last token that is none.
    """
    if tokenizer.pad_token_id is None:
        return "the tokenizer has no pad token: batches cannot be padded"
    if tokenizer.pad_token_id != pad_token_id:
        return f"the tokenizer pads with {tokenizer.pad_token_id}, and config.json says {pad_token_id}"
    if tokenizer.truncation_side != "left":
        return f"the tokenizer cuts long texts on the {tokenizer.truncation_side}: the token that is scored would go"
    for number, line in enumerate(golden, 1):
        text, ids = line["text"], line["input_ids"]
        where = f"golden.jsonl, line {number}: "
        if tokenizer.apply_chat_template(line["messages"], tokenize=False) != text:
            return where + "the chat template writes another text"
        for adds in (True, False):
            if tokenizer(text, add_special_tokens=adds)["input_ids"] != ids:
                return where + f"the text gives other ids (add_special_tokens={adds})"
    return None


def _loaded(load: Load, folder: str, dtype: str, attention: str) -> tuple[Any, str | None]:
    """The model, or why there is none: "" where the architecture does not take this attention."""
    arguments = {"dtype": getattr(torch, dtype), "attn_implementation": attention, "trust_remote_code": False}
    try:
        network, report = load(folder, output_loading_info=True, **arguments)
    except ValueError as error:
        if "does not support" in str(error) and attention in str(error).replace(
            "scaled_dot_product_attention", "sdpa"
        ):
            return None, ""
        raise
    for what in ("missing", "unexpected"):
        for name in sorted(report.get(f"{what}_keys", ())):
            said = "drawn at random" if what == "missing" else "not used"
            return None, f"{name} is {what} in the weights: {said}"
    return network.eval(), None


def _answer(network: Any, tokenizer: Any, golden: list[dict[str, Any]], case: Case, score: Score) -> Case:
    found = _difference(network, tokenizer, golden, case, score)
    if not found <= case["limit"] and case["side"] == "left" and found == found:
        with_positions = _difference(network, tokenizer, golden, case, score, gives_positions=True)
        return {"difference": found, "with_positions": with_positions}
    return {"difference": found} if found == found else {"fault": "a score is not finite"}


@torch.no_grad()
def _difference(
    network: Any,
    tokenizer: Any,
    golden: list[dict[str, Any]],
    case: Case,
    score: Score,
    gives_positions: bool = False,
) -> float:
    """The largest over all golden lines; NaN where a score is not finite."""
    largest = 0.0
    for start in range(0, len(golden), case["batch"]):
        lines = golden[start : start + case["batch"]]
        texts = [line["text"] for line in lines]
        padding = {"padding": True, "padding_side": case["side"], "pad_to_multiple_of": MULTIPLE}
        inputs = tokenizer(texts, return_tensors="pt", **padding)
        given = {key: inputs[key].to(network.device) for key in ("input_ids", "attention_mask")}
        if gives_positions:
            given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        scores = score(network, given).float()
        if not scores.isfinite().all():
            return float("nan")
        expected = torch.tensor([line["score"] for line in lines])
        difference = (scores.cpu() - expected).abs().max().item()
        if difference != difference:
            return difference  # a golden score that is no number: max() would pass it over
        largest = max(largest, difference)
    return largest


def serve(**own: Any) -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    for answer in measure(request["folder"], request["cases"], **own):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
