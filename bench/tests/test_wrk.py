"""The load generator of the HTTP benchmark: command line, output, and samples that are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.http import worker as http_worker
from bench.http import wrk
from bench.http.environment import variables
from bench.plan.contenders import parse as parse_contender
from bench.plan.http import http_cases
from bench.workers.protocol import Order

ROOT = Path(__file__).resolve().parent.parent.parent
PREAMBLE = """Running 2s test @ http://127.0.0.1:8000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    14.05ms   12.32ms 188.04ms   96.10%
    Req/Sec     2.51k   316.51     2.89k    80.00%
"""
SUMMARY = (
    '{"requests": 5004, "duration_us": 2003012, "p50_us": 12104.0, "p99_us": 73650.0, "errors": '
    '{"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0}}\n'
)


def test_a_summary_becomes_numbers() -> None:
    found = wrk.parse(PREAMBLE + SUMMARY)
    assert found == wrk.Measured(5004, 2.003012, 12.104, 73.65, {})
    assert found.failure is None


def test_answers_with_an_error_status_are_a_failure() -> None:
    found = wrk.parse(SUMMARY.replace('"status": 0', '"status": 7').replace('ut": 0', 'ut": 1'))
    assert found.failure == "wrk counted errors beside 5004 answers: 7 of status, 1 of timeout"


def test_no_answer_at_all_is_a_failure() -> None:
    found = wrk.parse(SUMMARY.replace("5004", "0"))
    assert found.failure == "no answer within 2.0 s"


@pytest.mark.parametrize("output", ["", PREAMBLE])
def test_output_without_a_summary_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match="wrk printed no summary"):
        wrk.parse(output)


def test_the_command_line_names_the_script_and_the_headers() -> None:
    words = wrk.command("http://127.0.0.1:1/", {"a": "b: c"}, connections=32, seconds=2)
    assert words[0] == "wrk"
    assert words[-3:] == ["--header", "a: b: c", "http://127.0.0.1:1/"]
    assert Path(words[words.index("--script") + 1]).is_file()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.headers["x-name"] == "good" else 500)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    """Of a server that answers 200 where the header x-name is "good"."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.parametrize(("name", "is_good"), [("good", True), ("bad", False)])
def test_a_real_wrk_is_understood(url: str, name: str, is_good: bool) -> None:
    line = wrk.command(url, {"x-name": name}, connections=2, seconds=1)
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=20)
    found = wrk.parse(done.stdout)
    assert found.requests > 0
    assert 0.9 < found.seconds < 3
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.errors == ({} if is_good else {"status": found.requests})


# ---------------------------------------------------------------- cases and worker


def test_cases_are_distinct_and_name_who_takes_part() -> None:
    cases = http_cases()
    assert len({case.id for case in cases}) == len(cases)
    for case in cases:
        assert all(parse_contender(name) for name in case.contenders)
        assert isinstance(case.workload["window_s"], int)  # wrk takes whole seconds only
        for target in case.targets:
            assert {target.contender, *target.against} <= set(case.contenders)
    assert any(case.targets for case in cases)


def test_haproxy_gets_files_and_ports_of_its_own(tmp_path: Path) -> None:
    assert variables("python", "default", tmp_path) == {}
    found = variables("haproxy", "throughput", tmp_path)
    assert found["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    paths = [value for value in found.values() if "/" in value]
    assert len(paths) == 5
    assert all(Path(path).is_relative_to(tmp_path) for path in paths)


def test_cases_of_one_environment_share_a_process() -> None:
    haproxy, default, python = http_cases()
    assert http_worker.groups((haproxy, default, haproxy, python)) == [
        (haproxy, haproxy),
        (default,),
        (python,),
    ]


def test_a_sample_that_did_not_come_is_sent_with_the_reason() -> None:
    case = http_cases()[0]
    first, *others = case.contenders
    samples = list(http_worker.missing(case, 2, {(first, 0)}, "it ended"))
    assert {(sample.contender, sample.round) for sample in samples} == {
        (first, 1),
        *((name, number) for name in others for number in range(2)),
    }
    assert {sample.error for sample in samples} == {"it ended"}


def test_without_wrk_every_sample_says_how_to_get_it(tmp_path: Path) -> None:
    case = http_cases()[0]
    done = subprocess.run(
        [sys.executable, "-m", "bench.http.worker"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        input=Order((case,), 2, 0.4).to_json(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.count("wrk is not installed: apt-get install wrk") == 2 * len(
        case.contenders
    )
