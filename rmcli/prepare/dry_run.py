"""`rmcli prepare -n`: all that the run would meet before its second row, in its order. Nothing is written."""

from pathlib import Path

from rmcli import output
from rmcli.config.sections import SourceSection
from rmcli.errors import RmcliError
from rmcli.packs import remote
from rmcli.packs.manifest import writing
from rmcli.packs.writer import check_free
from rmcli.prepare.fate import DUPLICATE, NOT_TAKEN, Fates, LeftOut, Waiting, of_tokens
from rmcli.prepare.job import Job, MappedSource
from rmcli.prepare.run import NO_ROWS, begin
from rmcli.prepare.units import Unit, units
from rmcli.records import TokenGroup
from rmcli.rows import hints, sources
from rmcli.rows.files import is_url
from rmcli.rows.map_fns.contract import Contract
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_tokenizer


def dry_run(job: Job, place: str, overwrite: bool) -> tuple[Job, list[dict[str, str]]]:
    """The job as it would run, and of each source where its first row stands and what becomes of it.

    Raises what the run would raise: for the output `place`, the model's tokenizer, the map function, no rows at all.
    """
    if is_url(place):
        remote.check_target(place, overwrite)
    reward = load_tokenizer(job.resolved.config.model)
    job, encoder, evaluation_prompts = begin(job, reward)
    if not is_url(place):
        with writing(Path(place)):
            check_free(Path(place), overwrite)
    data = job.resolved.config.data
    contracts = [Contract(encoder.template_reads.message_keys, data.allow_no_prompt) for _ in job.sources]
    fates = Fates(data, evaluation_prompts, contracts)
    first = [_first_unit(source_id, source, job) for source_id, source in enumerate(job.sources)]
    if not any(first):
        raise RmcliError(*NO_ROWS)
    found = []
    for source, unit, contract in zip(job.sources, first, contracts, strict=True):
        place = source.section.label if unit is None else unit.place
        found.append({"row": place, "becomes": "no row" if unit is None else _becomes(unit, source, fates, encoder)})
        contract.report(source.section.label)
    return job, found


def _first_unit(source_id: int, source: MappedSource, job: Job) -> Unit | None:
    data = job.resolved.config.data
    rows = sources.read_source(source_id, _streamed(source.section), data.split, data.max_row_bytes)
    return next(units(rows, source.map_function, row_id=0), None)


def _streamed(section: SourceSection) -> SourceSection:
    """A set on the Hub is not downloaded for its first row."""
    on_hub = sources.is_hub_name(section.path)
    return section.model_copy(update={"streaming": True}) if on_hub else section


def _becomes(unit: Unit, source: MappedSource, fates: Fates, encoder: Encoder) -> str:
    """In words: kept with its tokens, or why it is left out. What helps against a reason is said."""
    fate: Waiting | LeftOut | TokenGroup = fates.of(unit, source)
    if isinstance(fate, Waiting):
        fate = of_tokens(encoder.encode([fate.group])[0], fates.data.max_packed_length)
    if isinstance(fate, TokenGroup):
        cut = ", truncated" if fate.truncated else ""
        return f"kept: {len(fate.prefix)} tokens shared by {len(fate.responses)} answers{cut}"
    if fate.reason == DUPLICATE:
        return f"duplicate of {fate.repeats}"
    if fate.reason == NOT_TAKEN:
        return "not taken"
    about = f" ({fate.about})" if fate.about else ""
    output.say(f"{unit.place}: {hints.hint(fate.reason, unit.place, encoder.template_says.get(fate.reason))}")
    return f"rejected as {fate.reason}{about}"
