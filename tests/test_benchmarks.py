"""The benchmarks' own reckoning, that contenders get the same pairs, and the page their figures go to. No timing."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rmcli.parallel.mesh import MeshShape
from support.places import REPOSITORY, write_lines

sys.path.append(str(REPOSITORY / "benchmarks"))

import data_parallel
import figures
import gaps
import loop
import material
import mfu
import on_gpu
import scaling
import train

BENCHMARKS = REPOSITORY / "benchmarks"

SETTINGS = ("train.pairs_per_step=4", "train.max_steps=5", "train.max_epochs=9", "data.max_packed_length=300")


def performance_page():
    spec = importlib.util.spec_from_file_location("performance_page", REPOSITORY / "docs" / "performance_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(seconds: float, loss: float = figures.LN_2, **values: object) -> dict[str, object]:
    fixed = {"step": 1, "real_tokens": 100, "computed_tokens": 60, "peak_rss": figures.GIB, "peak_device": 0}
    return {**fixed, "seconds": seconds, "loss": loss, "row_ids": [1, 2], **values}


def without_ids(*reports: dict[str, object]) -> list[dict[str, object]]:
    return [{key: value for key, value in one.items() if key != "row_ids"} for one in reports]


def test_the_page_says_what_the_newest_figures_say():
    page = performance_page()
    assert (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8") == page.page(), (
        "run: python docs/performance_page.py"
    )


def test_the_page_says_what_is_not_measured(tmp_path):
    page = performance_page()
    assert page.page(tmp_path).count("Not yet measured.") == 9
    for day, seconds in (("2026-01-02", 2.0), ("2026-01-10", 3.0)):
        result = {"command": "python x", "machine": {"processor": "P", "cores": 2}, "model": "m.gguf", "layers": 8}
        result |= {"starts": 3, "seconds": {"rmcli": seconds, "bare": 1.0}, "rmcli_over_bare": seconds}
        (tmp_path / f"startup-{day}.json").write_text(json.dumps(result))
    text = page.page(tmp_path)
    assert text.count("Not yet measured.") == 8
    assert "2026-01-10: P, 2 cores ([figures](../benchmarks/results/startup-2026-01-10.json))." in text
    assert "| **rmcli over bare** | **3.00x** |" in text


def test_the_page_of_prepares_speed_says_what_its_figures_say():
    page = (REPOSITORY / "docs" / "prepare-speed.md").read_text(encoding="utf-8")
    names = re.findall(r"results/(prepare-threads-[0-9-]+\.json)", page)
    assert len(names) == 1
    found = json.loads((BENCHMARKS / "results" / names[0]).read_text(encoding="utf-8"))
    ways = ("xtuner", "bare", "bare, first thread", "transformers")
    for way in ways:
        llama3, smollm2 = (f"{found[name]['seconds'][way]['cpu']:.3f}" for name in ("llama3", "smollm2"))
        assert f"| {llama3} | {smollm2} |" in page
    assert f"| {found['llama3']['seconds']['gigatoken']['cpu']:.3f} | refused |" in page
    for what, digits in (("over XTuner's way", ".1f"), ("of the bare tokenizer's time", ".2f")):
        key, unit = f"{what}, transformers (cpu)", "x" * (digits == ".1f")
        shown = [f"**{found[name]['ratios'][key]:{digits}}{unit}**" for name in ("llama3", "smollm2")]
        assert f"| **{what}, transformers** | {' | '.join(shown)} |" in page
    for name, label in (("llama3", "Llama-3"), ("smollm2", "SmolLM2")):
        rounds = found[name]["rounds"]
        taken = zip(rounds["transformers"], rounds["transformers, num_proc 2"], strict=True)
        each = ", ".join(f"{one['wall'] / two['wall']:.2f}" for one, two in taken)
        assert f"| encoding, {label} | {each} |" in page
    rounds = found["whole command"]["rounds"]
    each = ", ".join(f"{one / two:.2f}" for one, two in zip(rounds["1"], rounds["2"], strict=True))
    assert f"| the whole command, 181,200 rows, SmolLM2 | {each} | 122 and 67 |" in page


def test_mfu_is_the_median_of_the_lines_after_the_warm_up():
    def line(mfu: float, pairs: int, pairs_per_s: float) -> dict[str, float]:
        rest = {"effective_mfu": 2 * mfu, "tokens_per_s": 9.0, "tokens": 100 * pairs, "loss": mfu}
        return {"mfu": mfu, "pairs": pairs, "pairs_per_s": pairs_per_s, **rest}

    lines = [line(0.01, 8, 1), line(0.02, 8, 1), line(0.4, 16, 4), line(0.5, 16, 2), line(0.3, 20, 10)]
    found = mfu.summarize({"lines": lines, "peak_device_gib": 7.0, "versions": {}, "device_name": "GPU"})
    assert (found["mfu"], found["effective_mfu"], found["peak_device_gib"]) == (0.4, 0.8, 7.0)
    assert found["seconds_per_step"] == 2.0  # of 4, 8 and 2 seconds for two steps each
    assert found["pairs_per_step"] == pytest.approx(52 / 3 / 2)
    assert [one["mfu"] for one in found["each"]] == [0.4, 0.5, 0.3]
    assert [mfu.title(way) for way in (found, {"peak": "bf16"}, {"peak": "fp8"})] == [
        *("MFU", "MFU", "MFU of the FP8 peak")
    ]
    result = {"command": "python x", "machine": {"processor": "P", "cores": 2}, "max_packed_length": 8, "packs": 3}
    result |= {"material": {"parameters": 1e6, "tokens_per_pair": 9.0, "sharing": 1.5}}
    result["ways"] = [{"settings": "a=1", **found}, {"settings": "b=2", "error": "Error: no"}]
    result["ways"].append({"settings": "c=3", **found, "peak": "fp8"})
    section = performance_page().utilization("mfu-x-2026-01-02.json", result)
    assert "| a=1 | **40.0%** | 40.0%, 50.0%, 30.0% | 80.0% | 4.0 | 9 | 2.00 | 9 | 7.0 |" in section
    assert "| b=2 | not run: Error: no | " in section
    assert "| c=3 | **40.0%** of FP8's peak | " in section


def test_a_comparison_with_none_at_once_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--at-once", "0"])
    assert "--at-once must be 1 at least" in capsys.readouterr().err


def test_the_scaling_page_has_the_tables_of_its_script():
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert scaling.table() in page
    assert scaling.sharing_table() in page


def test_ratios_are_taken_step_by_step_after_the_warm_up_and_within_a_round():
    first = {
        "rmcli": [report(9), report(1), report(2), report(4)],
        "trl-16": [report(1), report(4), report(8), report(8, peak_rss=4 * figures.GIB)],
    }
    second = {"rmcli": [report(9), report(10), report(20), report(40)], "trl-1": [report(1)] + [report(30)] * 3}
    table = figures.summarize([first, second], "rmcli", warmup=1, pairs_per_step=16)
    assert table["trl-16"]["rmcli_is_faster"] == 4  # of 4, 4 and 2
    assert table["trl-16"]["rmcli_is_faster_in_all"] == pytest.approx(20 / 7)
    assert table["trl-16"]["rmcli_peak_share"] == 0.25
    assert table["trl-1"]["rmcli_is_faster"] == 1.5  # of 3, 1.5 and 0.75
    assert table["rmcli"]["seconds_per_step"] == 7  # of 1, 2, 4, 10, 20 and 40: both rounds
    assert table["trl-16"]["pairs_per_s"] == 2
    assert figures.best_of(table, "trl") == "trl-16"
    assert figures.best_of(table, "verl") is None


def test_a_wrong_first_loss_other_pairs_and_other_losses_are_noticed():
    good = {"rmcli": [report(1), report(1, 0.6)], "trl-1": without_ids(report(1, real_tokens=96), report(1, 0.5))}
    assert figures.check_steps([good], "rmcli", 1e-5) == {"trl-1": pytest.approx(0.1)}
    for name, reports, problem in (
        ("trl-1", without_ids(report(1, 0.5), report(1, 0.6)), "first loss"),
        ("trl-1", without_ids(report(1), report(1, 0.6, real_tokens=91)), "different pairs in step 1"),
        ("rmcli-padded-4", [report(1), report(1, 0.6, row_ids=[1, 3])], "different pairs in step 1"),
        ("rmcli-padded-4", [report(1), report(1, 0.6001)], "differ by"),
    ):
        with pytest.raises(ValueError, match=problem):
            figures.check_steps([{"rmcli": good["rmcli"], name: reports}], "rmcli", 1e-5)


def test_rmcli_is_in_every_round():
    names = ["rmcli", "rmcli-padded-16", "trl-16", "trl-4", "trl-1"]
    assert train.split_rounds(names, 3) == [["rmcli", "rmcli-padded-16", "trl-16"], ["rmcli", "trl-4", "trl-1"]]
    assert train.split_rounds(["rmcli"], 3) == [["rmcli"]]
    assert train.split_rounds(names, 1) == [names]
    arguments = train.parse(["--against", "trl", "--trl-python", "python", "--pairs-per-step", "8"])
    expected = ["rmcli", "rmcli-padded-8", "rmcli-padded-4", "trl-8", "trl-4", "trl-2", "trl-1", "trl-8-liger"]
    assert train.default_contenders(arguments) == expected


def test_a_written_command_names_no_place_on_this_machine():
    typed = [
        "--trl-python",
        "/opt/env/bin/python",
        "--data=/srv/hh.jsonl.gz",
        "--model",
        "/m/x.gguf",
        "-s",
        "a.b=/c/d",
    ]
    shown = figures.shown_command("train.py", typed)
    assert shown == ("python benchmarks/train.py --trl-python TRL_PYTHON --data=hh.jsonl.gz --model x.gguf -s a.b=d")


def test_the_shapes_are_those_of_the_presets_backbones():
    rows = {name: json.dumps(shape["vocab_size"]) for name, shape in material.SHAPES.items()}
    for name, preset in (("internlm2-1.8b", "internlm2-1_8b"), ("llama3-8b", "llama3-8b")):
        assert f"embedding_rows = {rows[name]}" in (REPOSITORY / "presets" / f"{preset}.toml").read_text()
    assert tuple(material.SHAPES) == performance_page().SHAPES


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Material of the tiny preset: twelve pairs of different lengths, packs of two or three."""
    folder = tmp_path_factory.mktemp("material")
    rows = [{"prompt": f"{n}?", "chosen": "yes " * (n + 1), "rejected": "no " * (2 * n + 1)} for n in range(12)]
    request = material.Request(
        folder=str(folder),
        model=str(REPOSITORY / "presets" / "tiny"),
        layers=1,
        shape=None,
        preset="tiny",
        data=str(write_lines(folder / "rows.jsonl", rows)),
        map_fn="canonical",
        settings=(f"model.pretrained_model_name_or_path={folder / 'model'}", "model.random_weights=false", *SETTINGS),
    )
    answer = material.make(request)
    assert (answer["pairs"], answer["steps"]) == (12, 5)
    return folder


def test_every_contender_gets_the_pairs_of_rmclis_own_plan(made):
    from rmcli.config.resolve import resolve
    from rmcli.train.job import build_job
    from rmcli.train.plan import plan

    pairs = [json.loads(line) for line in (made / "pairs.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (made / "steps.jsonl").read_text().splitlines()]
    model = (f"model.pretrained_model_name_or_path={made / 'model'}", "model.random_weights=false")
    for padded in ((), ("model.use_varlen_attn=false", "train.batch_size=2")):
        job = build_job(resolve("tiny", settings=[*model, *SETTINGS, *padded]), made / "data", made / "run")
        planned = []
        for step in plan(job.sizes, job.config.train, job.batch_choice.kind, job.config.data.max_packed_length):
            parts = [part for forward in step.forwards[0] for part in forward]
            planned.append([
                pairs[group.row_id]
                for part in parts
                for group in job.train_split.groups(part.pack, part.start, part.stop)
            ])  # fmt: skip
        assert planned == steps
    assert [len(step) for step in steps] == [4] * 5
    assert pairs[3]["chosen"] == [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "yes " * 4}]


def test_the_model_is_cut_to_its_first_layers(made):
    config = json.loads((made / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert (made / "model" / "model.safetensors").is_file()


def test_a_crashed_worker_is_an_error_in_one_line(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("from _gate import GATE\nprint('noise')\nGATE.ready(threads=1)\nraise OSError('gone\\nmore')\n")
    environment = {"PYTHONPATH": str(BENCHMARKS)}
    worker = train.Worker("x", [sys.executable, str(script)], environment, tmp_path / "log")
    assert worker.facts == {"threads": 1}
    with pytest.raises(train.Crashed, match=r"^OSError: gone$"):
        worker.step()
    assert "noise" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_packed_and_padded_take_the_same_steps(made, tmp_path):
    command = ["train.py", "--model", REPOSITORY / "presets" / "tiny", "--layers", "1", "--preset", "tiny"]
    command += ["--data", made / "rows.jsonl", "--map-fn", "canonical", "--pairs-per-step", "4", "--steps", "3"]
    command += ["--warmup", "1", "--contenders", "rmcli,rmcli-padded-2", "--output", tmp_path / "figures.json"]
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=BENCHMARKS)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (
        found["contenders"]["rmcli"]["real_tokens_per_step"]
        > found["contenders"]["rmcli"]["computed_tokens_per_step"]
    )
    assert found["largest_loss_difference_to_rmcli"]["rmcli-padded-2"] < 1e-5
    losses = found["rounds"][0]["rmcli"]["loss"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(set(losses)) == 4


def test_the_loops_habits_change_no_loss(made, tmp_path, monkeypatch):
    command = ["loop.py", "--model", REPOSITORY / "presets" / "tiny", "--layers", "1", "--preset", "tiny"]
    command += ["--data", made / "rows.jsonl", "--map-fn", "canonical", "--pairs-per-step", "4", "--steps", "3"]
    command += ["--warmup", "1", "--rounds", "1", "--output", tmp_path / "figures.json"]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    monkeypatch.setattr(material, "make_apart", material.make)  # no figure of memory is taken here
    loop.main()
    found = json.loads((tmp_path / "figures.json").read_text())
    apart = found["largest_loss_difference"]
    assert list(apart) == ["fused", "ahead", "no_gc", "no_sync"]
    assert apart["ahead"] == apart["no_gc"] == apart["no_sync"] == 0
    assert 0 < found["seconds"]["rmcli"] < 60
    section = performance_page().habits("loop-2026-01-02.json", found)
    assert f"| no_gc | {found['seconds']['no_gc']:.2f} |" in section


# --- the kit for an accelerator ---


def event(name: str, start: float, duration: float, cat: str = "kernel") -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration}


def test_time_in_no_kernel_is_what_the_union_of_all_kernels_leaves():
    trace = [
        event("ProfilerStep#3", 0, 500, "user_annotation"),
        event("ProfilerStep#4", 500, 500, "user_annotation"),
        event("gemm", 100, 100),
        event("copy", 150, 20, "gpu_memcpy"),  # inside
        event("norm", 180, 60),  # overlaps: busy to 240
        event("adam", 243, 57),  # 3 us later
        event("gemm", 900, 100),  # 600 us later
        event("aten::item", 400, 400, "cpu_op"),
        event("cudaStreamSynchronize", 500, 200, "cuda_runtime"),
    ]
    found = gaps.figures_of(trace)
    assert (found["steps"], found["read_by"]) == (2, "kernels")
    assert found["ms_per_step"] == 0.45
    assert found["idle_ms_per_step"] == pytest.approx(0.3015)
    assert found["busy_ms_per_step"] == pytest.approx(0.45 - 0.3015)
    by_length = {"below 5 us": 0.0015, "5 to 50 us": 0.0, "50 to 500 us": 0.0, "500 us on": 0.3}
    assert found["idle_ms_per_step_by_length"] == pytest.approx(by_length)
    assert found["longest"][0] == {"ms": 0.6, "after": "adam", "before": "gemm", "host": "cudaStreamSynchronize"}
    assert found["longest"][1]["host"] is None


def test_a_trace_without_kernels_is_read_by_its_operators_and_says_so():
    found = gaps.figures_of([event("aten::mm", 0, 10, "cpu_op"), event("aten::add", 30, 10, "cpu_op")])
    assert (found["read_by"], found["idle_share"]) == ("operators of a CPU", 0.5)


def test_clocks_and_power_are_summed_up_and_what_is_no_number_is_left_out():
    lines = ["1980, 690.5, 61", "1500, 702.0, 63", "1755, [N/A], 62", "16"]
    found = on_gpu.summarize_samples(lines)
    assert found["clocks.sm"] == {"min": 16, "median": 1627.5, "max": 1980}
    assert found["power.draw"] == {"min": 690.5, "median": 696.25, "max": 702.0}
    assert on_gpu.summarize_samples([]) == {}


def test_every_test_outcome_is_kept_of_a_run_that_was_cut_too():
    printed = (
        "tests/test_cuda.py::test_a[x-1] PASSED [ 10%]\ntests/test_cuda.py::test_b SKIPPED (no flash) [ 20%]\ntests/t"
    )
    found = on_gpu.test_outcomes(printed)
    assert found == {"tests/test_cuda.py::test_a[x-1]": "PASSED", "tests/test_cuda.py::test_b": "SKIPPED"}
    line = {"job": "cuda-tests", "outcome": "failed with 1", "tests": found}
    assert on_gpu.headline(line) == "1 passed, 1 skipped"
    assert on_gpu.is_finished(line)
    assert not on_gpu.is_finished({**line, "outcome": "cut"})
    assert not on_gpu.is_finished({**line, "tests": {}})


PRINTS = 'import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(\'{"pairs": {"rmcli_is_faster": {"p": 2.0}}}\')'


@pytest.fixture
def own_jobs(monkeypatch):
    """Three jobs: one that works, one that fails, one that takes longer than there is."""
    jobs = [
        on_gpu.Job("works", 1, ("-c", PRINTS, "{output}")),
        on_gpu.Job("fails", 1, ("-c", "raise SystemExit('what went wrong')")),
        on_gpu.Job("hangs", 1, ("-c", "import time; print('began', flush=True); time.sleep(60)")),
        on_gpu.Job("large", 1000, ("-c", "raise SystemExit('never run')")),
    ]
    monkeypatch.setattr(on_gpu, "jobs_of", lambda *_: jobs)
    monkeypatch.setattr(on_gpu, "SPARE_SECONDS", 0)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["on_gpu.py", *arguments])
        on_gpu.main()

    return run


def test_each_job_is_on_disk_when_it_ends_and_what_is_finished_is_not_run_again(own_jobs, tmp_path, capsys):
    own_jobs("--minutes", "0.1", "--out", str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "on_gpu.jsonl").read_text().splitlines()]
    outcomes = {line["job"]: (line["outcome"], on_gpu.headline(line)) for line in lines}
    assert outcomes == {
        "works": ("done", "2.00x p"),
        "fails": ("failed with 1", "what went wrong"),
        "hangs": ("cut", "began"),
    }
    shown = capsys.readouterr().out
    assert re.search(r"^large +left: no time$", shown, re.MULTILINE)
    with (tmp_path / "on_gpu.jsonl").open("a") as file:
        file.write('{"job": "half a li')
    own_jobs("--minutes", "0.05", "--out", str(tmp_path / "again"), "--earlier", str(tmp_path / "on_gpu.jsonl"))
    seen = capsys.readouterr()
    assert "works: finished earlier" in seen.err
    assert "half a line is left out" in seen.err
    again = [json.loads(line)["job"] for line in (tmp_path / "again" / "on_gpu.jsonl").read_text().splitlines()]
    assert "works" not in again
    assert "fails" in again
    own_jobs("--minutes", "1", "--out", str(tmp_path), "--only", "works")
    assert (tmp_path / "on_gpu.jsonl").read_text().count('"job": "works"') == 2


@pytest.mark.slow
def test_every_job_of_the_kit_runs_on_a_cpu_in_small(tmp_path):
    """What breaks in a script, a name or an option breaks here and not in an accelerator's minutes."""
    command = [sys.executable, BENCHMARKS / "on_gpu.py", "--tiny", "--minutes", "10", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "on_gpu.jsonl").read_text().splitlines()]
    assert "left: no time" not in done.stdout
    assert [line["job"].split("-")[0].split()[0] for line in lines] == [
        *("cuda", "gaps", "mfu", "mfu", "lever", "lever", "against", "mfu", "mfu", "fp8", "score")
    ]
    assert {line["job"]: line["last_lines"] for line in lines if "last_lines" in line} == {}
    headlines = {line["job"]: on_gpu.headline(line) for line in lines}
    assert headlines.pop("cuda-tests") == "no test ran"  # without CUDA they are skipped as a whole
    without = {
        name: headline for name, headline in headlines.items() if not headline or headline.startswith("not run")
    }
    # They reach the command, which says what they need.
    refused = "not run: rmcli.errors.ConfigError: "
    needs = {name.rpartition(" ")[2]: headline.removeprefix(refused)[:32] for name, headline in without.items()}
    assert needs == {
        "model.attention=fa3": "model.attention = 'fa3' runs on ",
        "train.fp8=rowwise": "train.fp8 = 'rowwise' is for CUD",
    }


@pytest.mark.slow
def test_processes_send_what_the_formula_says():
    for shape in (MeshShape(1, 2), MeshShape(2, 2)):
        found = data_parallel.measure(shape, 3)
        for kind, (times, num_bytes) in data_parallel.by_formula(shape, 3, found["weights"]).items():
            assert found["times"][kind] == times
            assert found["bytes"][kind] == pytest.approx(num_bytes, rel=1e-3)  # of uneven parts the largest is sent
