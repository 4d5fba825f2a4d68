"""Command line: images, reports, options and errors."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import jaxspec
from jaxspec.cli import main
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.trees.tree import Tree

REPORT_KEYS = {
    "tokens", "target_calls", "tokens_per_call", "seconds", "baseline_seconds",
    "speedup", "identical_to_autoregressive", "checkpoint", "drafter", "verifier",
    "device",
}  # fmt: skip


@pytest.mark.slow
def test_compare_decodes_with_and_without_drafts_and_reports(tmp_path, capsys):
    out, report = tmp_path / "s.png", tmp_path / "r.json"
    command = [
        "generate",
        "--checkpoint",
        "fruits64",
        "--num",
        "4",
        "--out",
        str(out),
        "--report",
        str(report),
    ]
    assert main([*command, "--compare"]) == 0
    values = json.loads(report.read_text())
    assert set(values) >= REPORT_KEYS
    assert values["identical_to_autoregressive"] is True and values["lossless"] is True
    assert values["tokens"] == 4 * 256 and values["baseline_target_calls"] == 4 * 256
    assert values["target_calls"] < 1024 / 2  # more than two tokens per call
    assert values["tokens_per_call"] == 1024 / values["target_calls"]
    assert values["speedup"] == values["baseline_seconds"] / values["seconds"]
    assert Image.open(out).size == (2 * 128 + 12, 2 * 128 + 12)
    text = capsys.readouterr().out
    for words in ("speculative", "plain", "tokens/call", "compile", "identical   yes"):
        assert words in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "s.png"]


@pytest.mark.slow
def test_a_second_start_with_cached_programs_takes_half_the_time(tmp_path):
    """Two processes generate the same image; the second compiles nothing."""
    code = "import sys; from jaxspec.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "generate",
        "--checkpoint",
        "fruits64",
        "--num",
        "1",
    ]
    changed = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # by the test suite
    own = {k: v for k, v in os.environ.items() if k not in changed}
    own["XDG_CACHE_HOME"] = str(tmp_path)
    programs = tmp_path / "jaxspec" / "compiled"
    seconds, images, kept = [], [], []
    for name in ("a.png", "b.png"):
        began = time.perf_counter()
        out = tmp_path / name
        subprocess.run([*command, "--out", str(out)], check=True, env=own)
        seconds.append(time.perf_counter() - began)
        images.append(out.read_bytes())
        kept.append(sum(p.name.endswith("-cache") for p in programs.iterdir()))
    assert images[0] == images[1]
    assert kept[0] == kept[1] > 3
    assert seconds[1] < seconds[0] / 2


def test_an_unwritable_compile_cache_is_reported(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ["generate", "--checkpoint", "fruits64", "--num", "1"]
    command += ["--compile-cache", str(tmp_path / "file")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "file" in error and "Traceback" not in error


@pytest.mark.slow
def test_generate_without_a_drafter_is_plain_decoding(tmp_path, capsys):
    out = tmp_path / "s.jpg"
    command = [
        "generate",
        "--checkpoint",
        "fruits64",
        "--num",
        "1",
        "--drafter",
        "none",
        "--out",
        str(out),
    ]
    assert main([*command, "--cfg-scale", "1", "--temperature", "0"]) == 0
    assert "speculative" not in capsys.readouterr().out
    assert Image.open(out).format == "JPEG"


WRONG = {
    "unknown class": (["--classes", "Pear"], "unknown class 'Pear'"),
    "unknown tree": (["--tree", "oak"], "unknown tree 'oak'"),
    "unknown verifier": (
        ["--verifier", "oak"],
        "unknown verifier 'oak'; choose coupled,",
    ),
    "unknown setting": (["--verifier", "lantern:k=2,wings=2"], "no setting 'wings=2'"),
    "impossible setting": (["--verifier", "lantern:k=0,lam=2"], "k=0"),
    "tree too deep": (["--tree", "chain-40"], "choose a shallower tree"),
    "top-p of 0": (["--top-p", "0"], "top_p=0.0 is impossible"),
    "negative temperature": (["--temperature", "-1"], "temperature=-1.0 is impossible"),
    "top-k over int32": (["--top-k", str((1 << 32) + 1)], "top_k=4294967297 is"),
    "cfg over float32": (["--cfg-scale", "1e39"], "cfg_scale=1e+39 is impossible"),
    "cfg that is none": (["--cfg-scale", "nan"], "cfg_scale=nan is impossible"),
    "endless temperature": (["--temperature", "inf"], "temperature=inf is impossible"),
    "batch over int32": (
        ["--batch", str(1 << 40)],
        "batch_size=1099511627776 is impossible",
    ),
    "lambda over float32": (["--verifier", "lantern:k=2,lam=1e39"], "lam=1e+39 is"),
    "endless delta": (
        ["--verifier", "annealed:delta=1e39"],
        "delta=1e+39 is impossible",
    ),
    "k over int32": (["--verifier", "lantern:k=4294967297,lam=2"], "k=4294967297 is"),
    "more than a sheet": (["--num", str(1 << 40)], "holds at most 4096 images"),
    "class ²": (["--classes", "²"], "unknown class '²'; use a number from 0"),
    "class of 5000 digits": (["--classes", "1" * 5000], "unknown class '111"),
    "early exit ²": (["--drafter", "early-exit-²"], "no drafter 'early-exit-²'"),
    "nothing to draw": (["--num", "0"], "at least one image"),
    "no batch": (["--batch", "0"], "batch_size=0"),
    "huge seed": (["--seed", str(1 << 70)], "use a whole number that fits in 64 bits"),
    "impossible step": (["--cfg-interval", "-7"], "cfg_interval=-7"),
    "nothing to compare": (
        ["--compare", "--drafter", "none"],
        "--compare needs drafts",
    ),
    "one file for two": (["--report", "samples.png"], "are both 'samples.png'"),
    "endless chain": (["--tree", "chain-1000000000"], "longer than any output"),
    "no checkpoint": (["--checkpoint", "nowhere"], "no checkpoint folder at 'nowhere'"),
    "a kind of its own": (["--out", "s.tga"], "as a .tga image; use .png, .jpg,"),
    "no folder": (["--out", "nowhere/s.png"], "there is no folder 'nowhere'"),
    "not a number": (["--seed", "x"], "invalid int value"),
    "unknown option": (["--fast"], "unrecognized arguments"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_input_is_a_one_line_error(case, tmp_path, monkeypatch, capsys):
    arguments, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    try:
        status = main(
            ["generate", "--checkpoint", "fruits64", "--num", "1", *arguments]
        )
    except SystemExit as stop:  # argparse exits by itself
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and words in error.splitlines()[-1]
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_without_permission_are_named(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["generate", "--num", "1", "--out", str(tmp_path / "s.png")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_expected_errors_show_no_traceback(tmp_path):
    code = "import sys; from jaxspec.cli import main; sys.exit(main(sys.argv[1:]))"
    out = subprocess.run(
        [sys.executable, "-c", code, "generate", "--checkpoint", "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert out.returncode == 2 and out.stdout == ""
    assert len(out.stderr.splitlines()) == 1


def test_info_describes_a_checkpoint(capsys):
    assert main(["info"]) == 0
    assert "halton" in capsys.readouterr().out
    assert main(["info", "fruits64"]) == 0
    text = capsys.readouterr().out
    for words in ("tokenizer", "prior", "dflash", "M parameters", "psnr"):
        assert words in text
    assert "CC BY-SA 4.0" in text and "Tomato 3" in text
    assert main(["info", "nowhere"]) == 2


COMMANDS = ["generate", "demo", "info", "train", "eval", "bench"]
MEASUREMENTS = ["bench generate", "bench drafters", "bench stream"]


@pytest.mark.parametrize("command", COMMANDS + MEASUREMENTS)
def test_help_has_a_usage_line_and_short_lines(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: jaxspec {command}")
    assert max(map(len, lines)) <= 100


@pytest.mark.variants(1)
@pytest.mark.parametrize("damage", ["truncated", "mismatched", "nan"])
def test_damaged_checkpoints_are_a_one_line_error(damage, tmp_path):
    import shutil

    import jax

    from jaxspec.checkpoint import load_checkpoint, save
    from jaxspec.pipeline.embedded import embedded_folder

    bundle = tmp_path / "bundle"
    shutil.copytree(embedded_folder() / "fruits64", bundle)
    prior = bundle / "prior"
    if damage == "truncated":
        largest = max(prior.rglob("d/*"), key=lambda f: f.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:1000])
    elif damage == "mismatched":
        config = (prior / "config.json").read_text()
        (prior / "config.json").write_text(config.replace('"layers": 6', '"layers": 7'))
    else:
        broken = load_checkpoint(prior)
        params = jax.tree.map(lambda x: x / 0, broken.params)
        save(prior, type(broken)("prior", broken.config, params, broken.metadata))
    code = "import sys; from jaxspec.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["generate", "--num", "1", "--checkpoint", str(bundle)]
    child = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert child.returncode == 2 and child.stdout == ""
    assert len(child.stderr.splitlines()) == 1 and "prior" in child.stderr
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("command", MEASUREMENTS)
def test_bench_checks_its_output_files_before_it_measures(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.md").mkdir()
    for stem, words in (("nowhere/x", "no folder 'nowhere'"), ("taken", "a folder")):
        assert main([*command.split(), "--out", stem]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot write" in line and words in line
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["taken.md"]


@pytest.mark.slow
def test_bench_writes_a_table(tmp_path):
    stem = str(tmp_path / "b")
    command = ["bench", "generate", "--num", "2", "--repeats", "1", "--batches", "2"]
    command += ["--cfg-scales", "2", "--trees", "chain-2", "0,1", "--out", stem]
    assert main(command) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["tree_name"] for row in rows] == ["chain-2", "0,1"]
    assert all(row["identical_to_autoregressive"] for row in rows)
    table = (tmp_path / "b.md").read_text()
    assert "| 2 | 2 | chain-2 | 3 | 2 |" in table and "jaxspec bench" in table


def test_a_bundle_whose_weights_give_nan_is_refused():
    """The NaN was not read from a file, so it is detected after the run."""
    import jax

    from jaxspec.checkpoint import Checkpoint
    from jaxspec.errors import NonFiniteError
    from jaxspec.pipeline.bundle import Bundle

    bundle = load_bundle("fruits64")
    prior = bundle.prior
    params = {**prior.params, "head": prior.params["head"] * jax.numpy.nan}
    broken = Bundle(
        "broken", bundle.tokenizer, Checkpoint("prior", prior.config, params), None
    )
    with pytest.raises(NonFiniteError, match="bundle 'broken' gave NaN"):
        generate(broken, Prompts.from_classes([0]), GenerationConfig(), Tree.root())


@pytest.mark.slow
def test_drafters_by_name_change_no_token(tmp_path):
    """One that needs no training, and a folder; the report has their names."""
    from jaxspec.pipeline.embedded import embedded_folder

    folder = str(embedded_folder() / "fruits64" / "drafter")
    for name in ("recycling", folder):
        report = tmp_path / "report.json"
        command = [
            "generate",
            "--checkpoint",
            "fruits64",
            "--num",
            "1",
            "--drafter",
            name,
            "--tree",
            "0,1,00",
        ]
        command += ["--out", str(tmp_path / "a.png"), "--report", str(report)]
        assert main([*command, "--compare"]) == 0
        found = json.loads(report.read_text())
        assert found["identical_to_autoregressive"]
        assert found["drafter"] == name.rsplit("/", 1)[-1]
        assert found["tokens_per_call"] > 1


def test_unknown_drafters_are_refused_with_a_list_of_names(tmp_path, capsys):
    command = [
        "generate",
        "--checkpoint",
        "fruits64",
        "--num",
        "1",
        "--drafter",
        "eagle9",
    ]
    assert main([*command, "--out", str(tmp_path / "a.png")]) == 2
    assert "no drafter 'eagle9'; use own, unmixed, jacobi" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "generate", "--cfg-scales", "2", "1e39", "--out", "x"],
        ["bench", "drafters", "--cfg-scales", "2", "1e39", "--out", "x"],
        ["bench", "plan", "--cfg-scale", "1e39"],
        ["eval", "images", "--data", "none", "--cfg-scale", "1e39", "--out", "x"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_scales_are_checked_before_anything_is_loaded(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxspec.pipeline.bundle.load_bundle", None)
    assert main(command) == 2
    assert "cfg_scale=1e+39 is impossible" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_counts_over_int32_are_refused(capsys):
    command = ["bench", "generate", "--num", str(1 << 32), "--out", "x"]
    assert main(command) == 2
    assert "--num 4294967296 must be at most 2147483647" in capsys.readouterr().err


def test_digits_are_read_by_one_function():
    """`str.isdigit` and its like hold for letters that `int` does not read."""
    package = Path(jaxspec.__file__).parent
    words = ("isdigit", "isnumeric", "isdecimal")
    found = {
        file.name
        for file in package.rglob("*.py")
        if any(f".{word}(" in file.read_text("utf-8") for word in words)
    }
    assert found == set()
