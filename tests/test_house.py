"""The layout, what an import costs, generated pages, and the packages users install."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

from support.places import REPOSITORY

PACKAGE = REPOSITORY / "rmcli"
# From top to bottom. A folder imports only folders below its own; a command's folder imports no other command's.
COMMANDS = {"prepare", "audit", "train", "score", "evaluate", "serve", "inspect_token", "doctor"}
FLOORS = [
    {"__main__"},
    {"cli"},
    COMMANDS,
    {"lines"},
    {"ship"},
    {"report"},
    {"runs", "scorer"},
    {"model"},
    {"packs"},
    {"tokens", "rows"},
    {"backbones"},
    {"config"},
    {"parallel"},
    {"output_files"},
    {"plugins", "output"},
    {"metrics"},
    {"records"},
    {"errors", "threads", "installed", "logs", "tables"},
]


def room_of(module: str) -> str:
    """`rmcli.rows.map_fns.known` -> rows."""
    return module.split(".")[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """The modules of rmcli that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rmcli":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "rmcli"}
    return found - {"rmcli"}  # its version


def test_a_folder_imports_only_folders_below_it():
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert {room_of(module) for module in MODULES if module != "rmcli"} == floor_of.keys()
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        if module != "rmcli"  # whose names for Python lead to the top
        for other in imports_of(module)
        if room_of(module) != room_of(other) and floor_of[room_of(other)] <= floor_of[room_of(module)]
    ]
    assert wrong == []


def test_files_import_one_way():
    """No circle, whether the import stands at the top of a file or inside a function."""
    TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()  # raises CycleError


def test_what_begins_with_an_underscore_stays_in_its_file():
    crossed = []
    for module, path in MODULES.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and "rmcli" in (node.module or "")]
        names = {alias.name for node in imports for alias in node.names}
        modules = {
            alias.asname or alias.name
            for node in imports
            for alias in node.names
            if f"{node.module}.{alias.name}" in MODULES
        }
        reached = {
            node.attr
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        }
        crossed += [f"{module}: {name}" for name in names | reached if name.startswith("_") and name[1] != "_"]
    assert crossed == []


def test_a_folder_says_in_its_docstring_what_comes_in_and_goes_out_and_holds_nothing_else():
    for path in PACKAGE.rglob("__init__.py"):
        docstring, *others = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), path
        if path.parent != PACKAGE:  # which holds the version and the names for Python
            assert others == [], path
    assert all((path.parent / "__init__.py").is_file() for path in PACKAGE.rglob("*.py"))


def test_files_can_be_taken_in_at_a_sight():
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}
    assert median(lengths.values()) < 130


ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"


# Their length is that of their options.
LONG = {"evaluate_command", "score_command", "prepare_command"}


def test_functions_can_be_read_at_one_sight():
    lengths = [
        (node.name, node.end_lineno - node.lineno + 1)
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    assert {name for name, lines in lengths if lines > 64} == LONG


def test_a_command_imports_no_command():
    """What two of them share lies below them."""
    commands = {
        module
        for module, path in MODULES.items()
        if module.startswith("rmcli.cli.") and re.search(r"^def \w+_command\(", path.read_text(), re.MULTILINE)
    }
    assert len(commands) > 10
    assert [f"{module} imports {other}" for module in commands for other in imports_of(module) & commands] == []


def test_the_tree_of_the_architecture_page_is_the_package():
    """Every folder with each of its files, and no other."""
    tree = ARCHITECTURE.read_text().split("```\nrmcli/\n")[1].split("```")[0]
    *folders, ground = tree.splitlines()
    shown = {}
    for line in folders:
        folder, files = line.split(":")[0].split(maxsplit=1)
        shown[folder.rstrip("/")] = sorted(files.replace("|", " ").split())
    actual: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py" and path.parent != PACKAGE:
            actual.setdefault(str(path.parent.relative_to(PACKAGE)), []).append(path.stem)
    assert shown == {folder: sorted(files) for folder, files in actual.items()}
    floors = [number for folder in shown for number, rooms in enumerate(FLOORS) if folder.split("/")[0] in rooms]
    assert floors[:-1] == sorted(floors[:-1])  # from top to bottom; metrics, the last, stands beside the ground
    assert set(ground.split(":")[0].split()) == {path.name for path in PACKAGE.glob("[a-z]*.py")}


def test_every_name_of_the_architecture_page_is_where_its_link_leads():
    links = re.findall(r"\[`(\w+)(\.py)?`\]\(\.\./((?:rmcli|benchmarks)/[\w/]+\.py)\)", ARCHITECTURE.read_text())
    assert len(links) > 40
    for name, ending, file in links:
        path = REPOSITORY / file
        defined = re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", path.read_text(), re.MULTILINE)
        assert path.stem == name if ending else defined, (name, file)
    assert len(re.findall(r"^- \*\*", ARCHITECTURE.read_text().split("## Words")[1].split("##")[0], re.M)) <= 15


def test_tests_stand_in_the_rooms_they_are_about():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {"security"}  # attacks, on all of them
    tests = REPOSITORY / "tests"
    files = {path.relative_to(tests) for path in tests.rglob("test_*.py")}
    assert {file.parts[0] for file in files if len(file.parts) > 1} <= rooms
    whole = {str(file) for file in files if len(file.parts) == 1}
    assert whole == {f"test_{name}.py" for name in ("benchmarks", "cuda", "house", "real", "written_before")}


def test_only_output_writes_to_a_stream():
    for path in PACKAGE.rglob("*.py"):
        if path.stem != "output":
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if getattr(call.func, "id", "") == "print"], path


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "pyarrow", "accelerate", "numpy", "pydantic", "rich"}
    code = "import sys, rmcli.cli.app; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in loaded
    assert heavy & set(loaded) == set()


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, rmcli; print(*sorted({name.split('.')[0] for name in sys.modules})); print(rmcli.__all__)"
    loaded, names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"torch", "transformers", "numpy", "pydantic", "typer"} & set(loaded.split()) == set()
    assert "RewardModel" in names


def test_help_names_every_command_and_option(cli):
    root = cli("--help").stdout
    names = "prepare audit train score report export verify serve map-fns inspect-token presets config doctor"
    for command in names.split():
        assert command in root
    names = ("prepare", "audit", "train", "score", "inspect-token", "presets", "presets show")
    for command in map(str.split, names):
        text = cli(*command, "--help").stdout
        for option in ("--preset", "--config", "--set", "--dry-run", "--json", "--quiet", "--verbose"):
            assert option in text, (command, option)


def test_wrong_usage_is_exit_code_2(cli):
    assert cli("prepare", "--no-such-option").code == 2
    assert cli("no-such-command").code == 2
    assert cli("score").code == 2


def test_version(cli):
    from rmcli import __version__

    assert cli("--version").stdout == f"rmcli {__version__}\n"


def test_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGES.keys() == {"cli.md", "config.md", "backbones.md"}
    for name, page in generate.PAGES.items():
        assert (REPOSITORY / "docs" / name).read_text() == page(), f"docs/{name} is old: make docs"


def test_every_reject_reason_is_documented():
    from rmcli.rows.files import PROBLEMS
    from rmcli.tokens import encode

    page = (REPOSITORY / "docs" / "format.md").read_text()
    said = {*encode.REASONS, *PROBLEMS}
    for path in PACKAGE.rglob("*.py"):
        said |= set(re.findall(r'(?:Skip|LeftOut)\(f?"([a-z_]+)[" ]', path.read_text()))
    assert {"bad_csv", "longer_than_pack", "overlong", "missing_column", "unread_column", "unread_key"} <= said
    for reason in said:
        assert re.search(rf"`{reason}( [A-Z.]+)?`", page), reason


def test_the_tiny_preset_is_what_its_script_makes(tmp_path):
    script = REPOSITORY / "examples" / "make_tiny.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        shipped = REPOSITORY / "presets" / "tiny" / name
        assert json.loads((tmp_path / name).read_text()) == json.loads(shipped.read_text()), name


def test_the_readme_shows_the_two_commands():
    text = (REPOSITORY / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A wheel and an sdist of this tree, built without network."""
    folder = tmp_path_factory.mktemp("dist")
    for target in ("wheel", "sdist"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
        )
    return folder


def preset_files() -> set[str]:
    return {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "presets").rglob("*") if p.is_file()}


def test_an_installed_wheel_finds_its_presets(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        assert {f"rmcli/{name}" for name in preset_files()} <= set(archive.namelist())
        assert {"rmcli/audit/page.html", "rmcli/report/base.html", "rmcli/py.typed"} <= set(archive.namelist())
    # Run from the unpacked wheel, which is what an installed one is.
    code = "import rmcli.cli.app; print(rmcli.__file__); rmcli.cli.app.app(['presets'], standalone_mode=False)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout.splitlines()[0]
    for name in ("llama3-8b", "tiny"):
        assert name in result.stdout


def test_the_sdist_holds_what_a_wheel_is_built_from(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert preset_files() | {"pyproject.toml", "LICENSE", "README.md", "rmcli/cli/app.py"} <= names


def test_constraints_lie_within_the_ranges_of_the_project():
    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    assert pins["torch"] == "2.13.0"
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text
