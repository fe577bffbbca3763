"""`rmcli map-fns`."""

from rmcli import output
from rmcli.cli.options import Json, Quiet, Verbose, Wide, reports, say_next


@reports
def map_fns_command(wide: Wide = False, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """List the map functions: what they read, and their data sets."""
    from rmcli.rows.map_fns.apply import listing

    entries = listing()
    if json:
        output.answer_json(entries)
        return
    rows = [
        [
            entry["name"],
            ", ".join(entry["columns"] or ()),
            entry["default_source"] or "",
            entry["description"] if entry["from"] == "rmcli" else f"{entry['description']} ({entry['from']})",
        ]
        for entry in entries
    ]
    columns = ["map function", "columns", "default data set", "what it is"]
    output.table(columns, rows, to_answer=True, keep=("map function", "what it is"), wide=wide)
    say_next("prepare", "SOURCE", "--map-fn", "NAME")
