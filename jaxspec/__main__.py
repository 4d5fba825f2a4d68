"""`python -m jaxspec` is the `jaxspec` command."""

from jaxspec.cli import command

if __name__ == "__main__":
    command()
