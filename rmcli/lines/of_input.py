"""An input, whatever it is, as lines to score: rows as they are written, or a prepared folder as it is stored."""

from collections.abc import Collection, Iterator

from rmcli.config.sections import Config, SourceSection
from rmcli.errors import ConfigError
from rmcli.lines import inputs, prepared, read
from rmcli.lines.read import Line
from rmcli.rows.map_fns.contract import Contract
from rmcli.tokens.encode import Encoder


def lines_of(
    config: Config,
    source: SourceSection,
    map_fn: str | None,
    contract: Contract,
    encoder: Encoder,
    skip: int = 0,
    columns: Collection[str] = (),
) -> tuple[Iterator[Line], int | None]:
    """The lines, of which the first `skip` are passed over, and how many they are where that is known.

    `columns` of the rows come with them, which a prepared folder has none of.
    Raises ConfigError where a prepared folder, whose rows are mapped, is given a map function.
    """
    if not inputs.is_prepared(source.path):
        given = read.read(source, map_fn, contract, config.data.max_row_bytes, skip, columns)
        return given, inputs.count_rows(source)
    if map_fn is not None:
        raise ConfigError(f"--map-fn {map_fn}: {source.path} is prepared, its rows are mapped", "leave it out")
    return prepared.read(source, encoder)
