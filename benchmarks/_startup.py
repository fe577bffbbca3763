"""One start, up to a line on stdout, then out: `rmcli train` as far as its first step, or what any script needs.

    python benchmarks/_startup.py rmcli ARGUMENTS OF rmcli...
    python benchmarks/_startup.py bare MODEL

`rmcli` reads configuration and data, loads model and tokenizer, tests itself and plans; the first optimizer step is
where it ends. `bare` imports the same libraries and loads the same folder with from_pretrained.
"""

import os
import sys


def stop(*_: object) -> None:
    os.write(CHANNEL, b"started\n")
    os._exit(0)


def start_rmcli() -> None:
    from rmcli.cli.app import main
    from rmcli.train.loop import Trainer

    Trainer.run_step = stop  # type: ignore[assignment]
    main()


def start_bare(folder: str) -> None:
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import pydantic  # noqa: F401
    import rich  # noqa: F401
    import torch
    import typer  # noqa: F401
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, trust_remote_code=False
    )
    stop()


if __name__ == "__main__":
    CHANNEL = os.dup(1)
    os.dup2(2, 1)
    which = sys.argv.pop(1)
    if which == "rmcli":
        start_rmcli()
    else:
        start_bare(sys.argv[1])
