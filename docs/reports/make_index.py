"""Writes index.md, the list of the reports in this folder."""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent
HEAD = """# Reports

Measurements that the other pages quote, each with the command and the device that
made it. A command is that of the version that wrote the report; options may have other
names now. Numbers are in the JSON files.
`python docs/reports/make_index.py` writes this page.
"""


def entry(numbers: Path) -> str:
    """List item of one report."""
    report, page = json.loads(numbers.read_text("utf-8")), numbers.with_suffix(".md")
    text = page.read_text("utf-8") if page.exists() else ""
    title = re.search(r"^# (.+)", text, re.M)
    device = re.search(r"^Device: (.+?)\.(?=\s)", text, re.M)
    if device is not None:
        device = device[1]
    elif "devices" in report:
        device = "none, compiled for " + ", ".join(map(str, report["devices"]))
    else:
        device = report["device"]
    links = f"[`{numbers.stem}`]({page.name})" if text else f"`{numbers.stem}`"
    title = title[1].partition(": ")[0] if title else "Best tree for a device"
    return (
        f"- {links} ([JSON]({numbers.name})): {title}\\\n"
        f"  Device: {device}\\\n  `{report['command']}`\n"
    )


def index() -> str:
    """Text of index.md."""
    files = sorted(FOLDER.glob("*.json"))
    items = "".join(map(entry, files))
    toctree = "\n".join(
        f"{f.stem} <{f.stem}>" for f in files if f.with_suffix(".md").exists()
    )
    return f"{HEAD}\n{items}\n```{{toctree}}\n:hidden:\n\n{toctree}\n```\n"


if __name__ == "__main__":
    (FOLDER / "index.md").write_text(index(), "utf-8")
