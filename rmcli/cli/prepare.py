"""`rmcli prepare`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmcli import output
from rmcli.cli.options import (
    ConfigFiles,
    DryRun,
    Json,
    Preset,
    Quiet,
    Report,
    Settings,
    Verbose,
    absolute_if_file,
    option_layer,
    reports,
    same_configuration,
    say_next,
    show_config,
)
from rmcli.errors import ConfigError, RmcliError

if TYPE_CHECKING:
    from rmcli.config.sections import ModelSection
    from rmcli.output_files import OutputFile
    from rmcli.prepare.job import Job
    from rmcli.tokens.tokenizer import RewardTokenizer


Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="Files, folders, URLs, Hub names, -; default: the map function's own.",
    ),
]
OwnSources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="KEY=VALUE,...",
        help="A source with its own settings: path=FILE,map_fn=F,weight=2,max_rows=9; repeatable.",
    ),
]
MapFn = Annotated[
    str | None,
    typer.Option("--map-fn", metavar="F", help="A name (rmcli map-fns), auto, module:function or file.py:function."),
]
Output = Annotated[str | None, typer.Option("-o", "--output", metavar="DIR|URL", help="Default: data/F-PRESET.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what was prepared there, and an earlier --report.")
]
KeepDuplicates = Annotated[
    bool | None, typer.Option("--keep-duplicates", help="Keep exact duplicates of earlier rows.")
]
Pairs = Annotated[
    str | None, typer.Option("--pairs", metavar="all|best_worst|adjacent", help="Which pairs of a K-way group.")
]
MaxRejects = Annotated[
    str | None, typer.Option("--max-rejects", metavar="N|P%", help="Stop when more rows are rejected.")
]
Decontaminate = Annotated[
    list[str] | None,
    typer.Option("--decontaminate", metavar="FILE", help="Leave out rows that this evaluation file asks too."),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="FILE|NAME",
        help="Chat template in place of the tokenizer's: a file, chatml, llama3, plain.",
    ),
]
Merge = Annotated[
    bool, typer.Option("--merge", help="Join the prepared parts SOURCE... (shards i/n of one set) into -o DIR.")
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Every Nth row from the Ith on: one of N machines.")
]
Show = Annotated[int, typer.Option("--show", metavar="N", min=0, max=20, help="Print the first N pairs by token.")]
WithAudit = Annotated[bool, typer.Option("--audit/--no-audit", help="Audit what was prepared.")]


@reports
def prepare_command(
    source: Sources = None,
    source_: OwnSources = None,
    map_fn: MapFn = None,
    out: Output = None,
    overwrite: Overwrite = False,
    keep_duplicates: KeepDuplicates = None,
    pairs: Pairs = None,
    max_rejects: MaxRejects = None,
    decontaminate: Decontaminate = None,
    chat_template: ChatTemplate = None,
    merge: Merge = False,
    shard: Shard = None,
    show: Show = 0,
    with_audit: WithAudit = True,
    report: Report = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Map, tokenize and pack preference data to Arrow on disk."""
    from rmcli.audit.page import report_file
    from rmcli.config.resolve import parse_source, resolve
    from rmcli.packs.manifest import files_of
    from rmcli.prepare.job import build_job
    from rmcli.prepare.run import folder_for, run
    from rmcli.prepare.show import report_account
    from rmcli.rows.files import is_url
    from rmcli.tokens.tokenizer import load_tokenizer

    if merge:
        others = (map_fn, keep_duplicates, chat_template, show, preset, config, set_, dry_run, pairs, max_rejects)
        if any((*others, source_, decontaminate, shard)):
            raise ConfigError(
                "--merge goes with folders, -o, --overwrite and --report alone: parts carry their configuration"
            )
        read = [*(source or ()), *(file for part in source or () for file in files_of(Path(part)))]
        _merge(source or [], out, overwrite, json, with_audit, report_file(report, overwrite, read))
        return
    limit = int(max_rejects) if max_rejects is not None and max_rejects.isdecimal() else max_rejects
    options = [
        option_layer(
            "data",
            sources=[*(source or ()), *map(parse_source, source_ or ())] or None,
            dataset_map_fn=map_fn,
            keep_duplicates=keep_duplicates,
            pairs=pairs,
            max_rejects=limit,
            decontaminate=[str(absolute_if_file(file)) for file in decontaminate or ()] or None,
            shard=shard,
        ),
        option_layer("model", chat_template=absolute_if_file(chat_template)),
    ]
    resolved = resolve(preset, config or (), set_ or (), options=options)
    job = build_job(resolved, None if out is None else Path(out))
    page = report_file(report, overwrite, [named.section.path for named in job.sources])
    target = out if out is not None and is_url(out) else str(job.folder)
    if dry_run:
        _show_plan(job, target, overwrite, json)
        return
    with folder_for(target, overwrite) as folder:
        reward = load_tokenizer(resolved.config.model)
        local = replace(job, folder=folder)
        manifest = run(local, overwrite, show, place=target, reward=reward)
        num_threads = resolved.config.data.num_proc
        audited = _audit_prepared(folder, target, resolved.config.model, with_audit, page, reward, num_threads)
    report_account(manifest)
    if json:
        output.answer_json({"folder": target, **manifest, **audited})
    else:
        output.answer(target)
    data = [] if out is None else ["--data", target]
    template = [] if chat_template is None else ["-s", f"model.chat_template={chat_template}"]
    say_next("train", *same_configuration(preset, config, set_), *template, *data)


def _show_plan(job: "Job", target: str, overwrite: bool, as_json: bool) -> None:
    """The configuration and what the run would meet at once; what would end it ends this, too, once that is shown."""
    from rmcli.prepare.dry_run import dry_run

    plan: dict[str, Any] = {"sources": [named.section.model_dump() for named in job.sources], "output": target}
    try:
        job, plan["first_rows"] = dry_run(job, target, overwrite)
    except RmcliError as error:
        show_config(job.resolved, {**plan, "error": error.message}, as_json)
        raise
    show_config(job.resolved, plan, as_json)


def _audit_prepared(
    folder: Path,
    place: str,
    model: "ModelSection",
    with_audit: bool,
    page: "OutputFile | None",
    reward: "RewardTokenizer | None" = None,
    num_threads: int = 1,
) -> dict[str, dict[str, Any]]:
    """The audit of what was just written, shown in brief; as the entry of the JSON answer.

    `place` is where the user will find the folder.
    """
    from rmcli.audit.page import write_page
    from rmcli.audit.run import run
    from rmcli.audit.screen import show

    if not with_audit and page is None:
        return {}
    figures = {**run(folder, model, reward, num_threads), "folder": place}
    show(figures, brief=True)
    if page is not None:
        write_page(figures, page)
        output.say(f"audit in {page.path}")
    return {"audit": figures}


def _merge(
    parts: list[str], out: str | None, overwrite: bool, as_json: bool, with_audit: bool, page: "OutputFile | None"
) -> None:
    from rmcli.config.presets import preset_names
    from rmcli.config.sections import ModelSection
    from rmcli.packs import remote
    from rmcli.prepare.run import folder_for, merge_parts
    from rmcli.prepare.show import report_account

    if not parts or out is None:
        raise ConfigError("--merge joins prepared folders into a new one", "rmcli prepare --merge DIR... -o DIR")
    folders = [remote.local(part) for part in parts]
    with folder_for(out, overwrite) as folder:
        manifest = merge_parts(folders, folder, overwrite)
        audited = {}
        if with_audit or page is not None:
            model = ModelSection(**manifest["config"]["model"])
            audited = _audit_prepared(folder, out, model, with_audit, page)
    report_account(manifest)
    if as_json:
        output.answer_json({"folder": out, **manifest, **audited})
    else:
        output.answer(out)
    preset = ["--preset", manifest["preset"]] if manifest["preset"] in preset_names() else []
    say_next("train", *preset, "--data", out)
