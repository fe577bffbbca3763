"""What a preset says of its backbone."""

from typing import Literal

from pydantic import Field

from rmcli.config.sections import Section


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
