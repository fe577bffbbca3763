"""`rmcli prepare`: rows -> preference groups -> tokens -> packed rows on disk, every row accounted for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rmcli import output
from rmcli.backbones.context import within_positions
from rmcli.config.no_effect import in_vain
from rmcli.config.sections import DataSection
from rmcli.errors import RmcliError, Skip
from rmcli.packs import remote
from rmcli.packs.merge import merge
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.packs.writer import PackWriter
from rmcli.prepare.fill import Filling
from rmcli.prepare.job import Job
from rmcli.prepare.rejects import rejects_kept
from rmcli.prepare.show import report_splits, say_start, show_tokens
from rmcli.records import Conversation
from rmcli.rows import accounting, decontaminate, hints, sources
from rmcli.rows.files import is_url
from rmcli.rows.map_fns.apply import apply, source_sha256
from rmcli.rows.map_fns.known import NAMED, recognise
from rmcli.ship.same_ids import ids_sha256
from rmcli.tokens.encode import NOTED, Encoder, prompt_of
from rmcli.tokens.tokenizer import RewardTokenizer, load_model_config, load_tokenizer

NO_ROWS = "no rows in the sources", "check the files"


def run(
    job: Job,
    overwrite: bool = False,
    show: int = 0,
    place: str | None = None,
    reward: RewardTokenizer | None = None,
) -> dict[str, Any]:
    """Prepare and return the manifest; print the first `show` pairs token by token.

    `place` is where the user will find the folder, when that is not where it is written. `reward` is the configured
    model's tokenizer, where it has been loaded already.

    Raises RmcliError when not a single row is kept; nothing is written then.
    """
    reward = reward or load_tokenizer(job.resolved.config.model)
    job, encoder, evaluation_prompts = begin(job, reward)
    data = job.resolved.config.data
    with PackWriter(job.folder, overwrite) as writer:
        filling = Filling(writer, job, encoder, evaluation_prompts)
        with rejects_kept(writer, Path(Path(place).name) if place and is_url(place) else job.folder):
            filling.run()
            whole = accounting.total(filling.accounts)
            if not whole.kept:
                raise _nothing_kept(whole, encoder.template_says)
        manifest = writer.finish(_manifest(job, encoder, filling))
    for number, group in enumerate(filling.first[:show], 1):
        show_tokens(f"pair {number} (input row {group.row_id})", group, reward)
    accounting.report(filling.accounts, f"{place or job.folder}/rejects.jsonl")
    accounting.report_noted(filling.accounts, NOTED)
    if filling.read_back:
        output.warn(
            f"{filling.read_back:,} rows hold text that is a transcript or a message list written out: it was "
            "read as messages (--show 3 prints the first)"
        )
    if filling.without_order:
        output.warn(
            f"data.pairs = {data.pairs}: {filling.without_order:,} groups are in no strict order and keep all their "
            "comparisons"
        )
    report_splits(manifest)
    held_out = manifest["splits"]["eval"]["num_groups"]
    no_effect = {
        "data.pairs": None if filling.lists else "no group has more than two answers",
        "data.eval_fraction": None if held_out else f"none of {whole.kept:,} rows is held out: they are too few",
    }
    for said in in_vain(job.resolved, no_effect):
        output.warn(said)
    return manifest


def begin(job: Job, reward: RewardTokenizer) -> tuple[Job, Encoder, decontaminate.EvaluationPrompts]:
    """What is there before the first row is read: the job within the model's positions, the encoder, and the prompts
    to leave out. Says what is about to happen.
    """
    job = replace(job, resolved=within_positions(job.resolved, load_model_config(job.resolved.config.model)))
    data = job.resolved.config.data
    encoder = Encoder(
        reward,
        data.max_length,
        data.overlong,
        data.pairs,
        data.tokenizer_engine,
        max_characters=data.max_characters,
        control_tokens=data.control_tokens,
    )
    for source in job.sources:
        source_sha256(source.map_function)  # the manifest will want it: what has none fails before the work
    say_start(job, reward)
    evaluation_prompts = decontaminate.read_prompts(
        {file: sources.read_evaluation_rows(file, data.split) for file in data.decontaminate}, _known_prompt
    )
    return job, encoder, evaluation_prompts


def _known_prompt(row: Mapping[str, Any]) -> Conversation | None:
    """The prompt of an evaluation row whose schema a named map function has."""
    try:
        function = NAMED[recognise(row)]
        return prompt_of(apply(function, row, "evaluation file"))
    except (RmcliError, Skip):
        return None


@contextmanager
def folder_for(place: str, overwrite: bool) -> Iterator[Path]:
    """The folder to prepare in: `place` itself, or a temporary one where that is a URL.

    What was written there is proven, and uploaded when the context ends.
    """
    if not is_url(place):
        yield Path(place)
        return
    remote.check_target(place, overwrite)
    with TemporaryDirectory(prefix="rmcli-") as temporary:
        folder = Path(temporary) / "data"
        yield folder
        for split in SPLITS:
            PackedSplit(folder, split)  # compares each file with its hash
        remote.upload(folder, place)
    output.say(f"uploaded to {place}")


def merge_parts(parts: Sequence[Path], folder: Path, overwrite: bool = False) -> dict[str, Any]:
    """Join parts prepared with --shard into `folder`. Returns the manifest."""
    manifest = merge(parts, folder, overwrite)
    report_splits(manifest)
    return manifest


def _manifest(job: Job, encoder: Encoder, filling: Filling) -> dict[str, Any]:
    config = job.resolved.config
    reward = encoder.reward
    return {
        "preset": job.resolved.name,
        "sources": [source.section.model_dump() for source in job.sources],
        "dataset_map_fn": config.data.dataset_map_fn or (job.map_fns[0] if len(job.map_fns) == 1 else None),
        "map_fn_sha256": {source.map_fn: source_sha256(source.map_function) for source in job.sources},
        "reward_token": reward.reward_token,
        "reward_token_id": reward.reward_token_id,
        "reward_mode": reward.mode,
        **reward.fingerprint(),
        "ids_sha256": ids_sha256(reward),
        "tokenizer_engine": f"{encoder.engine.name} {encoder.engine.version}",
        "shard": config.data.shard,
        "rows": accounting.total(filling.accounts).as_dict(),
        "rows_by_source": [
            {**account.as_source_dict(), **contract.as_dict()}
            for account, contract in zip(filling.accounts, filling.contracts, strict=True)
        ],
        # num_proc changes nothing in the data, and the shard is no part of what all shards share.
        "config": config.model_dump(
            include={"model": True, "data": set(DataSection.model_fields) - {"num_proc", "shard"}}
        ),
    }


def _nothing_kept(whole: accounting.Account, template_says: Mapping[str, str]) -> RmcliError:
    if not whole.rows_in:
        return RmcliError(*NO_ROWS)
    if not whole.reasons:
        return RmcliError(
            f"not one of {whole.rows_in} rows was kept: {accounting.equation(whole.as_dict())}",
            "a source's weight and max_rows say how many are taken",
        )
    reason, num_rows = whole.reasons.most_common(1)[0]
    return accounting.TooManyRejected(
        f"not one of {whole.rows_in} rows was kept; {num_rows} were rejected as {reason}, "
        f"first {whole.first_of(reason)}",
        hints.hint(reason, whole.first[reason], template_says.get(reason)),
    )
