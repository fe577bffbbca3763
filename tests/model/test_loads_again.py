"""What transformers could not load again is refused before a step is made."""

import pytest
from transformers import AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.llama4.modeling_llama4 import Llama4PreTrainedModel

from rmcli.config.resolve import resolve
from rmcli.errors import RmcliError
from rmcli.model.memory import sizes_of
from support.exactness import tiny_network


def test_a_backbone_that_lies_where_transformers_does_not_look_is_refused_by_its_sizes(monkeypatch):
    class Nameless(GenericForSequenceClassification, Llama4PreTrainedModel):
        base_model_prefix = ""

    config = tiny_network("llama4_text").config
    made = AutoModelForSequenceClassification._model_mapping._extra_content
    with monkeypatch.context() as patch:
        patch.setitem(made, type(config), Nameless)
        with pytest.raises(
            RmcliError, match=r"^a trained Nameless could not be loaded again: embed_tokens.weight is not in ..,"
        ) as caught:
            sizes_of(resolve("tiny").config, config)
    assert caught.value.hint == "choose another architecture: docs/backbones.md lists those that train"


@pytest.mark.parametrize("name", ["llama4_text", "llama", "gpt2"])
def test_what_lies_in_its_place_is_not(name):
    assert sizes_of(resolve("tiny").config, tiny_network(name).config, "single").num_parameters > 0
