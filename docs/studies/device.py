"""Everything that needs an accelerator, in one command with a time limit.

Three parts, in this order: the tests of kernels against plain XLA (`pytest -m
accelerator`), `jaxspec bench hardware`, and the training of a larger drafter for the
embedded model with the time that is left. Each is a process of its own and writes when
it ends, so a lost device loses one part at most. Nothing is installed or downloaded;
a part whose packages are missing is reported as failed.
"""

import os
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark, Option
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import markdown_table
from jaxspec.io.writing import check_writable

ROOT = Path(__file__).parents[2]
# Shares of the time; training takes what the others leave.
KERNELS, HARDWARE = 0.2, 0.55
# The drafter that is trained: the embedded one, wider and deeper, in bfloat16.
DRAFTER = (
    "drafter.layers=4",
    "drafter.width=384",
    "drafter.heads=6",
    "drafter.ffn_width=1152",
    "train_drafter.batch=128",
    "train_drafter.compute_dtype=bfloat16",
    "train_drafter.self_generated=32768",
    "train_drafter.rounded=true",
)
SMALL = (
    "drafter.layers=1",
    "train_drafter.batch=2",
    "train_drafter.self_generated=4",
    "train_drafter.steps=2",
)
# Lines of output that a failed part reports.
LINES = 12
# Seconds before its limit at which a part that still runs is asked to save what it has.
GRACE = 20.0
# Folders of the training that are not packed: its state, and what can be made again.
UNPACKED = ("drafter/drafter", "drafter/codes")


def parts(
    folder: Path, seconds: float, dtype: str | None, small: bool
) -> list[tuple[str, float, list[str]]]:
    """Name, time limit in seconds, and command of each part.

    Args:
      folder: Folder of results.
      seconds: Time limit of all parts.
      dtype: Dtype of the benchmarks; None for the device's.
      small: Whether to run sizes for a rehearsal on a CPU.
    """
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0"]
    tests += ["-m", "accelerator", "tests/nn"]
    minutes = 0.01 if small else HARDWARE * seconds / 60
    bench = [sys.executable, "-m", "jaxspec", "bench", "hardware"]
    bench += ["--minutes", f"{minutes:.2f}", "--out", str(folder / "hardware")]
    bench += ["--dtype", dtype] if dtype else []
    bench += ["--repeats", "1"] if small else []
    train = [sys.executable, "-m", "jaxspec", "train", "drafter"]
    train += ["--config", "fruits64_cpu", "--checkpoint", "fruits64"]
    train += ["--out", str(folder / "drafter")]
    for setting in SMALL if small else DRAFTER:
        train += ["--set", setting]
    return [
        ("kernels", KERNELS * seconds, tests),
        ("hardware", (HARDWARE + 0.1) * seconds, bench),
        ("training", seconds, train),
    ]


def measure_device(
    *,
    minutes: float = 9.0,
    folder: str = "device",
    pack: str | None = None,
    small: bool = False,
    save=None,
) -> dict[str, Any]:
    """Runs the parts one after another until the time limit.

    Args:
      minutes: Time limit of all parts.
      folder: Folder of results.
      pack: Tar file of the results, written after each part; None for none.
      small: Whether to run sizes for a rehearsal on a CPU.
      save: Callback for unfinished reports.

    Returns:
      Report with one row per part: its command, its time, whether it succeeded, and the
      end of its output.

    Raises:
      ConfigError: `pack` is in the folder of results.
      DataError: `pack` cannot be written.
    """
    began, results = time.perf_counter(), Path(folder).resolve()
    if pack is not None:
        check_writable(pack)
        if Path(pack).resolve().is_relative_to(results):
            raise ConfigError(f"--pack {pack}: choose a file outside of '{folder}'")
    results.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    report = {"minutes": minutes, "folder": folder, "rows": rows}
    seconds = 60 * minutes
    for name, limit, command in parts(results, seconds, None, small):
        left = seconds - (time.perf_counter() - began)
        if left < 0.05 * seconds:
            rows.append({"part": name, "status": "skipped", "seconds": 0.0})
            continue
        if name == "training" and not small:
            # The trainer plans by minutes; saving and evaluating take some, too.
            command = [*command, "--minutes", f"{0.8 * left / 60:.2f}"]
        log = results / f"{name}.log"
        rows.append(_run(name, command, min(limit, left), log))
        if save is not None:
            save(report)
        if pack is not None:
            write_pack(results, Path(pack))
    return report


def write_pack(results: Path, file: Path) -> None:
    """Writes one file with the results, without the states of trainings.

    Args:
      results: Folder of results.
      file: Tar file.
    """

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        inside = Path(entry.name).relative_to(results.name).as_posix()
        return None if inside in UNPACKED else entry

    part = file.with_name(f"{file.name}.part")
    with tarfile.open(part, "w") as archive:
        archive.add(results, arcname=results.name, filter=kept)
    os.replace(part, file)


def _run(name: str, command: list[str], limit: float, log: Path) -> dict[str, Any]:
    """Runs a part, with its output in a file, and ends it after its limit."""
    began = time.perf_counter()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            code = process.wait(max(limit - GRACE, limit / 2))
            status = "done" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            process.terminate()  # trainings save what they have
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(GRACE, limit / 2))
            status = f"ended after {time.perf_counter() - began:.0f} s"
        finally:
            process.kill()
            process.wait()
    text = log.read_bytes().decode("utf-8", "replace").replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        "part": name,
        "status": status,
        "seconds": time.perf_counter() - began,
        "command": " ".join([Path(command[0]).name, *command[1:]]),
        "end": lines[-LINES:],
    }


def device_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_device`."""
    cells = [
        [row["part"], row["status"], f"{row['seconds']:.0f}"] for row in result["rows"]
    ]
    lines = ["# Run on a device", "", f"`{result['command']}`", ""]
    lines.append(markdown_table(["part", "status", "seconds"], cells))
    for row in result["rows"]:
        if "command" in row:
            lines += [f"## {row['part']}", "", f"`{row['command']}`", "", "```text"]
            lines += [*row["end"], "```", ""]
    return "\n".join(lines)


STUDY = Benchmark(
    "device",
    summary="kernels, speed and training on an accelerator",
    description="Runs the tests of kernels, all speed benchmarks and the training of "
    "a drafter, within a time limit. Results are in a folder, and the report lists "
    "how each part ended.",
    example="Example: python -m docs.studies.device --folder h100 --pack h100.tar "
    "--out h100_report",
    options=(
        Option("minutes", "time limit of all parts", float, default=9.0),
        Option("folder", "folder of results", default="device", metavar="DIR"),
        Option("pack", "tar file of the results", metavar="FILE"),
        Option("small", "sizes for a rehearsal on a CPU", bool, default=False),
    ),
    measure=measure_device,
    markdown=device_markdown,
    saves=True,
    program="python -m docs.studies.device",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
