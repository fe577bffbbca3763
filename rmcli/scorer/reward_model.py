"""A trained reward model in Python: `from rmcli import RewardModel`."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from rmcli.backbones.hub import fetch_model
from rmcli.config.layers import Layer
from rmcli.config.presets import pretrained_arguments
from rmcli.errors import ConfigError, RmcliError
from rmcli.logs import as_library
from rmcli.model.device import find_device
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.contract import Contract
from rmcli.scorer import conversations as given
from rmcli.scorer.load import checked, configuration_of, load_encoder, load_scorer
from rmcli.scorer.scorer import Score, Scorer
from rmcli.scorer.tokens import complete
from rmcli.scorer.windows import characters_of, windows

# A list of messages {"role", "content"}, or a dict of `messages` (or `prompt`, `response`) with `system`, `history`,
# `tools`, `chat_template_kwargs` beside them.
Conversation = Sequence[Mapping[str, Any]] | Mapping[str, Any]


class RewardModel:
    """A trained reward model, made by `RewardModel.load`. It gives the scores that `rmcli score` gives.

    A score is that of its own conversation: what else is scored with it changes rounding alone (1e-6 in float32), and
    the same call gives the same scores. Scoring runs without gradients. It prints nothing: what `rmcli score` would
    say goes to Python's logging, under the name `rmcli`. Several threads may score at once; they take turns.
    """

    def __init__(self, scorer: Scorer, name: str, allow_no_prompt: bool = False) -> None:
        self.name = name
        self._scorer = scorer
        self._allow_no_prompt = allow_no_prompt
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls,
        path_or_hub: str | Path,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> "RewardModel":
        """A model folder, or a Hub name of one: of rmcli, XTuner, InternLM2, or any `...ForSequenceClassification`.

        One that names no reward token is scored at the last token that its chat template writes. `device`: auto (cuda
        if there is one), cpu, cuda or cuda:N. `dtype`: of the backbone's arithmetic, float32 or bfloat16; auto is as
        the folder says, else bfloat16 on CUDA and float32 on a CPU. `revision`: branch, tag or commit on the Hub.

        Raises RmcliError for what is no trained reward model, a file that is not as it was exported, damaged weights,
        or a self-test that fails. No code that comes with a model is run.
        """
        asked = {} if dtype == "auto" else {"model": {"dtype": dtype}}
        with _in_library():
            where = find_device(str(device), "device")
            folder = _folder_of(str(path_or_hub), revision)
            resolved = configuration_of(folder, options=[Layer("RewardModel.load", asked)])
            config = checked(resolved).config
            scorer = load_scorer(config, load_encoder(config), where)
            return cls(scorer, str(path_or_hub), config.data.allow_no_prompt)

    @property
    def device(self) -> torch.device:
        return self._scorer.runner.network.device

    @property
    def max_length(self) -> int:
        """Tokens of a conversation, the reward token included: a longer one loses tokens of its prompt."""
        return self._scorer.encoder.max_length

    def __repr__(self) -> str:
        return f"RewardModel({self.name!r}, device={str(self.device)!r}, max_length={self.max_length})"

    def score(self, conversations: Iterable[Conversation]) -> list[Score]:
        """One Score per conversation, in order; each ends with the assistant's reply that is scored.

        One that cannot be scored is an error in its place. A prompt that several answers share is computed for each:
        `score_responses` computes it once.
        """
        talks = _listed(conversations, "conversations", "score([conversation])")
        with self._scoring(), self._reading() as contract:
            groups = [given.conversation(talk, contract) for talk in talks]
            return [
                score
                for window in windows(groups, characters_of)
                for (score,) in self._score_each([[group] for group in window])
            ]

    def score_responses(self, prompt: Any, responses: Iterable[Any]) -> list[Score]:
        """One Score per response, in order. What the conversations begin with in common is computed once.

        `prompt`: a text (one user turn), messages, or a dict of `messages` and what stands beside them. A response is
        a text (the assistant's reply) or messages. One that cannot be scored is an error in its place.
        """
        answers = _listed(responses, "responses", "score_responses(prompt, [response])")
        with self._scoring(), self._reading() as contract:
            groups = [given.answer(prompt, response, contract) for response in answers]
            return self._score_each([groups])[0]

    def score_ids(self, ids: Iterable[Any]) -> list[Score]:
        """One Score per list, array or tensor of token ids, in order: a whole conversation up to its reward position.

        Nothing is added or cut. Ids without a row in the embedding (`token_without_row`), more than `max_length`
        (`overlong`), or another end than the reward token (`no_reward_token`) are errors in their place.
        """
        everything = _listed(ids, "ids", "score_ids([ids])")
        with self._scoring():
            sides = [complete(self._scorer.encoder, one) for one in everything]
            return [score for (score,) in self._scorer.score_sides([[side] for side in sides])]

    def _score_each(self, groups: Sequence[Sequence[PreferenceGroup | str]]) -> list[list[Score]]:
        """Of groups whose conversations share what they begin with; those that could not be read are their reason."""
        good = [_joined([one for one in group if not isinstance(one, str)]) for group in groups]
        scored = iter(self._scorer.score_each([group for group in good if group is not None]))
        results = []
        for group, some in zip(groups, good, strict=True):
            scores = iter(next(scored) if some is not None else ())
            results.append([Score(None, error=one) if isinstance(one, str) else next(scores) for one in group])
        return results

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        with _in_library(), self._turn:
            yield

    @contextmanager
    def _reading(self) -> Iterator[Contract]:
        """How conversations are read; at the end, keys that nothing reads are named."""
        contract = Contract(self._scorer.encoder.template_reads.message_keys, self._allow_no_prompt)
        yield contract
        contract.report("what is scored")


def _joined(groups: Sequence[PreferenceGroup]) -> PreferenceGroup | None:
    """Groups of one conversation each as one; what stands beside a prompt is the same for all of its answers."""
    if not groups:
        return None
    talks = tuple(group.conversations[0] for group in groups)
    return PreferenceGroup(talks, comparisons=(), template_arguments=groups[0].template_arguments)


def _listed(items: Iterable[Any], what: str, example: str) -> list[Any]:
    """The items. Raises TypeError for one alone, whose parts would be taken for items."""
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise TypeError(f"{what} is a {type(items).__name__}, not a list: {example}")
    return list(items)


def _folder_of(name: str, revision: str | None) -> Path:
    local = Path(name).expanduser()
    if not local.is_dir():
        arguments = pretrained_arguments(name, revision)  # raises for a path where nothing is
        if "gguf_file" in arguments:
            raise ConfigError(f"model {name}: a .gguf file has no trained head", "give the model/ folder of a run")
        return fetch_model(name, revision)
    if revision is not None:
        raise ConfigError(f"revision = {revision!r}, and {name} is a folder here", "a revision is of a Hub name")
    return local


@contextmanager
def _in_library() -> Iterator[None]:
    """Talk goes to logging, an error shows its hint below it, and torch modes that the caller has set are not ours.

    An autocast around us would change the scores; without gradients the self-test could not run.
    """
    with as_library(), ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            modes.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        except RmcliError as error:
            if error.hint:
                error.add_note(f"hint: {error.hint}")
            raise
