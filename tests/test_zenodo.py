"""Downloads from Zenodo: what comes is whole, what is interrupted goes on, what is wrong is said.

The server is one of our own, in a thread; it serves ranges as Zenodo does and can be told to fail.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote

import numpy as np
import pytest
import soundfile

from dns_jax.data import archives, downloads, zenodo
from dns_jax.data.clips import read_clips

ROOT = Path(__file__).parents[1]
DEV, MORE, TEST, TRUTH = 4562016, 4660992, 4884786, 5257674
GO_ON = "the same command goes on where it stopped"


# The server and what it holds


class Answer(BaseHTTPRequestHandler):
    """One request, answered as the next fault in line for that file says, or well."""

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        if length != "none":
            self.send_header("Content-Length", len(body) if length is None else length)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.seen.sent = len(body)

    def do_GET(self):
        site, name = self.server.site, unquote(self.path.rsplit("/", 1)[1])
        asked = self.headers.get("Range")
        self.seen = SimpleNamespace(name=name, range=asked, headers=dict(self.headers), sent=0)
        site.seen.append(self.seen)
        faults = site.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, tuple):
            status, headers = fault
            return self.send(status, **headers)
        if "/api/records/" in self.path:
            return self.send(200, site.describe(int(name)) if fault is None else fault)
        content = site.records[int(self.path.split("/")[2])][name]
        start = int(asked.split("=")[1].strip("-")) if asked and site.ranges else 0
        body, headers = content[start:], {"ETag": site.etag} if site.etag else {}
        if asked and site.ranges:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        status = 206 if asked and site.ranges else 200
        if fault == "drop":
            self.send(status, body[: min(len(body) // 2, site.dose)], len(body), **headers)
        elif fault == "nothing":
            self.send(status, b"", len(body), **headers)
        elif fault == "hang":
            self.send(status, body[: len(body) // 2], len(body), **headers)
            self.wfile.flush()
            site.hanging.set()
            site.released.wait(20)
        elif fault == "no length":
            self.send(status, body, "none", **headers)
        elif fault == "cut without length":
            self.send(status, body[: len(body) // 2], "none", **headers)
        elif fault == "longer":
            self.send(status, body + b"more", **headers)
        elif fault == "shorter":
            self.send(status, body[:-4], **headers)
        elif fault == "other total":
            headers["Content_Range"] = f"bytes {start}-{len(content)}/{len(content) + 1}"
            self.send(206, body, **headers)
        elif fault == "other start":
            headers["Content_Range"] = f"bytes 7-{len(content) - 1}/{len(content)}"
            self.send(206, body, **headers)
        elif fault == "wrong":
            self.send(status, bytes(len(body)), **headers)
        else:
            assert fault is None, fault
            self.send(status, body, **headers)


class Site:
    """Zenodo on this machine."""

    def __init__(self):
        self.records = {DEV: {}, MORE: {}, TEST: {}, TRUTH: {}}
        self.faults, self.seen = {}, []  # faults: {file or record: what happens to each request}
        self.ranges, self.etag, self.dose = True, '"tag"', 1 << 30
        self.hanging, self.released = threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.daemon_threads = True
        self.server.site = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.api = f"{self.url}/api/records"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def describe(self, record, **changes):
        files = [
            {
                "key": name,
                "size": len(content),
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{self.url}/files/{record}/{quote(name)}"},
            }
            | changes
            for name, content in self.records[record].items()
        ]
        return json.dumps({"id": record, "files": files}).encode()

    def requests(self, name):
        return [seen for seen in self.seen if seen.name == name]

    def add(self, machine):
        """Publish a machine of two sections and return {path below DIR: content} of its clips."""
        rng = np.random.default_rng(len(machine))
        clips = {}
        for group, section in (("dev_data", "00"), ("eval_data", "03")):
            for domain in ("source", "target"):
                stem = f"section_{section}_{domain}"
                names = [f"train/{stem}_train_normal_{i:04d}_x_{i}" for i in range(3)]
                tests = ("normal_0000", "anomaly_0000") if section == "00" else ("0000", "0001")
                names += [f"{domain}_test/{stem}_test_{test}" for test in tests]
                for name in names:
                    file = io.BytesIO()
                    noise = rng.normal(0, 0.1, 2000)
                    soundfile.write(file, noise, 16000, format="WAV", subtype="PCM_16")
                    clips[f"{group}/{machine}/{name}.wav"] = file.getvalue()
        parts = {"dev_data": {}, "train": {}, "test": {}}
        for path, content in clips.items():
            group, member = path.split("/", 1)
            key = group if group == "dev_data" else "train" if "/train/" in path else "test"
            parts[key][member] = content
        self.records[DEV][f"dev_data_{machine}.zip"] = make_zip(parts["dev_data"])
        self.records[MORE][f"eval_data_{machine}_train.zip"] = make_zip(parts["train"])
        self.records[TEST][f"eval_data_{machine}_test.zip"] = make_zip(parts["test"])
        return clips


def make_zip(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return file.getvalue()


def make_truth(*machines):
    """The evaluator's files of labels: the second clip of each domain is anomalous."""
    return {
        f"ground_truth_{machine}_section_03_{domain}_test.csv": (
            f"section_03_{domain}_test_0000.wav,0\nsection_03_{domain}_test_0001.wav,1\n"
        ).encode()
        for machine in machines
        for domain in ("source", "target")
    }


def list_files(folder, hidden=True):
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    names = (str(path.relative_to(folder)) for path in paths)
    return sorted(name for name in names if hidden or "/." not in f"/{name}")


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    site = Site()
    yield site
    site.released.set()
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def fan(site):
    """A site with one machine, and its clips."""
    clips = site.add("fan")
    truth = make_truth("fan")
    site.records[TRUTH]["truth.zip"] = make_zip({f"x/{name}": truth[name] for name in truth})
    return clips


@pytest.fixture
def waits(monkeypatch):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    return waits


@pytest.fixture
def call(site, tmp_path, capsys, waits):
    """Run the command; return exit status, printed lines and lines on stderr."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*argv, api=site.api, out=tmp_path / "data"):
        status = 0
        try:
            zenodo.main([f"--out={out}", *(argv or ["--machines=fan"])], api)
        except SystemExit as stop:
            status = stop.code
        printed, errors = capsys.readouterr()
        return status, printed.splitlines(), errors.splitlines()

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def fails(call):
    """Run the command, which fails; return its one line on stderr."""

    def fails(*argv, **kwargs):
        status, _, errors = call(*argv, **kwargs)
        assert (status, len(errors)) == (1, 1), errors
        assert errors[0].startswith("dns_jax: ")
        return errors[0].removeprefix("dns_jax: ")

    return fails


def assert_complete(data, *clips):
    expected = {path: content for some in clips for path, content in some.items()}
    found = {path: (data / path).read_bytes() for path in list_files(data, hidden=False)}
    found = {path: found[path] for path in found if not path.startswith("ground_truth_data/")}
    assert found == expected
    assert not (data / ".zenodo").exists()
    assert not [path for path in data.rglob("*") if path.name.endswith((".unpacking", ".part"))]
    table, refusals = read_clips(data)
    assert not refusals
    tests = table[table["split"] == "test"]
    second = tests["clip"].str.contains("anomaly|_0001.wav")
    assert (tests["label"] == second).all()


# What a user gets


def test_the_machines_that_are_asked_for_come_whole_and_labelled(site, call, tmp_path):
    clips = {name: site.add(name) for name in ("fan", "pump", "valve")}
    truth = make_truth("fan", "pump", "valve")
    site.records[TRUTH]["evaluator.zip"] = make_zip(
        {"readme.md": b"", **{f"evaluator-1.0/ground_truth_data/{n}": truth[n] for n in truth}}
    )
    status, printed, errors = call("--dataset=dcase2021", "--machines=pump,fan,pump")
    assert (status, errors) == (0, [])
    assert_complete(tmp_path / "data", clips["fan"], clips["pump"])
    assert printed[-2:] == [
        f"{machine}: 12 training and 8 test clips, sections 0, 3, all labelled (4 anomalous)"
        for machine in ("fan", "pump")
    ]
    size = len(site.records[DEV]["dev_data_fan.zip"])
    assert f"dev_data_fan.zip: {size:,} bytes" in printed
    folder = tmp_path / "data" / "dev_data" / "fan"
    assert f"dev_data_fan.zip: 10 clips in {folder}; archive deleted" in printed
    assert len(site.requests("dev_data_pump.zip")) == 1
    assert not any("valve" in seen.name for seen in site.seen)


def test_a_second_call_asks_the_server_nothing(site, call, fan, tmp_path):
    first = call()
    seen = len(site.seen)
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in list_files(tmp_path)}
    status, printed, _ = call()
    assert status == 0
    assert printed == first[1][-1:]
    assert len(site.seen) == seen
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in list_files(tmp_path)} == before


def test_another_machine_is_added_to_those_that_are_there(site, call, fan, tmp_path):
    assert call()[0] == 0
    pump = site.add("pump")
    site.records[TRUTH] |= make_truth("pump")
    seen = len(site.seen)
    assert call("--machines=fan,pump")[0] == 0
    assert_complete(tmp_path / "data", fan, pump)
    assert not any("fan.zip" in seen.name or "fan_t" in seen.name for seen in site.seen[seen:-2])


def test_clips_that_were_deleted_come_again_and_converted_ones_do_not(site, call, fan, tmp_path):
    assert call()[0] == 0
    for path in (tmp_path / "data" / "eval_data" / "fan" / "source_test").iterdir():
        path.rename(path.with_suffix(".flac"))
    next((tmp_path / "data" / "dev_data" / "fan" / "train").glob("*.wav")).unlink()
    seen = len(site.seen)
    assert call()[0] == 0
    assert [seen.name for seen in site.seen[seen:]] == [str(DEV), "dev_data_fan.zip"]


def test_hidden_and_other_files_of_an_archive_do_not_bring_it_again(site, call, fan, tmp_path):
    clips = {path.split("/", 1)[1]: fan[path] for path in fan if path.startswith("dev_data")}
    others = {"fan/": b"", "fan/readme.txt": b"fan", "fan/train/.DS_Store": b"mac"}
    site.records[DEV]["dev_data_fan.zip"] = make_zip(others | clips)
    assert call()[0] == 0
    assert (tmp_path / "data" / "dev_data" / "fan" / "readme.txt").read_bytes() == b"fan"
    seen = len(site.seen)
    assert call()[0] == 0
    assert len(site.seen) == seen


def test_mistakes_in_the_call_are_one_line_and_status_2(site, call):
    there = "fan, gearbox, pump, slider, ToyCar, ToyTrain, valve"
    for argv, message in [
        (["--machines=fan,toycar"], f"--machines=fan,toycar: no 'toycar'; there are {there}"),
        (["--machines="], f"--machines=: no ''; there are {there}"),
        (["--machine=fan"], "unrecognized arguments: --machine=fan"),
        (["--dataset=dcase2019"], "argument --dataset: invalid choice: 'dcase2019' (choose from "),
    ]:
        status, printed, errors = call(*argv)
        assert (status, printed, len(errors)) == (2, [], 1)
        assert errors[0].startswith(f"dns_jax: {message}")
    assert site.seen == []


def test_without_a_place_to_put_it_the_command_says_so(capsys):
    with pytest.raises(SystemExit) as stop:
        zenodo.main([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("dns_jax: the following arguments are required: --out\n")


def test_a_file_in_place_of_the_data_directory_is_named(fails, tmp_path):
    (tmp_path / "data").touch()
    message = fails()
    assert message.startswith(f"{tmp_path}/data: File exists")
    assert list_files(tmp_path) == ["data"]


def test_two_commands_do_not_write_to_one_directory(site, fails, fan, tmp_path):
    (tmp_path / "data").mkdir()
    directory = os.open(tmp_path / "data", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_SH)
    assert fails() == f"another process is downloading to {tmp_path}/data; wait for it"
    os.close(directory)
    assert site.seen == []


# Records


def test_a_file_that_the_record_does_not_list_is_named_with_those_it_does(site, fails, fan):
    assert fails("--dataset=dcase2021") == (
        f"{site.api}/{DEV}: no dev_data_gearbox.zip among its files (dev_data_fan.zip)"
    )
    site.records[MORE].clear()
    assert fails() == f"{site.api}/{MORE}: no eval_data_fan_train.zip among its files (none)"


@pytest.mark.parametrize(
    "change",
    [
        b"<html>Please log in</html>",
        b'{"files": [',
        b"\xff\xfe",
        b"[]",
        b'{"id": 4562016}',
        b'{"files": 3}',
        b'{"files": ["dev_data_fan.zip"]}',
        b"[" * 100_000,
        {"checksum": "sha256:00"},
        {"checksum": "md5:../x"},
        {"checksum": None},
        {"size": -1},
        {"size": True},
        {"size": "12"},
        {"links": {}},
        {"links": {"self": "file:///etc/passwd"}},
        {"links": {"self": "http://a b"}},
        {"key": 7},
        {"key": "dev\n.zip"},
    ],
    ids=str,
)
def test_a_malformed_record_is_refused(site, fails, fan, tmp_path, change):
    text = change if isinstance(change, bytes) else site.describe(DEV, **change)
    site.faults[str(DEV)] = [text]
    message = fails()
    assert message.startswith(f"{site.api}/{DEV}: the answer is not a record of files (")
    assert list_files(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (410, "Gone")]
)
@pytest.mark.parametrize("name", [str(DEV), "dev_data_fan.zip"])
def test_a_refusal_is_final(site, fails, fan, name, status, reason):
    site.faults[name] = [(status, {})]
    url = f"{site.api}/{DEV}" if name == str(DEV) else f"{site.url}/files/{DEV}/{name}"
    hint = "; Zenodo does so for a while to networks that send unusually many requests"
    assert fails() == f"{url}: the server answers {status} {reason}{hint * (status == 403)}"
    assert len(site.requests(name)) == 1


def test_requests_do_not_carry_the_name_of_pythons_library(site, call, fan):
    assert call()[0] == 0
    assert {seen.headers["User-Agent"] for seen in site.seen} == {"dns_jax"}


def test_without_a_network_the_command_gives_up_after_a_while(fails, waits, monkeypatch):
    def resolve(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fails(api="http://zenodo.invalid/api/records") == (
        f"http://zenodo.invalid/api/records/{DEV}: no connection: Name or service not known "
        f"(6 times in a row); later {GO_ON}"
    )
    assert waits == [1, 2, 4, 8, 16]


def test_a_server_that_is_down_is_named(fails, waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        api = f"http://127.0.0.1:{free.getsockname()[1]}/api/records"
    assert fails(api=api) == (
        f"{api}/{DEV}: no connection: Connection refused (6 times in a row); later {GO_ON}"
    )


# Transfers


def test_a_dropped_connection_is_taken_up_where_it_broke(site, call, fan, waits, tmp_path):
    name, size = "dev_data_fan.zip", len(site.records[DEV]["dev_data_fan.zip"])
    site.faults[name] = ["drop", "drop"]
    status, printed, _ = call()
    assert status == 0
    assert_complete(tmp_path / "data", fan)
    half, quarter = size // 2, (size - size // 2) // 2
    requests = site.requests(name)
    assert [seen.range for seen in requests] == [None, f"bytes={half}-", f"bytes={half + quarter}-"]
    assert [seen.headers.get("If-Range") for seen in requests] == [None, '"tag"', '"tag"']
    assert sum(seen.sent for seen in requests) == size
    assert waits == [1, 2]
    url = f"{site.url}/files/{DEV}/{name}"
    assert (
        f"{url}: the connection closed after {half:,} of {size:,} bytes; trying again in 1 s"
        in printed
    )


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_a_weak_or_missing_etag_is_not_sent_back(site, call, fan, etag):
    site.etag = etag
    site.faults["dev_data_fan.zip"] = ["drop"]
    assert call()[0] == 0
    assert "If-Range" not in site.requests("dev_data_fan.zip")[1].headers


def test_a_server_without_ranges_starts_over(site, call, fan, tmp_path):
    name, size = "dev_data_fan.zip", len(site.records[DEV]["dev_data_fan.zip"])
    site.ranges = False
    site.faults[name] = ["drop"]
    status, printed, _ = call()
    assert status == 0
    assert_complete(tmp_path / "data", fan)
    assert [seen.sent for seen in site.requests(name)] == [size // 2, size]
    url = f"{site.url}/files/{DEV}/{name}"
    assert f"{url}: the server cannot continue a download; starting over" in printed


def test_attempts_that_bring_something_are_not_counted(site, call, fan, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "_CHUNK", 1000)
    site.dose = 1000
    site.faults["dev_data_fan.zip"] = ["drop"] * 20
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert len(site.requests("dev_data_fan.zip")) == 21


def test_a_server_that_always_drops_is_given_up_and_continued_later(
    site, call, fails, fan, waits, tmp_path
):
    name, size = "dev_data_fan.zip", len(site.records[DEV]["dev_data_fan.zip"])
    site.faults[name] = ["drop"] * 6
    message = fails()
    have = sum(seen.sent for seen in site.requests(name))
    assert message == (
        f"{site.url}/files/{DEV}/{name}: the connection closed after {have:,} of {size:,} bytes "
        f"(6 times in a row); later {GO_ON}"
    )
    assert waits == [1, 2, 4, 8, 16]
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    requests = site.requests(name)
    assert len(requests) == 7
    assert requests[6].range == f"bytes={have}-"
    assert sum(seen.sent for seen in requests) == size


def test_attempts_that_bring_nothing_are_counted_from_the_last_that_did(
    site, fails, fan, waits, monkeypatch
):
    monkeypatch.setattr(downloads, "_CHUNK", 1000)
    nothing = ["nothing"] * 4
    site.faults["dev_data_fan.zip"] = ["drop", *nothing, "drop", *nothing, "nothing"]
    assert fails().endswith(f"(6 times in a row); later {GO_ON}")
    assert waits == [1, 2, 4, 8, 16, 1, 2, 4, 8, 16]


def test_more_bytes_than_the_file_has_are_not_taken_for_a_part_of_it(site, call, fan, tmp_path):
    content = site.records[DEV]["dev_data_fan.zip"]
    md5 = hashlib.md5(content).hexdigest()
    part = tmp_path / "data" / ".zenodo" / f".dev_data_fan.zip.{md5}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content + b"more")
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert [seen.range for seen in site.requests("dev_data_fan.zip")] == [None]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("name", [str(DEV), "dev_data_fan.zip"])
def test_a_busy_server_is_asked_again(site, call, fan, waits, name, status):
    site.faults[name] = [(status, {})]
    assert call()[0] == 0
    assert waits == [1]


def test_the_server_says_how_long_to_wait(site, call, fan, waits):
    date = formatdate(time.time() + 50, usegmt=True)
    past = formatdate(time.time() - 50, usegmt=True)
    asked = ["7", date, past, "0", "soon"]
    site.faults["dev_data_fan.zip"] = [(429, {"Retry_After": wait}) for wait in asked]
    assert call()[0] == 0
    assert waits[0] == 7
    assert 40 < waits[1] <= 50
    assert waits[2:] == [4, 8, 16]


def test_a_server_that_asks_for_too_long_a_wait_is_left_alone(site, fails, fan, waits):
    site.faults[str(DEV)] = [(429, {"Retry_After": "3600"})]
    assert fails() == (
        f"{site.api}/{DEV}: the server answers 429 Too Many Requests; in 3,600 s {GO_ON}"
    )
    assert waits == []


@pytest.mark.parametrize(("fault", "more"), [("longer", 4), ("shorter", -4)])
def test_another_length_than_the_record_says_is_refused_before_it_comes(
    site, call, fails, fan, tmp_path, fault, more
):
    name, size = "dev_data_fan.zip", len(site.records[DEV]["dev_data_fan.zip"])
    site.faults[name] = [fault]
    assert fails() == (
        f"{site.url}/files/{DEV}/{name}: the server has {size + more:,} bytes, the record says "
        f"{size:,}; it is another file, or something between here and the server answers in its "
        "place"
    )
    assert list_files(tmp_path, hidden=False) == []
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)


def test_a_range_of_another_file_is_refused_and_what_has_come_is_kept(site, call, fails, fan):
    name, size = "dev_data_fan.zip", len(site.records[DEV]["dev_data_fan.zip"])
    site.faults[name] = ["drop", "other total", "drop", "other start"]
    assert f"the server has {size + 1:,} bytes, the record says {size:,}" in fails()
    message = fails()
    have = size // 2 + (size - size // 2) // 2
    said = f"asked for all from byte {have} on, the server sends 'bytes 7-{size - 1}/{size}'"
    assert said in message
    part = Path(message.partition("to start over delete ")[2])
    assert part.stat().st_size == have
    part.unlink()
    assert call()[0] == 0


def test_the_length_may_be_missing(site, call, fan, waits, tmp_path):
    site.faults["dev_data_fan.zip"] = ["cut without length", "no length"]
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert waits == [1]


def test_a_wrong_checksum_is_not_kept(site, call, fails, fan, tmp_path):
    name, content = "dev_data_fan.zip", site.records[DEV]["dev_data_fan.zip"]
    site.faults[name] = ["wrong"]
    found = hashlib.md5(bytes(len(content))).hexdigest()
    assert fails() == (
        f"{site.url}/files/{DEV}/{name}: the MD5 of what came is {found} and should be "
        f"{hashlib.md5(content).hexdigest()}; it is deleted, and the same command downloads it "
        "again"
    )
    assert list_files(tmp_path) == []
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert [seen.range for seen in site.requests(name)] == [None, None]


def test_redirects_are_followed_also_by_what_continues(site, call, fan, tmp_path):
    name, size = "dev_data_fan.zip", len(site.records[DEV]["dev_data_fan.zip"])
    moved = (302, {"Location": f"/files/{DEV}/{name}"})
    site.faults[name] = [moved, "drop", moved]
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert [seen.range for seen in site.requests(name)] == [
        None,
        None,
        *[f"bytes={size // 2}-"] * 2,
    ]


def test_a_redirect_in_a_circle_ends(site, fails, fan):
    site.faults[str(DEV)] = [(302, {"Location": f"/api/records/{DEV}"})] * 30
    assert fails() == f"{site.api}/{DEV}: the server answers 302 Found"


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_leaves_nothing_half_and_the_next_brings_the_rest(
    site, call, fan, tmp_path, number
):
    name, size = "eval_data_fan_train.zip", len(site.records[MORE]["eval_data_fan_train.zip"])
    site.faults[name] = ["hang"]
    script = (
        # A worker of xdist ignores SIGINT, and so would what it starts.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from dns_jax.data import zenodo; zenodo.main(sys.argv[2:], sys.argv[1])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, site.api, "--machines=fan", f"--out={tmp_path}/data"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert site.hanging.wait(20)
    (part,) = wait_for(lambda: [*(tmp_path / "data" / ".zenodo").glob(f".{name}.*.part")])
    wait_for(lambda: part.stat().st_size)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert (process.returncode, errors) == (-9, "")
    else:
        assert (process.returncode, errors) == (1, f"dns_jax: stopped; {GO_ON}\n")
    whole = [path for path in fan if path.startswith("dev_data")]
    assert list_files(tmp_path / "data", hidden=False) == sorted(whole)
    have = part.stat().st_size
    assert 0 < have <= size // 2

    site.released.set()
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert [seen.range for seen in site.requests(name)] == [None, f"bytes={have}-"]
    assert site.requests(name)[1].sent == size - have
    assert len(site.requests("dev_data_fan.zip")) == 1


def wait_for(condition):
    for _ in range(1000):
        if result := condition():
            return result
        threading.Event().wait(0.01)
    pytest.fail("waited in vain")


@pytest.mark.parametrize("moment", ["extract", "replace", "marker", "unlink"])
def test_stopped_while_unpacking_it_unpacks_again_without_a_download(
    site, call, fails, fan, tmp_path, monkeypatch, moment
):
    name = "dev_data_fan.zip"
    count = iter(range(1000))

    def stop_at(function, number, of_interest=lambda *_: True):
        def stopped(*args, **kwargs):
            if of_interest(*args) and next(count) == number:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return stopped

    with monkeypatch.context() as patch:
        if moment == "extract":
            patch.setattr(zipfile.ZipFile, "extract", stop_at(zipfile.ZipFile.extract, 3))
        elif moment == "replace":
            wavs = lambda old, _new: str(old).endswith(".wav")  # noqa: E731
            patch.setattr(archives.os, "replace", stop_at(os.replace, 3, wavs))
        elif moment == "marker":
            patch.setattr(zenodo, "write_text", stop_at(zenodo.write_text, 0))
        else:
            zips = lambda path, **_: path.suffix == ".zip"  # noqa: E731
            patch.setattr(Path, "unlink", stop_at(Path.unlink, 0, zips))
        assert fails() == f"stopped; {GO_ON}"
    there = list_files(tmp_path / "data", hidden=False)
    assert len(there) == {"extract": 0, "replace": 3}.get(moment, 10)
    assert all((tmp_path / "data" / path).read_bytes() == fan[path] for path in there)
    assert not [path for path in tmp_path.rglob("*.unpacking")]
    assert call()[0] == 0
    assert len(site.requests(name)) == 1


def test_what_a_killed_process_had_begun_to_unpack_is_cleared_away(site, call, fan, tmp_path):
    stale = tmp_path / "data" / "dev_data" / ".dev_data_fan.zip.unpacking" / "fan" / "train"
    stale.mkdir(parents=True)
    (stale / "section_00_source_train_normal_0000_x_0.wav").write_bytes(b"RIFF")
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)


# The disk


def set_free(monkeypatch, *free):
    """The disk says these numbers of free bytes, one after the other, the last one ever after."""
    said = list(free)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=said.pop(0) if said[1:] else said[0])
    )


def test_all_that_is_missing_has_to_fit_before_anything_comes(
    site, call, fails, fan, tmp_path, monkeypatch
):
    names = ("dev_data_fan.zip", "eval_data_fan_train.zip", "eval_data_fan_test.zip")
    sizes = [
        len(site.records[record][n]) for record, n in zip((DEV, MORE, TEST), names, strict=True)
    ]
    with monkeypatch.context() as patch:
        set_free(patch, sum(sizes) - 1)
        assert fails() == (
            f"the disk of {tmp_path}/data: {sum(sizes):,} bytes are needed, {sum(sizes) - 1:,} are "
            f"free; make room there and {GO_ON}"
        )
        assert not any(seen.name in names for seen in site.seen)
        site.faults[names[0]] = ["drop", (404, {})]
        set_free(patch, sum(sizes))
        assert "404" in fails()
        rest = sum(sizes) - sizes[0] // 2
        set_free(patch, rest - 1)
        assert f"{rest:,} bytes are needed, {rest - 1:,} are free" in fails()
    assert call()[0] == 0


def test_an_archive_has_to_fit_before_it_comes_and_before_it_is_unpacked(
    site, call, fails, fan, tmp_path, monkeypatch
):
    name, plenty = "dev_data_fan.zip", 1 << 40
    packed = len(site.records[DEV][name])
    unpacked = sum(len(content) for path, content in fan.items() if path.startswith("dev_data"))
    with monkeypatch.context() as patch:
        set_free(patch, plenty, packed - 1)
        assert f"{packed:,} bytes are needed, {packed - 1:,} are free" in fails()
        assert site.requests(name) == []
        set_free(patch, plenty, packed, unpacked - 1)
        assert f"{unpacked:,} bytes are needed, {unpacked - 1:,} are free" in fails()
    assert list_files(tmp_path / "data") == [f".zenodo/{name}"]
    assert call()[0] == 0
    assert len(site.requests(name)) == 1


class Full:
    """A file on a disk that has room for `room` more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(data[: self.room])
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_in_the_middle_of_a_download_keeps_what_came(
    site, call, fails, fan, tmp_path, monkeypatch
):
    name, size, room = "dev_data_fan.zip", len(site.records[DEV]["dev_data_fan.zip"]), 5000
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "open",
            lambda path, mode="r", **rest: (
                Full(opened(path, mode, **rest), room)
                if mode == "ab"
                else opened(path, mode, **rest)
            ),
        )
        assert fails() == (
            f"{tmp_path}/data: No space left on device; what has come so far is kept, {GO_ON}"
        )
    assert list_files(tmp_path, hidden=False) == []
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    _, second = site.requests(name)
    assert second.range == f"bytes={room}-"
    assert second.sent == size - room


def test_a_disk_that_is_full_while_unpacking_is_left_as_it_was(
    site, call, fails, fan, tmp_path, monkeypatch
):
    copied = iter(range(1000))

    def copy(_source, target, *_):
        target.write(b"RIFF")
        if next(copied) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", copy)
        assert "No space left on device; what has come so far is kept" in fails()
    assert list_files(tmp_path / "data") == [".zenodo/dev_data_fan.zip"]
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert len(site.requests("dev_data_fan.zip")) == 1


# Archives that are not what they should be


def make_member(name, mode=stat.S_IFREG | 0o644, **attributes):
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = mode << 16
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


WAV = "fan/train/section_00_source_train_normal_0000.wav"


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (make_member("/evil.wav"), "/evil.wav is no plain relative path"),
        (make_member("fan/../../evil.wav"), "fan/../../evil.wav is no plain relative path"),
        (make_member("../evil.wav"), "../evil.wav is no plain relative path"),
        (make_member("fan/./evil.wav"), "fan/./evil.wav is no plain relative path"),
        (make_member("fan//evil.wav"), "fan//evil.wav is no plain relative path"),
        (make_member("C:/evil.wav"), "C:/evil.wav is no plain relative path"),
        (make_member("fan\\..\\evil.wav"), "fan\\..\\evil.wav is no plain relative path"),
        (make_member("pump/train/evil.wav"), "pump/train/evil.wav lies outside fan/"),
        (make_member("fan"), "fan lies outside fan/"),
        (make_member("fan2/x.wav"), "fan2/x.wav lies outside fan/"),
        (make_member("evil.wav"), "evil.wav lies outside fan/"),
        (make_member("fan/l", stat.S_IFLNK | 0o777), "fan/l is a link or a device"),
        (make_member("fan/p", stat.S_IFIFO | 0o644), "fan/p is a link or a device"),
        (make_member(WAV), f"{WAV} is there twice"),
        (
            make_member("fan/x.wav", compress_type=zipfile.ZIP_BZIP2),
            "fan/x.wav is packed by method 12, may be 0 (stored) or 8 (deflated)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_archive_with_a_member_that_has_no_place_there_is_refused(
    site, fails, fan, tmp_path, member, fault
):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr(WAV, b"RIFF")
        if fault.endswith("twice"):
            with pytest.warns(UserWarning, match="Duplicate name"):
                zipped.writestr(member, b"other")
        else:
            zipped.writestr(member, b"/etc/passwd")
    assert_refused(site, fails, tmp_path, file.getvalue(), fault)


def assert_refused(site, fails, tmp_path, archive, fault):
    site.records[DEV]["dev_data_fan.zip"] = archive
    path = tmp_path / "data" / ".zenodo" / "dev_data_fan.zip"
    for _ in range(2):
        assert fails() == f"{path}: {fault}; nothing of it is unpacked, and the archive is kept"
        assert list_files(tmp_path) == ["data/.zenodo/dev_data_fan.zip"]
        assert not (tmp_path / "data" / "dev_data" / "fan").exists()
    assert len(site.requests("dev_data_fan.zip")) == 1


def test_an_encrypted_member_is_refused(site, fails, fan, tmp_path):
    archive = bytearray(make_zip({WAV: b"RIFF"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        archive[archive.index(signature) + offset] |= 1
    assert_refused(site, fails, tmp_path, bytes(archive), f"{WAV} is encrypted")


def test_an_archive_that_swells_beyond_reason_is_refused(site, fails, fan, tmp_path):
    archive = make_zip({WAV: bytes(2_000_000)})
    fault = f"its {len(archive):,} bytes would become 2,000,000"
    assert_refused(site, fails, tmp_path, archive, fault)


def test_a_damaged_clip_is_noticed_by_its_crc(site, fails, fan, tmp_path):
    file, content = io.BytesIO(), b"RIFF" * 10
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("fan/train/section_00_source_train_normal_0001.wav", b"good")
        zipped.writestr(WAV, content)
    archive = file.getvalue().replace(content, b"rIFF" * 10)
    assert_refused(site, fails, tmp_path, archive, f"Bad CRC-32 for file '{WAV}'")


def test_what_is_no_zip_file_is_refused(site, fails, fan, tmp_path):
    assert_refused(site, fails, tmp_path, b"PK, says the author", "File is not a zip file")


def test_a_broken_stream_inside_an_archive_is_refused(site, fails, fan, tmp_path):
    archive = bytearray(make_zip({WAV: b"RIFF" * 5}))
    archive[30 + len(WAV)] = 0xFF
    fault = "Error -3 while decompressing data: invalid block type"
    assert_refused(site, fails, tmp_path, bytes(archive), fault)


def test_an_archive_that_was_damaged_on_the_disk_comes_again(site, call, fails, fan, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        set_free(patch, 1 << 40, 1 << 40, 0)
        assert "bytes are needed, 0 are free" in fails()
    path = tmp_path / "data" / ".zenodo" / "dev_data_fan.zip"
    path.write_bytes(bytes(path.stat().st_size))
    assert call()[0] == 0
    assert_complete(tmp_path / "data", fan)
    assert len(site.requests("dev_data_fan.zip")) == 2


# Labels


@pytest.mark.parametrize("form", ["csv", "zip", "list", "zipped list"])
def test_labels_come_in_any_form_that_runs_read(site, call, fan, tmp_path, form):
    truth = make_truth("fan")
    rows = [
        f"section_03_{d}_test_{i:04d}.wav,section_03_{d}_test_{label}_{i:04d}.wav"
        for d in ("source", "target")
        for i, label in enumerate(("normal", "anomaly"))
    ]
    listed = {"eval_data_list_2021.csv": "\n".join(["fan", *rows]).encode()}
    site.records[TRUTH] = {
        "csv": {"README.md": b"read me", **truth},
        "zip": {"README.md": b"", "y-kawagu/evaluator.zip": make_zip(truth)},
        "list": listed,
        "zipped list": {"list.ZIP": make_zip({"a/b/" + name: listed[name] for name in listed})},
    }[form]
    if form == "zip":  # a key may be a path, as for what Zenodo takes from GitHub
        site.records[TRUTH]["evaluator.zip"] = site.records[TRUTH].pop("y-kawagu/evaluator.zip")
        text = site.describe(TRUTH).replace(b'"evaluator.zip"', b'"y-kawagu/evaluator.zip"')
        site.faults[str(TRUTH)] = [text]
    status, printed, _ = call()
    assert status == 0
    assert_complete(tmp_path / "data", fan)
    expected = truth if form in ("csv", "zip") else listed
    folder = tmp_path / "data" / "ground_truth_data"
    assert {name: (folder / name).read_bytes() for name in list_files(folder)} == expected
    assert f"labels: {len(expected)} files in {folder}" in printed
    assert "README.md" not in [seen.name for seen in site.seen]


def test_a_record_without_labels_is_reported_when_the_recordings_are_there(
    site, call, fails, fan, tmp_path
):
    site.records[TRUTH] = {"README.md": b"", "other.zip": make_zip({"truth.txt": b"fan,0"})}
    folder = tmp_path / "data" / "ground_truth_data"
    assert fails() == (
        f"{site.api}/{TRUTH}: no ground_truth_*_test.csv or eval_data_list*.csv in its files "
        f"(README.md, other.zip); the recordings are complete, put their labels into {folder} by "
        "hand"
    )
    folder.mkdir()
    for name, content in make_truth("fan").items():
        (folder / name).write_bytes(content)
    seen = len(site.seen)
    assert call()[0] == 0
    assert len(site.seen) == seen
    assert_complete(tmp_path / "data", fan)


def test_clips_that_the_record_does_not_label_are_counted_and_one_named(site, fails, fan, tmp_path):
    truth = make_truth("fan")
    del truth["ground_truth_fan_section_03_target_test.csv"]
    site.records[TRUTH] = truth
    data = tmp_path / "data"
    assert fails() == (
        f"2 of 20 clips have no label in {data}/ground_truth_data, the first "
        f"{data}/eval_data/fan/target_test/section_03_target_test_0000.wav"
    )


def test_labels_of_ones_own_are_not_overwritten(site, fails, fan, tmp_path):
    path = tmp_path / "data" / "ground_truth_data" / "ground_truth_fan_section_03_source_test.csv"
    path.parent.mkdir(parents=True)
    path.write_text("section_03_source_test_0000.wav,1\n")
    assert fails() == (
        f"{path} is not the one of {site.api}/{TRUTH}, yet clips lack a label; move it away"
    )
    assert path.read_text() == "section_03_source_test_0000.wav,1\n"


def test_other_files_in_the_directory_are_mentioned(site, call, fan, tmp_path):
    path = tmp_path / "data" / "dev_data" / "fan" / "train" / "take 1.wav"
    path.parent.mkdir(parents=True)
    path.touch()
    status, printed, _ = call()
    assert status == 0
    assert printed[-2].startswith(f"1 files there are no clips, the first {path}: name: ")


def test_the_evaluators_own_labels_fit_the_clips_that_they_name(site, call, realdata, tmp_path):
    folder = realdata / "dcase2021_scores" / "official_evaluator_groundtruth" / "ground_truth_data"
    truth = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert len(truth) == 42
    site.add("gearbox")
    members = {}
    for name, rows in truth.items():
        if found := re.fullmatch(r"ground_truth_gearbox_section_0\d_(.*_test)\.csv", name):
            clips = [row.split(",")[0] for row in rows.decode().split()]
            members |= {f"gearbox/{found[1]}/{clip}": b"" for clip in clips}
    site.records[TEST]["eval_data_gearbox_test.zip"] = make_zip(members)
    site.records[TRUTH] = {"truth.zip": make_zip({f"data/{name}": truth[name] for name in truth})}
    status, printed, _ = call("--machines=gearbox")
    assert status == 0
    total, anomalous = 234 + 286 + 252 + 234 + 210 + 212, 104 + 182 + 108 + 130 + 102 + 102
    assert f"{total + 4:,} test clips, sections 0, 3, 4, 5, all labelled" in printed[-1]
    assert printed[-1].endswith(f"({anomalous + 2} anomalous)")
