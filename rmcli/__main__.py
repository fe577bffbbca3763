"""`python -m rmcli`, also the module that torchrun and accelerate launch."""

from rmcli.cli.app import main

if __name__ == "__main__":
    main()
