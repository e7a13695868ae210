"""The page: what it shows, to whom, and that no other file can be had from it."""

import http.client
import json
import math
import os
import re
import shutil
import socket
import threading
import time

import pytest
from fake_detector import write_sound
from hypothesis import given, settings
from hypothesis import strategies as st

from dns_jax.operation import page as page_module
from dns_jax.operation.board import LAST, Board
from dns_jax.operation.page import PageServer, is_loopback
from dns_jax.operation.ranking import Row, rank, write_ranking
from dns_jax.operation.sounds import find_range, open_sound

EVIL = "<img src=x onerror=document.title='owned'>&amp;\"'.wav"


def make_row(path, id_=1, machine="fan", section=0, score=0.2, threshold=0.1, arrived=1.7e9):
    about = os.lstat(path)
    return Row(
        id=id_,
        machine=machine,
        section=section,
        domain="source",
        clip=os.path.basename(path),
        path=str(path),
        size=about.st_size,
        mtime_ns=about.st_mtime_ns,
        arrived=arrived,
        score=score,
        threshold=threshold,
    )


class Site:
    def __init__(self, folder, **where):
        self.folder = folder
        self.board = Board(["fan", "pump"])
        self.server = PageServer(self.board, str(folder), **where)
        self.port = self.server.server_port

    def ask(self, path, method="GET", host="localhost", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": host, **headers}.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def status(self, path, **how):
        return self.ask(path, **how)[0].status

    def ask_raw(self, data):
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer


@pytest.fixture
def folder(tmp_path):
    """A watched folder with a recording, and a secret beside it."""
    write_sound(tmp_path / "watched" / "fan" / "a.wav", 0)
    (tmp_path / "secret.wav").write_text("secret")
    return tmp_path / "watched"


@pytest.fixture
def site(folder):
    site = Site(folder)
    site.board.show("fan", [make_row(folder / "fan" / "a.wav", 7)], 5)
    yield site
    site.server.close()


def test_the_page_stands_alone_and_may_run_nothing_but_its_own_script(site):
    answer, content = site.ask("/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    references = re.findall(rb'(?:src|href)="([^"]*)"', content)
    assert sorted(references) == [b"/page.css", b"/page.js", b"data:,"]
    assert b"<script>" not in content
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    for name in ("/page.css", "/page.js"):
        answer, content = site.ask(name)
        assert answer.status == 200
        assert b"http" not in content.replace(b"http://www.w3.org/2000/svg", b"")


def test_every_answer_forbids_guessing_framing_and_keeping(site):
    for path in ("/", "/ranking.json", "/metrics", "/sound/7", "/sound/8", "/nothing"):
        answer, _ = site.ask(path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_sound_is_what_the_file_holds(site, folder):
    whole = (folder / "fan" / "a.wav").read_bytes()
    answer, content = site.ask("/sound/7")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "audio/wav")
    assert content == whole
    answer, content = site.ask("/sound/7", method="HEAD")
    assert (answer.status, content) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(whole))
    flac = write_sound(folder / "fan" / "b.FLAC", 1)
    site.board.show("fan", [make_row(flac, 8)], 1)
    answer, content = site.ask("/sound/8")
    assert answer.headers["Content-Type"] == "audio/flac"
    assert content == flac.read_bytes()


def test_a_player_can_seek(site, folder):
    whole = (folder / "fan" / "a.wav").read_bytes()
    for said, part in (("0-", whole), ("10-19", whole[10:20]), ("-5", whole[-5:])):
        answer, content = site.ask("/sound/7", Range=f"bytes={said}")
        assert (answer.status, content) == (206, part)
        start = whole.index(part) if said != "-5" else len(whole) - 5
        end = start + len(part) - 1
        assert answer.headers["Content-Range"] == f"bytes {start}-{end}/{len(whole)}"
    answer, _ = site.ask("/sound/7", Range=f"bytes={len(whole)}-")
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(whole)}"
    for said in ("bytes=1-2,4-5", "lines=1-2", "bytes=5-1", "bytes=-", "bytes=x-"):
        answer, content = site.ask("/sound/7", Range=said)
        assert (answer.status, content) == (200, whole)


@given(st.from_regex(r"bytes=[0-9]{0,3}-[0-9]{0,3}", fullmatch=True), st.integers(0, 300))
@settings(deadline=None)
def test_a_part_always_lies_in_the_file(header, size):
    try:
        part = find_range(header, size)
    except ValueError:
        return
    assert part is None or 0 <= part[0] < part[1] <= size


PATHS = [
    "/sound/../../secret.wav",
    "/sound/..%2f..%2fsecret.wav",
    "/sound/%2e%2e/%2e%2e/etc/passwd",
    "/sound//etc/passwd",
    "/sound/7/../../../secret.wav",
    "/sound/7%00.wav",
    "/sound/-1",
    "/sound/7?path=/etc/passwd&x=../..",
    "/sound/٧",
    "/sound/99999999999999999999999999",
    "/sound/fan/a.wav",
    "/../secret.wav",
    "/page.py",
    "//etc/passwd",
    "http://localhost/sound/../secret.wav",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..\\..\\secret.wav",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_file(site, path):
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    head, _, content = site.ask_raw(request).partition(b"\r\n\r\n")
    if path.startswith("/sound/7?"):  # what stands behind a question mark is passed over
        assert content == (site.folder / "fan" / "a.wav").read_bytes()
        return
    assert b" 404 " in head.splitlines()[0] or b" 400 " in head.splitlines()[0]
    assert b"secret" not in content
    assert b"root:" not in content


@pytest.fixture(scope="module")
def lasting_site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lasting")
    write_sound(folder / "watched" / "a.wav", 0)
    (folder / "secret.wav").write_text("secret")
    site = Site(folder / "watched")
    site.board.show("fan", [make_row(folder / "watched" / "a.wav", 7)], 1)
    yield site
    site.server.close()


PIECES = st.sampled_from(["..", "/", "%2f", "%2e", "sound", "secret.wav", "7", "\\", "?", "%", " "])


@given(st.lists(PIECES | st.text(st.characters(codec="latin-1"), max_size=3), max_size=9))
@settings(max_examples=100, deadline=None)
def test_no_request_at_all_gets_what_lies_outside(lasting_site, pieces):
    request = f"GET /{''.join(pieces)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1")
    answer = lasting_site.ask_raw(request)
    assert b"secret" not in answer
    assert b"Traceback" not in answer
    page = json.loads(lasting_site.ask("/ranking.json")[1])
    assert page["messages"] == []


def outside_paths(folder):
    """Rows whose path would lead out of the watched folder."""
    secret = folder.parent / "secret.wav"
    yield "outside", str(secret)
    yield "dots", f"{folder}/fan/../../secret.wav"
    yield "relative", "../secret.wav"
    yield "root", "/etc/passwd"
    yield "beside", f"{folder}x/../secret.wav"
    yield "empty", ""
    yield "folder", str(folder)
    yield "zero", f"{folder}/fan/a.wav\0"


def test_a_path_that_leads_out_is_not_opened(folder):
    about = os.stat(folder.parent / "secret.wav")
    row = make_row(folder / "fan" / "a.wav")
    opened = open_sound(str(folder), row)
    assert opened is not None
    opened.close()
    for name, path in outside_paths(folder):
        changed = row._replace(path=path, size=about.st_size, mtime_ns=about.st_mtime_ns)
        try:
            opened = open_sound(str(folder), changed)
        except (OSError, ValueError):
            opened = None
        assert opened is None, name


def test_a_link_that_is_swapped_in_is_not_followed(site, folder):
    secret, sound = folder.parent / "secret.wav", folder / "fan" / "a.wav"
    shutil.copy2(sound, folder.parent / "copy.wav")  # the same size and time of change
    sound.unlink()
    for target in (secret, folder.parent / "copy.wav"):
        sound.symlink_to(target)
        answer, content = site.ask("/sound/7")
        assert answer.status == 404
        assert b"secret" not in content
        sound.unlink()
    shutil.rmtree(folder / "fan")
    (folder.parent / "elsewhere").mkdir()
    shutil.copy2(folder.parent / "copy.wav", folder.parent / "elsewhere" / "a.wav")
    (folder / "fan").symlink_to(folder.parent / "elsewhere")
    assert site.status("/sound/7") == 404
    (folder / "fan").unlink()
    shutil.copytree(folder.parent / "elsewhere", folder / "fan")
    assert site.status("/sound/7") == 200


def test_a_sound_that_is_gone_changed_or_a_pipe_is_not_there(site, folder):
    sound = folder / "fan" / "a.wav"
    about = os.stat(sound)
    os.utime(sound, ns=(1, 1))
    assert site.status("/sound/7") == 404
    os.utime(sound, ns=(about.st_mtime_ns, about.st_mtime_ns))
    assert site.status("/sound/7") == 200
    sound.unlink()
    assert site.status("/sound/7") == 404
    os.mkfifo(sound)
    assert site.status("/sound/7") == 404  # and the thread does not wait for a writer


def test_only_get_and_head_are_answered(site):
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"):
        answer, content = site.ask("/", method=method)
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"
        assert method.encode() not in content


def test_a_page_of_another_site_gets_nothing_by_a_name_of_its_own(site):
    for host in ("evil.example", f"evil.example:{site.port}", "localhost.evil.example", "", None):
        assert site.status("/ranking.json", host=host) == 421
    for host in ("localhost", f"LOCALHOST:{site.port}", "127.0.0.1:1", f"[::1]:{site.port}"):
        assert site.status("/ranking.json", host=host) == 200
    assert site.status("/", host="[") == 421


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.0.1", False),
        ("example.org", False),
    ],
)
def test_only_an_address_that_this_host_alone_reaches_needs_no_token(name, expected):
    assert is_loopback(name) is expected


def test_elsewhere_every_request_needs_the_token(folder):
    site = Site(folder, bind="0.0.0.0")
    site.board.show("fan", [make_row(folder / "fan" / "a.wav", 7)], 1)
    try:
        token = site.server.token
        assert len(token) >= 32
        assert site.server.url == f"http://0.0.0.0:{site.port}/?token={token}"
        assert Site.status(site, "/") == 401
        for path in ("/", "/ranking.json", "/metrics", "/sound/7", "/page.js", "/nothing"):
            assert site.status(path) == 401
            assert site.status(f"{path}?token={token[:-1]}") == 401
            assert site.status(f"{path}?token=") == 401
            assert site.status(path, Authorization=f"Bearer {token}x") == 401
            assert site.status(path, Authorization=token) == 401
            assert site.status(path, Cookie="dns_jax_1=" + token) == 401
            assert site.status(path, Cookie="\xff;;=") == 401
        answer, _ = site.ask("/", Cookie="x")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/ranking.json", "/metrics", "/sound/7"):
            assert site.status(path, Authorization=f"Bearer {token}") == 200
            assert site.status(path, host="monitor.example", Authorization=f"bearer {token}") == 200
        answer, _ = site.ask(f"/?token={token}")
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        cookie = answer.headers["Set-Cookie"]
        assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/")
        assert site.status("/", Cookie=cookie.partition(";")[0]) == 200
    finally:
        site.server.close()
    again = PageServer(Board(["fan"]), str(folder), bind="0.0.0.0")
    assert again.token != token
    again.close()


def test_a_request_that_is_too_long_is_refused(site):
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 200 " in site.ask_raw(head + b"X: " + b"y" * 4000 + b"\r\n\r\n").splitlines()[0]
    assert b" 431 " in site.ask_raw(head + b"X: " + b"y" * 8200).splitlines()[0]
    assert b" 431 " in site.ask_raw(b"G" * 9000).splitlines()[0]
    many = b"".join(b"A%d: b\r\n" % number for number in range(101))
    assert b" 431 " in site.ask_raw(head + many + b"\r\n").splitlines()[0]


@pytest.mark.parametrize(
    "data",
    [
        *(b"\r\n\r\n", b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"),
        *(b"GET / x\r\n\r\n", b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ],
)
def test_nonsense_is_answered_or_dropped_and_the_page_lives(site, data):
    answer = site.ask_raw(data)
    assert b"Traceback" not in answer
    assert not answer or re.search(rb"\b(4\d\d|505) ", answer)
    assert site.status("/") == 200
    assert json.loads(site.ask("/ranking.json")[1])["messages"] == []


def test_too_many_connections_are_closed_and_a_slow_one_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(page_module, "PATIENCE", 1.0)
    site = Site(folder)
    held = []
    try:
        for _ in range(page_module.CONNECTIONS):
            held.append(socket.create_connection(("127.0.0.1", site.port), timeout=20))
            held[-1].sendall(b"GET / HT")
        end = time.monotonic() + 10
        while site.server._free._value and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises((http.client.HTTPException, OSError)):
            site.ask("/")
        for connection in held:
            assert connection.recv(10) == b""  # the head did not come in time
        while site.server._free._value < page_module.CONNECTIONS and time.monotonic() < end:
            time.sleep(0.01)
        assert site.status("/") == 200
    finally:
        for connection in held:
            connection.close()
        site.server.close()


def test_a_client_that_goes_away_leaves_no_trace(site, folder, capfd):
    big = folder / "fan" / "big.wav"
    big.write_bytes(bytes(8_000_000))
    site.board.show("fan", [make_row(big, 9)], 1)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", site.port)) as connection:
            connection.sendall(b"GET /sound/9 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.recv(10)
    end = time.monotonic() + 20
    while site.server._free._value < page_module.CONNECTIONS:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert site.status("/") == 200
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_the_page_itself_is_one_message(site, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(site.board, "to_metrics", lambda: 1 / 0)
        site.ask_raw(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    page = json.loads(site.ask("/ranking.json")[1])
    assert [m["text"] for m in page["messages"]] == [
        "the page could not answer (ZeroDivisionError: division by zero)"
    ]
    assert capfd.readouterr() == ("", "")


# --- the board


def test_the_ranking_is_by_score_over_threshold(tmp_path, folder):
    row = make_row(folder / "fan" / "a.wav")
    scores = {1: 0.1, 2: math.nan, 3: 0.4, 4: 0.1, 5: math.inf, 6: 0.15}
    rows = [row._replace(id=id_, score=score) for id_, score in scores.items()]
    rows.append(row._replace(id=7, score=9.0, threshold=30.0))
    rows.append(row._replace(id=8, threshold=math.nan))
    assert [row.id for row in rank(rows)] == [5, 3, 6, 1, 4, 7, 2, 8]
    rows[0] = rows[0]._replace(clip='a,"b"\n\udcff.wav')
    write_ranking(rows, tmp_path / "ranking.csv")
    lines = (tmp_path / "ranking.csv").read_text().splitlines()
    assert lines[0] == "machine,section,domain,clip,score,threshold,ratio,arrived,id,path"
    assert [int(line.split(",")[-2]) for line in lines[1:]] == [5, 3, 6, 1, 4, 7, 2, 8]
    assert lines[4].startswith('fan,0,source,"a,""b""\\n\\udcff.wav",0.1,0.1,1.0,')
    assert lines[7].startswith("fan,0,source,a.wav,,0.1,,")


def test_the_json_has_what_is_shown_and_no_number_that_json_lacks(site, folder):
    row = make_row(folder / "fan" / "a.wav")
    site.board.show("fan", [row, row._replace(id=2, score=math.nan, clip="\udcff\n.wav")], 9)
    site.board.count("scored", "fan")
    site.board.count("scored", "pump")
    site.board.count("refused", "")
    site.board.tell("something")
    site.board.set_trouble("the disk is full")
    page = json.loads(site.ask("/ranking.json")[1], parse_constant=pytest.fail)
    assert (page["scored"], page["refused"], page["trouble"]) == (2, 1, "the disk is full")
    fan, pump = page["machines"]
    assert (fan["name"], fan["held"], pump["rows"]) == ("fan", 9, [])
    assert [(r["id"], r["score"], r["ratio"]) for r in fan["rows"]] == [
        (1, 0.2, 2.0),
        (2, None, None),
    ]
    assert fan["rows"][1]["clip"] == "\\udcff\\n.wav"


def test_how_long_the_oldest_waits_goes_on_while_a_recording_is_scored():
    now = [100.0]
    board = Board(["fan"], clock=lambda: now[0])
    assert json.loads(board.to_json())["oldest"] == 0
    board.wait(3, 5.0)
    now[0] += 2
    page = json.loads(board.to_json())
    assert (page["waiting"], page["oldest"]) == (3, 7.0)
    board.wait(0, 0.0)
    now[0] += 2
    assert json.loads(board.to_json())["oldest"] == 0


def test_a_reader_never_sees_half_of_a_change():
    board, stop, seen = Board(["a", "b"]), threading.Event(), set()

    def read():
        while not stop.is_set():
            page = json.loads(board.to_json())
            seen.add(page["machines"][0]["held"] - len(page["machines"][0]["rows"]))
            board.to_metrics()

    reader = threading.Thread(target=read)
    reader.start()
    row = Row(1, "a", 0, "source", "c", "/c", 1, 1, 1.0, 1.0, 1.0)
    for number in range(300):
        board.show("a", [row] * (number % 5), number % 5)
        board.count("refused", f"machine {number}")
        board.tell(str(number))
    stop.set()
    reader.join()
    assert seen == {0}


# --- metrics: the rules of prometheus.io/docs/instrumenting/exposition_formats, read anew

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)?\}})? (\S+)")


def parse_metrics(text):
    """Return {(name, labels): value} and {name: type}; whatever breaks a rule fails."""
    assert text.endswith("\n")
    samples, types, helped, current = {}, {}, set(), None
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("#"):
            _, kind, name, rest = line.split(" ", 3)
            assert re.fullmatch(NAME, name)
            if kind == "HELP":
                assert name not in helped
                helped.add(name)
            else:
                assert kind == "TYPE"
                assert name not in types  # one TYPE line, before the samples
                assert rest in ("counter", "gauge", "histogram")
                types[name], current = rest, name
            continue
        name, labels, value = SAMPLE.fullmatch(line).groups()
        base = re.sub("_(bucket|sum|count)$", "", name) if types[current] == "histogram" else name
        assert base == current, "the lines of a metric are one group"
        assert (name, labels) not in samples
        samples[name, labels] = float(value)  # also NaN, +Inf, -Inf
    assert helped == set(types)
    return samples, types


def test_the_metrics_keep_the_rules_of_the_text_format(site, folder):
    evil = 'a"b\\c\nd{}=,\udcff'
    board = Board(["fan", evil])
    row = make_row(folder / "fan" / "a.wav")
    board.show("fan", [row, row._replace(id=2, score=math.nan), row._replace(section=1)], 3)
    board.show(evil, [row._replace(machine=evil, threshold=math.inf)], 1)
    for name, machine in (
        ("scored", evil),
        ("scored", "fan"),
        ("refused", ""),
        ("duplicate", evil),
    ):
        board.count(name, machine)
    board.count("scored", "fan")
    for seconds in (0.05, 0.1, 0.3, 7.0, 99999.0):
        board.observe(seconds)
    board.wait(4, 0.0)
    samples, types = parse_metrics(board.to_metrics().decode())
    escaped = 'a\\"b\\\\c\\nd{}=,?'
    get = {
        (name.removeprefix("dns_jax_monitor_"), labels): x for (name, labels), x in samples.items()
    }
    assert get["scored_total", 'machine="fan"'] == 2
    assert get["scored_total", f'machine="{escaped}"'] == 1
    assert get["refused_total", 'machine=""'] == 1
    assert get["anomalous_total", 'machine="fan"'] == 0
    assert get["duplicate_total", f'machine="{escaped}"'] == 1
    assert get["waiting", None] == 4
    assert get["trouble", None] == 0
    assert get["held", 'machine="fan"'] == 3
    assert math.isnan(get["score", 'machine="fan",section="0"'])
    assert get["score", 'machine="fan",section="1"'] == 0.2
    assert get["threshold", f'machine="{escaped}",section="0"'] == math.inf
    buckets = [(labels, x) for (name, labels), x in get.items() if name == "latency_seconds_bucket"]
    assert [x for _, x in buckets] == sorted(x for _, x in buckets)
    assert dict(buckets)['le="0.1"'] == 2  # a bound is part of its bucket
    assert buckets[-1] == ('le="+Inf"', 5)
    assert get["latency_seconds_count", None] == 5
    assert get["latency_seconds_sum", None] == pytest.approx(100006.45)
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in types.items())
    answer, _ = site.ask("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


# --- in a browser


def go(browser, url, width=1200):
    browser.complaints.clear()
    browser.send(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    browser.send("Page.navigate", url=url)
    browser.wait("document.body && document.body.dataset.ready === 'yes'")


def fill(site, folder):
    """Show thirty recordings of two machines, one of an evil name the most anomalous."""
    rows = []
    for number in range(30):
        name = EVIL if number == 4 else f"{number}.wav"
        path = write_sound(folder / "fan" / name, number, seconds=1.0)
        score = 0.9 if number == 4 else 0.05 + 0.001 * number
        rows.append(
            make_row(path, 100 + number, section=number % 2, score=score, arrived=1.7e9 + number)
        )
    site.board.show("fan", rows, 40)
    site.board.show("pump", [rows[3]._replace(id=200, machine="pump", score=math.nan)], 1)
    return rows


def test_the_page_shows_the_ranking_and_the_trend_and_names_are_only_names(site, folder, browser):
    fill(site, folder)
    site.board.tell(f"{EVIL} is refused")
    go(browser, site.server.url)
    cells = browser.evaluate(
        "[...document.querySelectorAll('#ranking tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert len(cells) == 31
    assert cells[0][1:5] == [EVIL, "fan", "0", "source"]
    assert cells[0][6:] == ["0.9", "0.1", "9"]
    assert cells[-1][6:] == ["-", "0.1", "-"]
    assert browser.evaluate("document.querySelector('#ranking tr').className") == "anomalous"
    titles = "[...document.querySelectorAll('#trends h3')].map(h => h.textContent)"
    assert browser.evaluate(titles) == ["fan, section 0", "fan, section 1", "pump, section 1"]
    charts = "[...document.querySelectorAll('#trends svg')]"
    dots = browser.evaluate(f"{charts}.map(chart => chart.querySelectorAll('circle').length)")
    assert dots == [15, 15, 0]
    assert browser.evaluate("document.querySelectorAll('#trends .threshold').length") == 3
    assert browser.evaluate("document.querySelectorAll('#trends circle.anomalous').length") == 1
    assert f"{EVIL} is refused" in browser.evaluate(
        "document.getElementById('messages').textContent"
    )
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.title") == "Anomalous sounds, as they come"
    assert browser.complaints == []


def test_the_machine_can_be_chosen(site, folder, browser):
    fill(site, folder)
    go(browser, site.server.url)
    browser.evaluate(
        "{const m = document.getElementById('machine'); m.value = 'pump';"
        "m.dispatchEvent(new Event('change'));}"
    )
    assert browser.evaluate("document.querySelectorAll('#ranking tr').length") == 1


def test_a_sound_is_played_and_another_place_in_it_found(site, folder, browser):
    fill(site, folder)
    go(browser, site.server.url)
    browser.evaluate("document.querySelector('#ranking button').click()")
    browser.wait("document.getElementById('audio').currentTime > 0")
    assert browser.evaluate("document.getElementById('playing').textContent") == EVIL
    assert browser.evaluate("document.getElementById('audio').src").endswith("/sound/104")
    assert browser.evaluate("document.getElementById('audio').duration") == 1
    browser.evaluate("document.getElementById('audio').currentTime = 0.8")
    browser.wait("document.getElementById('audio').ended")
    assert browser.complaints == []
    (folder / "fan" / "29.wav").unlink()
    browser.evaluate("document.querySelectorAll('#ranking button')[1].click()")
    browser.wait("document.getElementById('playing').textContent.includes('cannot be played')")


def test_the_page_follows_what_happens(site, folder, browser):
    rows = fill(site, folder)
    go(browser, site.server.url)
    site.board.count("scored", "fan")
    site.board.set_trouble("pool.sqlite: database or disk is full")
    site.board.show("fan", [*rows, rows[0]._replace(id=500, clip="new.wav", score=2.0)], 41)
    browser.wait("document.querySelector('#ranking tr').cells[1].textContent === 'new.wav'")
    state = browser.evaluate("document.getElementById('state').textContent")
    assert state.startswith("Since the start: 1 scored,")
    assert "In F: fan 41, pump 1." in state
    trouble = "document.getElementById('trouble').textContent"
    assert browser.evaluate(trouble) == "pool.sqlite: database or disk is full"
    site.server.close()
    browser.wait(f"{trouble}.startsWith('This page is not up to date')")
    site.server = PageServer(site.board, str(folder))


def test_the_page_fits_a_phone(site, folder, browser):
    fill(site, folder)
    go(browser, site.server.url, width=390)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390


def test_a_browser_comes_in_with_the_token_once_and_stays_in(folder, browser):
    site = Site(folder, bind="0.0.0.0")
    fill(site, folder)
    try:
        go(browser, site.server.url.replace("0.0.0.0", "127.0.0.1"))
        assert browser.evaluate("location.href") == f"http://127.0.0.1:{site.port}/"
        assert browser.evaluate("document.querySelectorAll('#ranking tr').length") == 31
        assert browser.evaluate("document.cookie") == ""  # no script reads it
    finally:
        site.server.close()


def test_the_board_does_not_grow():
    board = Board(["fan"])
    for number in range(1000):
        board.tell(str(number))
        board.observe(number)
    assert len(json.loads(board.to_json())["messages"]) == 20
    assert LAST == 500
