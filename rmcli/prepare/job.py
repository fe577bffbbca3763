"""What prepare is going to do: each source with its map function, and the folder. Decided before data is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmcli import output
from rmcli.config.layers import Layer, Resolved
from rmcli.config.no_effect import sentence, without_effect
from rmcli.config.resolve import relayer
from rmcli.config.sections import DataSection, SourceSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.rows import sources
from rmcli.rows.hints import hint_of_beginning
from rmcli.rows.map_fns.apply import find_map_function
from rmcli.rows.map_fns.cells import has_text_cells
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.known import AUTO, recognise


@dataclass(frozen=True)
class MappedSource:
    """A source, absolute so that the manifest can repeat it, and the function that maps its rows."""

    section: SourceSection
    map_fn: str
    map_function: MapFunction


@dataclass(frozen=True)
class Job:
    """What prepare is going to do."""

    resolved: Resolved
    sources: tuple[MappedSource, ...]
    folder: Path

    @property
    def map_fns(self) -> tuple[str, ...]:
        """The map functions by name, each once, in the order of the sources."""
        return tuple(dict.fromkeys(source.map_fn for source in self.sources))


def build_job(resolved: Resolved, folder: Path | None) -> Job:
    """Check everything that can be checked without reading data (but for the first row, with auto) or a model."""
    data = resolved.config.data
    named = list(data.sources)
    if not named:
        named = _default_sources(resolved)
    sources.check_sources(named, data.split)
    _check_caps(named, data)
    mapped = tuple(one for source in named for one in _with_map_function(source, data))
    functions = {source.map_fn for source in mapped}
    if data.dataset_map_fn in (AUTO, None) and len(functions) == 1:
        own = Layer("recognised by the columns", {"data": {"dataset_map_fn": mapped[0].map_fn}})
        resolved = relayer(resolved, own)
        data = resolved.config.data
    if data.decontaminate:
        sources.check_sources(data.decontaminate, default_split=None)
    _say_without_effect(resolved, named)
    if folder is None:
        name = data.dataset_map_fn or (functions.pop() if len(functions) == 1 else "mixed")
        shard = f"-shard-{data.shard_number}-of-{data.num_shards}" if data.shard else ""
        folder = Path("data") / f"{Path(name.rpartition(':')[0] or name).stem}-{resolved.name}{shard}"
    return Job(resolved, mapped, folder)


def _say_without_effect(resolved: Resolved, named: Sequence[SourceSection]) -> None:
    for said in without_effect(resolved, "data"):
        output.warn(said)
    paths = [source.path for source in named]
    no_splits = all(
        path == sources.STDIN or path.startswith(sources.BUILT_IN) or Path(path).is_file() for path in paths
    )
    if no_splits and "data.split" in resolved.explicit:
        output.warn(sentence(resolved, "data.split", resolved.config.data.split, "single files have no splits"))


def _check_caps(named: Sequence[SourceSection], data: DataSection) -> None:
    """Each shard would count a cap for itself, and stop a streamed source at a place of its own."""
    capped = next((source for source in named if source.max_rows is not None), None)
    if data.shard is not None and capped is not None:
        raise ConfigError(
            f"max_rows = {capped.max_rows} of {capped.label} caps all rows, but shard {data.shard} sees only its own",
            "prepare without --shard, or without the cap",
        )


def _default_sources(resolved: Resolved) -> list[SourceSection]:
    """The data set that the map function is for, with its own split unless one is asked for."""
    function = find_map_function(resolved.config.data.dataset_map_fn)
    if function.default_source is None:
        return []
    section = sources.as_section(function.default_source)
    if function.default_split != "train" and "data.split" not in resolved.explicit:
        section = section.model_copy(update={"split": function.default_split})
    return [section]


def _with_map_function(source: SourceSection, data: DataSection) -> list[MappedSource]:
    """The source with its map function; with auto, or where none is named, one for each file if they differ."""
    spec = source.dataset_map_fn or data.dataset_map_fn
    if spec not in (AUTO, None):
        return [MappedSource(sources.absolute_source(source), spec, find_map_function(spec))]
    return [
        MappedSource(sources.absolute_source(one), name, find_map_function(name))
        for one, name in _recognised(source, data)
    ]


def _recognised(source: SourceSection, data: DataSection) -> list[tuple[SourceSection, str]]:
    """The map function whose schema the first readable row has, said aloud. Of a folder, of each file.

    Files of one schema stay one source. Raises ConfigError for files of several under one cap.
    """
    named: dict[str, str] = {}
    unreadable = []
    for file, row in sources.first_rows(source, data.split):
        if row is None or row.value is None:
            unreadable.append(file)
            continue
        try:
            name = recognise(row.value, has_text_cells(row.file))
        except ConfigError as error:
            raise ConfigError(error.message, hint_of_beginning(row.file) or error.hint) from error
        if name not in named.values():
            columns = ", ".join(row.value)
            output.say(f"map function {name}, recognised by the columns {columns} of {row.file}:{row.line}")
        named[file] = name
    if not named:
        found = sources.found_files(source, data.split)
        about = None if found is None else hint_of_beginning(found.files[0])
        raise RmcliError(f"no readable row in {source.path}", about or "name the map function with --map-fn")
    first, *others = dict.fromkeys(named.values())
    if not others:
        return [(source.model_copy(update={"dataset_map_fn": first}), first)]
    named |= dict.fromkeys(unreadable, first)  # whichever: their rows are counted as unreadable
    if source.max_rows is not None:
        raise ConfigError(
            f"max_rows = {source.max_rows} of {source.label}: its files have several schemas, "
            f"{', '.join([first, *others])}, and become a source each",
            "give each file with a cap of its own: --source path=FILE,max_rows=N",
        )
    by_file = sorted(named.items())
    return [(source.model_copy(update={"path": file, "dataset_map_fn": name}), name) for file, name in by_file]
