"""The local page: requests, events and the server."""

import base64
import io
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxspec.cli.main import main
from jaxspec.config.orders import cells_of
from jaxspec.demo.drawing import description, events, read_request
from jaxspec.demo.server import free_socket
from jaxspec.errors import ConfigError
from jaxspec.pipeline.pipeline import load_pipeline
from tests.demo.running import running
from tests.tiny_bundle import save_bundle

QUERY = {"prompt": "1", "count": "2", "seed": "3", "cfg": "2"}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """Random models whose images have 16 tokens; Jacobi drafts for them."""
    return load_pipeline(save_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def drawn(pipe):
    return list(events(pipe, read_request(QUERY, pipe)))


def image_of(event):
    data = base64.b64decode(event["images"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def test_images_grow_with_every_round_until_they_are_complete(drawn):
    start, *rounds, end = drawn
    assert start["kind"] == "start" and start["count"] == 2 and start["drafted"] > 0
    tokens = np.array([event["tokens"] for event in rounds])
    assert (np.diff(tokens, axis=0) >= 0).all() and (tokens[-1] == 16).all()
    gray = [(image_of(event) == 128).all(axis=-1).mean() for event in rounds]
    assert gray == sorted(gray, reverse=True) and gray[-1] < 0.1 < 0.5 < gray[0]
    assert end["tokens"] == 32 and end["calls"] >= len(rounds)
    assert end["tokens_per_call"] == 32 / end["calls"]


def test_the_page_is_given_the_cell_of_each_token(pipe, drawn):
    """By rows for the tiny model, in Halton order for an embedded one."""
    assert drawn[0]["cells"] == list(range(16))
    scattered = load_pipeline("fruits64_halton")
    request = read_request({**QUERY, "prompt": "Cherry 1"}, scattered)
    cells = next(events(scattered, request))["cells"]
    assert cells == list(cells_of("halton", 16)) and sorted(cells) != cells


@pytest.mark.slow
def test_the_last_images_are_those_of_the_pipeline_with_and_without_drafts(pipe, drawn):
    out = pipe(class_labels=[1, 1], seed=3, cfg_scale=2.0, batch_size=2)
    whole = np.concatenate([np.asarray(image) for image in out.images], axis=1)
    rounds = [event for event in drawn if event["kind"] == "round"]
    np.testing.assert_array_equal(image_of(rounds[-1]), whole)
    plain = read_request({**QUERY, "draft": "0"}, pipe)
    *_, last, end = events(pipe, plain)
    np.testing.assert_array_equal(image_of(last), whole)
    assert end["tokens_per_call"] == 1


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({}, "the prompt is empty"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "a" * 10_000}, "10000 letters; 500 are the most"),
        ({"prompt": "x", "count": "0"}, "0 images; choose 1 to 9"),
        ({"prompt": "x", "count": "many"}, "count='many' is no whole number"),
        ({"prompt": "x", "seed": "2.5"}, "seed='2.5' is no whole number"),
        ({"prompt": "x", "seed": "9" * 30}, "seed"),
        ({"prompt": "x", "cfg": "high"}, "cfg='high' is no number"),
        ({"prompt": "x", "cfg": "nan"}, "cfg_scale"),
    ],
)
def test_impossible_requests_are_refused(pipe, query, words):
    with pytest.raises(ConfigError, match=words):
        read_request(query, pipe)


def test_an_unknown_class_is_one_event(pipe):
    found = list(events(pipe, read_request({"prompt": "unicorn"}, pipe)))
    assert found[-1]["kind"] == "error" and "unicorn" in found[-1]["message"]


def test_the_page_knows_its_models(pipe):
    about = description(pipe)
    assert about["classes"] == pipe.class_names and not about["captioned"]
    assert about["styles"] == [] and set(about["examples"]) <= set(about["classes"])


@pytest.fixture(scope="module")
def address(pipe):
    pytest.importorskip("aiohttp")
    with running(pipe) as address:
        yield address


def read(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request) as response:
        return response.headers["Content-Type"], response.read().decode()


def test_the_server_has_a_page_and_streams_events(address, drawn):
    kind, page = read(address)
    assert kind.startswith("text/html") and "<title>jaxspec</title>" in page
    kind, text = read(f"{address}/draw?{urllib.parse.urlencode(QUERY)}")
    assert kind == "text/event-stream"
    found = [json.loads(part[6:]) for part in text.split("\n\n") if part]
    assert [e["kind"] for e in found] == [e["kind"] for e in drawn]
    assert found[-2]["images"] == drawn[-2]["images"]
    _, text = read(f"{address}/draw?prompt=")
    assert json.loads(text[6:]) == {
        "kind": "error",
        "message": "the prompt is empty; describe the image",
    }


def test_images_asked_for_at_the_same_time_are_drawn_one_after_the_other(address):
    """A second page waits, so that the first keeps its speed."""
    events = []

    def draw(seed):
        query = urllib.parse.urlencode({**QUERY, "seed": seed})
        with urllib.request.urlopen(f"{address}/draw?{query}") as response:
            lines = (line for line in response if line.startswith(b"data"))
            for line in lines:
                events.append((seed, json.loads(line[6:])["kind"]))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, (1, 2)))
    rounds = [seed for seed, kind in events if kind == "round"]
    assert rounds == sorted(rounds, key=lambda seed: seed != rounds[0])
    assert set(rounds) == {1, 2}


def test_other_names_of_this_machine_are_refused(address):
    """A page elsewhere whose name was made to point here reads nothing."""
    with pytest.raises(urllib.error.HTTPError, match="403"):
        read(address, Host="example.org")
    assert read(address, Host="localhost:80")[0].startswith("text/html")


def test_a_missing_package_is_named_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(["demo", "--no-browser", "--checkpoint", "missing"]) == 2
    assert "pip install 'jaxspec-decoding[demo]'" in capsys.readouterr().err


def test_a_taken_port_is_one_error(capsys):
    pytest.importorskip("aiohttp")
    with free_socket(0) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port), "--no-browser"]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
