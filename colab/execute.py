"""Runs the notebooks of this folder, each in a fresh kernel.

`python colab/execute.py [NAME ...] [--write] [--out DIR] [--jobs N]`. The environment
variable `JAXSPEC_SMALL=1` selects small settings. A notebook runs in an empty temporary
folder.
"""

import argparse
import os
import re
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

COLAB = Path(__file__).parent


def clean(notebook):
    """Removes what changes from run to run, and messages on stderr."""
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", {}
        if cell.cell_type != "code":
            continue
        cell.outputs = joined(x for x in cell.outputs if x.get("name") != "stderr")
        for output in cell.outputs:
            output.pop("transient", None)
            if "image/png" in output.get("data", {}):  # the one form that is shown
                output["data"] = {"image/png": output["data"]["image/png"]}
                output["metadata"] = {}


def joined(outputs):
    """Outputs with the text that was printed in pieces joined."""
    result = []
    for output in outputs:
        if result and result[-1].get("name") == output.get("name") == "stdout":
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def execute(source):
    """Runs a notebook; returns it with its outputs, and the seconds it took.

    Raises:
      CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(source, as_version=4)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=1800,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        ).execute()
    clean(notebook)
    nbformat.validate(notebook)
    return notebook, time.monotonic() - began


def unequal_lines(notebook):
    """Printed lines in which a comparison of tokens failed."""
    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    return re.findall(r"^.*\bequal\b.*: False$", printed, re.MULTILINE)


def run(source, write=False, out=None):
    """Runs a notebook, stores and reports it; returns whether it ran to its end."""
    try:
        notebook, seconds = execute(source)
    except CellExecutionError as error:
        plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # no colors
        print(f"{source.name}: a cell failed\n{plain}", file=sys.stderr, flush=True)
        return False
    if unequal := unequal_lines(notebook):
        print(f"{source.name}: {unequal[0]}", file=sys.stderr, flush=True)
        return False
    size = len(nbformat.writes(notebook)) / 1e3
    print(f"{source.name}: {seconds:.0f} s, {size:.0f} kB", flush=True)
    if write:
        nbformat.write(notebook, source)
    if out:
        nbformat.write(notebook, out / source.name)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="names of notebooks; all by default")
    parser.add_argument("--write", action="store_true", help="store the outputs")
    parser.add_argument("--out", type=Path, help="folder for executed copies")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    args = parser.parse_args()
    if args.write and os.environ.get("JAXSPEC_SMALL"):
        parser.error("--write stores outputs of the full settings; unset JAXSPEC_SMALL")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    sources = [COLAB / f"{name.removesuffix('.ipynb')}.ipynb" for name in args.names]
    sources = sources or sorted(COLAB.glob("*.ipynb"))
    with ThreadPoolExecutor(args.jobs) as pool:
        ran = list(pool.map(partial(run, write=args.write, out=args.out), sources))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor time: {usage.ru_utime + usage.ru_stime:.0f} s")
    if not all(ran):
        failed = [s.name for s, ok in zip(sources, ran, strict=True) if not ok]
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
