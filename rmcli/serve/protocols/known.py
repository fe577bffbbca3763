"""All protocols that the server speaks, and what to say of fields and conversations that it does not take."""

from rmcli.serve.protocols import vllm
from rmcli.serve.protocols.llamafactory import EVALUATION
from rmcli.serve.protocols.openrlhf import GET_REWARD
from rmcli.serve.protocols.own import SCORE
from rmcli.serve.protocols.protocol import Protocol
from rmcli.serve.protocols.slime import SLIME

PROTOCOLS: tuple[Protocol, ...] = (SCORE, GET_REWARD, vllm.CLASSIFY, vllm.POOLING, EVALUATION, SLIME)
FIELD_HINTS = vllm.HINTS
ERROR_HINTS = {
    "bos_twice": "the text begins with BOS more than once: render without it, or tokenize without special tokens",
    "not_rendered": "render it with the folder's chat template, or send messages",
    "no_generation_prompt": "the prompt holds control tokens and does not end where a reply begins: send messages",
    "no_reward_token": "ids end with the reward token, as the folder's chat template writes it",
    "reward_token_in_text": "the reward token may stand at the end alone",
    "overlong": "send messages to /score, which cuts the prompt as in training; or shorten it",
    "empty_conversation": "send a whole conversation",
    "empty_reply": "the last message is the reply that is scored",
    "no_assistant_reply": "the last message is the assistant's, the reply that is scored",
    "token_without_row": "ids of another tokenizer? Use the folder's own",
}
ANY_ERROR = "docs/format.md says what each reason means"
