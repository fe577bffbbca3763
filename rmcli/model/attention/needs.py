"""What a value of model.attention needs of the device, and a model of it: known without loading a kernel."""

from typing import Any

NEEDS_CUDA = ("varlen", "fa3", "flash", "flex")
NEEDS_REDUCED = ("varlen", "fa3", "flash")  # bfloat16 arithmetic


def wants_flex(text: Any) -> bool:
    """Whether layers of this text config have soft-capped logits or sinks, which no kernel of one call takes."""
    return bool(getattr(text, "attn_logit_softcapping", None)) or getattr(text, "model_type", None) == "gpt_oss"
