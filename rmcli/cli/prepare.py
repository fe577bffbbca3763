"""The command line: it parses, calls and prints. Heavy imports stay inside the functions."""

import atexit
import functools
import gc
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmcli import __version__, output
from rmcli.errors import ConfigError, RmcliError

if TYPE_CHECKING:
    from rmcli.config.layers import Layer, ModelSection, Resolved
    from rmcli.tokens.tokenizer import RewardTokenizer

app = typer.Typer(
    name="rmcli",
    help="Train, score and inspect reward models: packed, prefix-shared, exact.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
presets_app = typer.Typer(
    help="List the presets, or show one.", rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(presets_app, name="presets")

Preset = Annotated[str | None, typer.Option("-p", "--preset", metavar="NAME", help="Preset; see rmcli presets.")]
ConfigFiles = Annotated[
    list[Path] | None, typer.Option("-c", "--config", metavar="FILE", help="TOML file over the preset; repeatable.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="One key, e.g. train.lr=1e-5; repeatable."),
]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Show the configuration and the plan; do nothing.")]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write the audit as one HTML file with plots.")
]
Json = Annotated[bool, typer.Option("--json", help="The answer as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only the answer, notes and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail.")]


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """Errors a user can mend become `error:` and `hint:` lines and an exit code; Ctrl-C becomes 130."""

    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> None:
        output.set_verbosity(options.get("verbose", False) - options.get("quiet", False))
        try:
            command(*arguments, **options)
        except RmcliError as error:
            output.error(error.message, error.hint)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            output.error("interrupted", None)
            raise typer.Exit(130) from None

    return wrapper


def main() -> None:
    # torch and transformers make half a million objects that live to the end. Looking through them again and again
    # takes a second of every command, and once more at its end another.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' progress bars are for terminals
    app()


def _version(wanted: bool) -> None:
    if wanted:
        output.answer(f"rmcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    pass


def _option_layer(section: str, **values: Any) -> "Layer":
    """Keys set by a command's own options; those not given are left to the other layers."""
    from rmcli.config.layers import Layer

    return Layer("command line", {section: {key: value for key, value in values.items() if value is not None}})


def _show_config(resolved: "Resolved", plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.answer_json({"config": resolved.config.model_dump(), "origins": dict(resolved.origins), "plan": plan})
        return
    output.answer(resolved.toml(with_origins=True))
    output.answer("# plan")
    for key, value in plan.items():
        output.answer(f"# {key} = {value}")


@app.command("prepare")
@reports
def prepare_command(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Files, folders, URLs, Hub names, -; default: the map function's own.",
        ),
    ] = None,
    source_: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="KEY=VALUE,...",
            help="A source with its own settings: path=FILE,map_fn=F,weight=2,max_rows=9; repeatable.",
        ),
    ] = None,
    map_fn: Annotated[
        str | None,
        typer.Option(
            "--map-fn", metavar="F", help="A name (rmcli map-fns), auto, module:function or file.py:function."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--output", metavar="DIR|URL", help="Default: data/F-PRESET.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was prepared there.")] = False,
    keep_duplicates: Annotated[
        bool | None, typer.Option("--keep-duplicates", help="Keep exact duplicates of earlier rows.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="all|best_worst|adjacent", help="Which pairs of a K-way group.")
    ] = None,
    max_rejects: Annotated[
        str | None, typer.Option("--max-rejects", metavar="N|P%", help="Stop when more rows are rejected.")
    ] = None,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option("--decontaminate", metavar="FILE", help="Leave out rows that this evaluation file asks too."),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="FILE|NAME",
            help="Chat template in place of the tokenizer's: a file, chatml, llama3, plain.",
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join the prepared parts SOURCE... (shards i/n of one set) into -o DIR.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Every Nth row from the Ith on: one of N machines.")
    ] = None,
    show: Annotated[
        int, typer.Option("--show", metavar="N", min=0, max=20, help="Print the first N pairs by token.")
    ] = 0,
    with_audit: Annotated[bool, typer.Option("--audit/--no-audit", help="Audit what was prepared.")] = True,
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
    from rmcli.audit.page import check_plots
    from rmcli.config import layers as configs
    from rmcli.prepare import run as prepare
    from rmcli.rows.readers import is_url
    from rmcli.tokens.tokenizer import load_tokenizer

    if report is not None:
        check_plots()
    if merge:
        others = (map_fn, keep_duplicates, chat_template, show, preset, config, set_, dry_run, pairs, max_rejects)
        if any((*others, source_, decontaminate, shard)):
            raise ConfigError(
                "--merge goes with folders, -o, --overwrite and --report alone: parts carry their configuration"
            )
        _merge(source or [], out, overwrite, json, with_audit, report)
        return
    asked = [*(source or ()), *map(configs.parse_source, source_ or ())]
    limit = int(max_rejects) if max_rejects is not None and max_rejects.isdecimal() else max_rejects
    held_out = [str(_absolute_if_file(file)) for file in decontaminate or ()]
    options = [
        _option_layer(
            "data",
            sources=asked or None,
            dataset_map_fn=map_fn,
            keep_duplicates=keep_duplicates,
            pairs=pairs,
            max_rejects=limit,
            decontaminate=held_out or None,
            shard=shard,
        ),
        _option_layer("model", chat_template=_absolute_if_file(chat_template)),
    ]
    resolved = configs.resolve(preset, config or (), set_ or (), options=options)
    plan = prepare.plan(resolved, None if out is None else Path(out))
    target = out if out is not None and is_url(out) else str(plan.folder)
    if dry_run:
        shown = {"sources": [named.section.model_dump() for named in plan.sources], "output": target}
        _show_config(plan.resolved, shown, json)
        return
    with prepare.folder_for(target, overwrite) as folder:
        reward = load_tokenizer(resolved.config.model)
        local = replace(plan, folder=folder)
        manifest = prepare.run(local, overwrite, show, place=target, reward=reward)
        num_threads = resolved.config.data.num_proc
        audited = _audit_prepared(folder, target, resolved.config.model, with_audit, report, reward, num_threads)
    if json:
        output.answer_json({"folder": target, **manifest, **audited})
    else:
        output.answer(target)
    data = [] if out is None else ["--data", target]
    template = [] if chat_template is None else ["-s", f"model.chat_template={chat_template}"]
    _say_next("train", *_same_configuration(preset, config, set_), *template, *data)


def _audit_prepared(
    folder: Path,
    place: str,
    model: "ModelSection",
    with_audit: bool,
    report: Path | None,
    reward: "RewardTokenizer | None" = None,
    num_threads: int = 1,
) -> dict[str, dict[str, Any]]:
    """The audit of what was just written, shown in brief; as the entry of the JSON answer.

    `place` is where the user will find the folder.
    """
    from rmcli.audit import screen
    from rmcli.audit.page import write_page
    from rmcli.audit.run import run

    if not with_audit and report is None:
        return {}
    figures = {**run(folder, model, reward, num_threads), "folder": place}
    screen.show(figures, brief=True)
    if report is not None:
        write_page(figures, report)
        output.say(f"audit in {report}")
    return {"audit": figures}


def _merge(
    parts: list[str], out: str | None, overwrite: bool, as_json: bool, with_audit: bool, report: Path | None
) -> None:
    from rmcli.config import layers as configs
    from rmcli.packs import remote
    from rmcli.prepare import run as prepare

    if not parts or out is None:
        raise ConfigError("--merge joins prepared folders into a new one", "rmcli prepare --merge DIR... -o DIR")
    folders = [remote.local(part) for part in parts]
    with prepare.folder_for(out, overwrite) as folder:
        manifest = prepare.merge(folders, folder, overwrite)
        audited = {}
        if with_audit or report is not None:
            model = configs.ModelSection(**manifest["config"]["model"])
            audited = _audit_prepared(folder, out, model, with_audit, report)
    if as_json:
        output.answer_json({"folder": out, **manifest, **audited})
    else:
        output.answer(out)
    preset = ["--preset", manifest["preset"]] if manifest["preset"] in configs.preset_names() else []
    _say_next("train", *preset, "--data", out)


@app.command("audit")
@reports
def audit_command(
    place: Annotated[str, typer.Argument(metavar="DIR|URL", help="What rmcli prepare has written.")],
    report: Report = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Audit prepared data: lengths, duplicates, contradictions, leaks, shortcuts."""
    from rmcli.audit import screen
    from rmcli.audit.page import check_plots, write_page
    from rmcli.audit.run import run
    from rmcli.config import layers as configs
    from rmcli.packs import remote
    from rmcli.packs import writer as store

    if report is not None:
        check_plots()
    folder = remote.local(place)
    manifest = store.read_manifest(folder)
    own = configs.Layer(f"{place}/manifest.json", {"model": manifest["config"]["model"]}, explicit=False)
    resolved = configs.resolve(preset, config or (), set_ or (), base=own)
    if dry_run:
        _show_config(resolved, {"audit": place, "report": str(report or "none")}, json)
        return
    figures = run(folder, resolved.config.model, num_threads=resolved.config.data.num_proc)
    figures["folder"] = place
    if json:
        output.answer_json(figures)
    else:
        screen.show(figures, brief=False)
    if report is not None:
        write_page(figures, report)
        output.say(f"audit in {report}")
    known = manifest["preset"] in configs.preset_names()
    if known and configs.resolve(manifest["preset"]).config.model.model_dump() == manifest["config"]["model"]:
        _say_next("train", "--preset", manifest["preset"], "--data", place)
    else:
        output.say(f"next: rmcli train --data {shlex.quote(place)}, with the options that prepared it")


def _absolute_if_file(name: str | None) -> str | None:
    """A file as train, started elsewhere, can find it; a built-in name stays."""
    return str(Path(name).absolute()) if name is not None and Path(name).is_file() else name


def _same_configuration(preset: str | None, files: list[Path] | None, settings: list[str] | None) -> list[str]:
    """The options that give the next command this one's configuration."""
    options = [] if preset is None else ["--preset", preset]
    options += [part for file in files or () for part in ("-c", str(file))]
    return options + [part for setting in settings or () for part in ("-s", setting)]


def _say_next(*command: str) -> None:
    output.say(f"next: {shlex.join(['rmcli', *command])}")


@app.command("train")
@reports
def train_command(
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR|URL", help="Prepared data; default: the preset's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Default: runs/PRESET-N.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of a few steps, and where a step goes.")
    ] = False,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a reward model on prepared data."""
    from rmcli.config import layers as configs
    from rmcli.packs import remote
    from rmcli.train.job import build_job, describe
    from rmcli.train.loop import run

    resolved = configs.resolve(preset, config or (), set_ or ())
    folder = _prepared_data(resolved, dry_run) if data is None else remote.local(data)
    job = build_job(resolved, folder, out)
    if dry_run:
        _show_config(job.resolved, describe(job), json)
        return
    summary = run(job, profile)
    if json:
        output.answer_json(summary)
    else:
        output.answer(summary["model"])
    held_out = str(folder / "eval.jsonl") if "eval_pairs" in summary else "FILE"
    _say_next("score", summary["model"], held_out, "-o", "scores.jsonl")


def _prepared_data(resolved: "Resolved", dry_run: bool) -> Path:
    """The folder prepared for this preset; else the one source prepared for another preset, prepared again."""
    from rmcli.config import layers as configs
    from rmcli.prepare import run as prepare
    from rmcli.train.job import find_data

    found = find_data(resolved, Path("data"))
    if isinstance(found, Path):
        output.say(f"data: {found}")
        return found
    asked = {key: value for key, value in asdict(found).items() if f"data.{key}" not in resolved.explicit}
    asked |= {"sources": list(found.sources), "decontaminate": list(found.decontaminate)}
    layered = configs.relayer(resolved, configs.Layer("prepared for another preset", {"data": asked}))
    plan = prepare.plan(layered, None)
    names = ", ".join(source.path for source in found.sources)
    what = f"no data for preset {resolved.name} yet: {names} with {', '.join(plan.map_fns)}"
    if "-" in [source.path for source in found.sources]:
        raise RmcliError(f"{what} would be prepared for it, but stdin is gone", "prepare it again for this preset")
    if dry_run:
        map_fn = [] if found.dataset_map_fn is None else ["--map-fn", found.dataset_map_fn]
        parts = [part for source in found.sources for part in source.as_arguments()]
        command = ["rmcli", "prepare", *parts, *map_fn, "--preset", resolved.name]
        raise RmcliError(f"{what} would be prepared for it first", f"run: {shlex.join(command)}")
    output.warn(f"{what} is prepared for it first")
    prepare.run(plan)
    return plan.folder


@app.command("score")
@reports
def score_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model/ folder of a run.")],
    file: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help="JSON lines: {messages} or {prompt, chosen, rejected}.")
    ] = "-",
    out: Annotated[str, typer.Option("-o", "--output", metavar="FILE|-", help="Scores, one line per line.")] = "-",
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score conversations, or both sides of pairs."""
    from rmcli.config import layers as configs
    from rmcli.model import model_folder
    from rmcli.score import run as score

    model_folder.check(model)
    base, here = configs.trained_model_layers(model)
    resolved = configs.resolve(preset, config or (), set_ or (), base=base, options=[here])
    if dry_run:
        _show_config(resolved, {"model": str(model), "input": file, "output": out}, json)
        return
    summary = score.run(resolved.config, file, out)
    if json:
        output.answer_json(summary.as_dict(), to_stderr=out == "-")
    else:
        score.report(summary)
    if summary.errors:
        first = ", ".join(f"{count} {reason}" for reason, count in summary.errors.most_common())
        raise RmcliError(f"{summary.errors.total()} of {summary.lines} lines have no score: {first}")
    if out != "-":
        output.say(f"scores in {out}")


@app.command("map-fns")
@reports
def map_fns_command(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
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
    output.table(["map function", "columns", "default data set", "what it is"], rows, to_answer=True)
    _say_next("prepare", "SOURCE", "--map-fn", "NAME")


@app.command("inspect-token")
@reports
def inspect_token_command(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET|MODEL|TOKENIZER]", help="Preset, Hub id, folder or .gguf file."),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="All candidates and what is ruled out; reads the row of each.")
    ] = False,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", metavar="DATA", help="Count each in a file, folder, Hub name or prepared data."),
    ] = None,
    write_preset: Annotated[
        str | None, typer.Option("--write-preset", metavar="NAME", help="Write NAME.toml here, for -c NAME.toml.")
    ] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the vocabulary id that should be the reward token, with the evidence."""
    from rmcli.config import layers as configs
    from rmcli.inspect_token import run as inspect_token

    if target is not None and preset is None and target in configs.preset_names():
        preset, target = target, None
    if target is None:
        resolved = configs.resolve(preset, config or (), set_ or ())
    elif (Path(target) / "rmcli.toml").is_file():
        base, here = configs.trained_model_layers(Path(target))
        resolved = configs.resolve(preset, config or (), set_ or (), base=base, options=[here])
    else:
        own = configs.Layer("MODEL", {"model": {"pretrained_model_name_or_path": target}})
        lowest = own if preset is None else None
        resolved = configs.resolve(preset, config or (), set_ or (), base=lowest, options=[own])
    if dry_run:
        _show_config(resolved, {"inspect": resolved.config.model.pretrained_model_name_or_path}, json)
        return
    written = None if write_preset is None else inspect_token.preset_path(write_preset)
    report = inspect_token.run(resolved.config.model, corpus, show_all)
    if written is not None:
        inspect_token.write_preset(report, resolved.config.model, written)
    if json:
        output.answer_json(report.as_dict() | ({} if written is None else {"preset": str(written)}))
        return
    inspect_token.show(report, show_all)
    if written is not None:
        _say_next("prepare", "--map-fn", "F", "-c", str(written))
    elif target is None:
        _say_next("prepare", "--map-fn", "F", "--preset", resolved.name)
    else:
        output.say(
            "next: put these lines under [model] of a config file and give it with -c (or --write-preset NAME)"
        )


@presets_app.callback(invoke_without_command=True)
@reports
def presets_command(
    context: typer.Context,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the presets; with a preset, file or setting, show that configuration. Nothing is ever written."""
    if context.invoked_subcommand is not None:
        return
    from rmcli.config import layers as configs

    if preset or config or set_:
        _show_preset(configs.resolve(preset, config or (), set_ or ()), json)
        return
    every = [(configs.resolve(name), configs.read_about(name)) for name in configs.preset_names()]
    if json:
        output.answer_json({r.name: {**r.config.model_dump(), "about": about.model_dump()} for r, about in every})
        return
    rows = [
        [
            r.name + (" (default)" if r.name == configs.DEFAULT_PRESET else ""),
            r.config.model.pretrained_model_name_or_path,
            about.embedding_rows,
            r.config.model.reward_token,
            str(r.config.model.reward_token_id),
            about.pad_token or "none",
            f"{r.config.train.lr:g}",
            about.verified,
        ]
        for r, about in every
    ]
    columns = ["preset", "backbone", "embedding rows", "reward token", "id", "pad", "lr", "verified"]
    output.table(columns, rows, to_answer=True)
    output.say("next: rmcli presets show NAME")


@presets_app.command("show")
@reports
def presets_show_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the default preset.")] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show a preset: facts on its backbone, then each key with its origin."""
    from rmcli.config import layers as configs

    _show_preset(configs.resolve(name or preset, config or (), set_ or ()), json)


def _show_preset(resolved: "Resolved", as_json: bool) -> None:
    from rmcli.config.layers import about_backbone

    backbone = about_backbone(resolved)
    about = {} if backbone is None else backbone.model_dump()
    if as_json:
        output.answer_json({**resolved.config.model_dump(), **({"about": about} if about else {})})
    else:
        for key, value in about.items():
            output.answer(f"# {key}: {'none' if value is None else value}")
        output.answer(resolved.toml(with_origins=True).rstrip())
    _say_next("prepare", "--map-fn", "F", "--preset", resolved.name)


if __name__ == "__main__":
    sys.exit(main())
