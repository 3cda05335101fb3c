"""The report of a run and the documentation's page: complete, self-contained, reproducible."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.growth import routing
from bench.plan.plans import full_plan
from bench.results import stats
from bench.results.costs import cost_rows, costs_of
from bench.results.run import CaseResult, Run, Sample, Target
from bench.show import lanes, pictures, wording
from bench.show import page as docs_page
from bench.show.page import SHOWN, write_docs
from bench.show.plot_style import GENERATED
from bench.show.report import write_report
from bench.show.table import case_table, targets_table
from bench.tests.runs import FAILURE, OURS, OVER_GRPC, new_run

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Reads a page, and holds it to what HTML asks of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href", "srcset", "data"):
                self.links.append(value or "")
            elif name == "aria-label":
                self.labels.append(value or "")

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run() -> Run:
    return new_run()


@pytest.fixture(scope="module")
def written(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text())


# ------------------------------------------------------------ the HTML report


def test_nothing_is_loaded_from_elsewhere(page: Page, written: Path) -> None:
    assert all(link.startswith("#") for link in page.links)
    text = written.read_text()
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_links_and_plots_point_to_what_is_there(page: Page, written: Path) -> None:
    assert len(set(page.ids)) == len(page.ids)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', written.read_text()))
    assert used
    assert used <= set(page.ids)


def test_every_case_and_contender_is_shown(page: Page, run: Run) -> None:
    for result in run.cases:
        assert result.case.id in page.text
        for contender in result.case.contenders:
            assert contender in page.text


def test_errors_are_shown_with_their_text_and_escaped(page: Page, written: Path) -> None:
    assert page.text.count(FAILURE) >= 2
    assert "<b>result" not in written.read_text()


def test_it_opens_with_bias_and_says_where_it_was_made(page: Page, run: Run) -> None:
    opening = page.text.index("Read this first")
    assert opening < page.text.index("Targets")
    for words in ("share its cores (2)", "upper bounds", "loopback", "closed loop", "authors"):
        assert opening < page.text.index(words) < page.text.index(run.commit)
    for words in (run.command, run.started, "Example & Co", "A=1", "ray 2.60.0", "13 min 21 s"):
        assert words in page.text


def test_targets_say_in_words_whether_they_are_met(page: Page) -> None:
    rows = {title: page.text.split(title)[1] for title in ("7 × throughput", "p50 a hundredth")}
    assert re.search(r"met|not met", rows["7 × throughput"])[0] == "met"  # type: ignore[index]
    assert re.search(r"met|not met", rows["p50 a hundredth"])[0] == "not met"  # type: ignore[index]
    assert "no number" in page.text.split("tokens of a case without")[1]
    assert "1 of 3 are met" in page.text


def test_plots_have_alternative_texts_and_are_written_as_files(page: Page, written: Path) -> None:
    files = sorted((written.parent / "pictures").glob("*.svg"))
    assert len(files) == len(page.labels) == written.read_text().count("<svg")
    assert all(len(label) > 20 for label in page.labels)
    for file in files:
        ElementTree.parse(file)


def test_growth_and_costs_are_shown(page: Page) -> None:
    for words in ("88.0 KiB", "500 ms", "encode, 32 requests", "0.700"):
        assert words in page.text


def test_what_the_doors_cost_is_shown(page: Page, tmp_path: Path) -> None:
    docs = write_docs(new_run(only="replicas"), tmp_path).read_text()
    for words in ("session, mutual TLS", "0.45 ms", "23,456 calls/s"):
        assert words in page.text
        assert words in docs


def test_one_round_and_no_numbers_at_all_still_give_a_page(tmp_path: Path) -> None:
    run = new_run(rounds=1, only="replicas", growth=[], is_quick=True, commit="0123+dirty")
    failed = [Sample(name, 0, error="TimeoutError") for name in run.cases[0].case.contenders]
    for result in run.cases[1:]:
        result.samples = []
    run.cases[0].samples = failed
    text = Page(write_report(run, tmp_path).read_text()).text
    assert "No contender has a number here" in text
    assert "TimeoutError" in text
    assert "nothing can be said about noise" in text
    assert "quick plan" in text
    assert "differs from its commit" in text


def test_both_carriers_are_told_of_and_the_ratio_between_them(
    page: Page, run: Run, tmp_path: Path
) -> None:
    docs = write_docs(run, tmp_path).read_text()
    for text in (page.text, docs):
        assert "The local lane, times better than gRPC: throughput 1." in text
        assert "callers with SERVE_GRPC_LOCAL=0" in text
    result = next(result for result in run.cases if result.case.sweep == "http")
    ratio = lanes.lane_over_grpc(result, "p50_ms")
    assert ratio is not None
    assert ratio.median == pytest.approx(12 / 18, rel=0.05)
    assert page.text.count("local lane ÷ gRPC") == sum(len(s.lanes) for s in lanes.sections(run))
    table = case_table(result)
    assert str(table.caption).startswith("lane / gRPC: calls/s 1.5")


def test_without_both_carriers_there_is_no_word_of_two(tmp_path: Path) -> None:
    run = new_run(only="in-flight")
    for result in run.cases:
        names = tuple(name for name in result.case.contenders if name != OVER_GRPC)
        result.case = dataclasses.replace(result.case, contenders=names)
        result.samples = [s for s in result.samples if s.contender in names]
    text = Page(write_report(run, tmp_path).read_text()).text
    for words in ("SERVE_GRPC_LOCAL", "local lane ÷ gRPC", "times better than gRPC"):
        assert words not in text
    assert lanes.lane_over_grpc(run.cases[0], "p50_ms") is None
    assert "lane / gRPC" not in str(case_table(run.cases[0]).caption)


def test_a_bound_of_the_number_itself_is_shown_without_another(tmp_path: Path) -> None:
    run = new_run(only="in-flight")
    bound = Target("p99_ms", OURS, (), "p99 in bounds", at_most=1e6, is_absolute=True)
    run.cases[0].case = dataclasses.replace(run.cases[0].case, targets=(bound,))
    (row,) = [r for r in write_docs(run, tmp_path).read_text().splitlines() if "in bounds" in r]
    ours = wording.number(stats.median(run.cases[0], OURS, "p99_ms") or 0)
    assert row == f"| p99 in bounds | {ours} | – | – | ≤ 1,000,000 | met |"
    assert "1 of 1 are met" in Page(write_report(run, tmp_path).read_text()).text
    assert list(targets_table(run).columns[1].cells) == ["[green]yes[/]"]


def test_cases_of_a_later_run_take_the_place_of_those_that_failed(tmp_path: Path) -> None:
    first, later = new_run(), new_run()
    again, added = later.cases[0], later.cases[1]
    first.cases[0] = CaseResult(again.case, [Sample(OURS, 0, error="no wrk here")])
    del first.cases[1]
    later = dataclasses.replace(later, command="bench --only two", commit="abc", seconds=5.0)
    both = first.and_then(dataclasses.replace(later, cases=[again, added]))
    assert both.cases == [again, *first.cases[1:], added]
    assert both.seconds == first.seconds + 5
    text = write_docs(both, tmp_path).read_text()
    assert f"`{first.command}; bench --only two`" in text
    assert f"`{first.commit}, abc`" in text
    assert "no wrk here" not in text


def test_where_serves_own_is_ahead_is_said() -> None:
    run = new_run(factor={OURS: 0.05}, only="in-flight")
    metrics = {(point.result.case.x, point.metric) for point in lanes.behind(run)}
    assert metrics == {(x, m) for x in (1, 10, 100) for m in ("calls_per_s", "p50_ms", "p99_ms")}
    assert lanes.behind(new_run(only="in-flight")) == []


# ------------------------------------------------------------ sections and words


def test_cases_of_one_line_share_a_lane_and_others_do_not(run: Run) -> None:
    by_sweep = {section.sweep: section.lanes for section in lanes.sections(run)}
    assert [len(lane.results) for lane in by_sweep["payload"]] == [4]
    assert [len(lane.results) for lane in by_sweep["http"]] == [1, 1]
    assert [lane.title for lane in by_sweep["http"]] == [
        "proxy: haproxy, default flags",
        "proxy: python, default flags",
    ]
    slugs = [lane.slug for section in by_sweep.values() for lane in section]
    assert len(set(slugs)) == len(slugs)


def test_the_baseline_is_serves_own_with_the_same_load(run: Run) -> None:
    result = next(result for result in run.cases if result.case.sweep == "saturated")
    assert lanes.ours(result) == OURS
    assert lanes.serves_own(result) == ("by reference", "serve: cloudpickle", "serve: orjson")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (2.5, "2.50"), (18756.4, "18,756"), (99.96, "100.0")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert wording.number(value) == text


def test_costs_come_from_the_json_of_the_micro_benchmarks(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    info = {"what": "batch to bytes", "part": "codec", "side": "caller"}
    found = [{"extra_info": {**info, "us_per_call": 0.5}}, {"extra_info": info}]
    path.write_text(json.dumps({"benchmarks": found}))
    (cost,) = costs_of(cost_rows(path))
    assert dataclasses.astuple(cost) == ("codec", "caller", "batch to bytes", 0.5)


# ------------------------------------------------------------ the documentation's page


def every_slug(run: Run) -> list[str]:
    """Of the pictures of all lanes."""
    return [lane.slug for section in lanes.sections(run) for lane in section.lanes]


def test_the_same_run_gives_the_same_page_and_pictures(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run.json")
    files = []
    for name, one in (("a", run), ("b", Run.load(tmp_path / "run.json"))):
        (tmp_path / name).mkdir()
        write_docs(one, tmp_path / name, shown=every_slug(run))
        found = sorted((tmp_path / name).rglob("*.*"))
        files.append({path.relative_to(tmp_path / name): path.read_bytes() for path in found})
    assert files[0] == files[1]
    assert len(files[0]) > len(run.cases) / 3


def test_what_has_no_picture_on_the_page_has_its_words(run: Run, tmp_path: Path) -> None:
    shown = ["replicas-default", "growth-500"]
    text = write_docs(run, tmp_path, shown).read_text()
    assert re.findall(r"\]\(benchmarks/([^)]+)\.svg\)", text) == shown
    summaries = [lanes.summary(lane) for section in lanes.sections(run) for lane in section.lanes]
    assert len(summaries) > len(shown)
    assert all(summary in text for summary in summaries)


def test_pictures_are_small_and_say_that_they_are_generated(run: Run) -> None:
    (section,) = (one for one in lanes.sections(run) if one.sweep == "in-flight")
    (lane,) = section.lanes
    picture = pictures.of_lane(section, lane)
    assert picture is not None
    assert GENERATED in picture.svg
    assert len(picture.svg) < 28_000
    texts = [element.text for element in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]
    assert {*lane.contenders, "calls/s (more is better)"} <= set(texts)


def test_pictures_of_an_earlier_run_go_away(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "old.svg").touch()
    run = new_run(only="replicas", growth=[])
    text = write_docs(run, tmp_path, shown=["replicas-default"]).read_text()
    shown = set(re.findall(r"\]\((benchmarks/[^)]+\.svg)\)", text))
    files = {f"benchmarks/{path.name}" for path in (tmp_path / "benchmarks").iterdir()}
    assert shown == files
    assert len(files) == 1


def test_the_page_of_the_full_plan_is_short_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_drawing(picture: object) -> str:
        return "<svg/>"

    monkeypatch.setattr(pictures, "svg", without_drawing)
    run = new_run(is_quick=True, commit="0123+dirty")
    run.cases = [
        CaseResult(one, [Sample(name, 0, error=f"{FAILURE} {name}") for name in one.contenders])
        for one in full_plan().cases
    ]
    for result in run.cases:
        numbers = [Sample(name, 1, calls_per_s=1.0, p50_ms=1.0) for name in result.case.contenders]
        result.samples += [
            dataclasses.replace(s, p50_ms=9.0) if s.contender == OURS else s for s in numbers
        ]
    text = write_docs(run, tmp_path).read_text()
    files = {path.stem for path in (tmp_path / "benchmarks").iterdir()}
    assert files == set(SHOWN) - {"cpu"}  # this run has no CPU time
    assert f"growth-{max(routing.REPLICAS)}" in SHOWN
    assert len(text.splitlines()) <= 250
    assert text.count("more, in the report") + text.count("more cases, in the report") == 2


def test_errors_do_not_break_the_tables_of_the_page(run: Run, tmp_path: Path) -> None:
    text = write_docs(run, tmp_path).read_text()
    row = next(line for line in text.splitlines() if "no &lt;b>result" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 5


def test_the_page_of_the_repository_has_its_pictures() -> None:
    page = docs_page.DOCS / docs_page.PAGE
    if not page.exists():
        pytest.skip("no run has been written to the documentation")
    shown = set(re.findall(r"\]\((benchmarks/[^)]+\.svg)\)", page.read_text()))
    files = list((docs_page.DOCS / docs_page.PICTURES).iterdir())
    assert shown == {f"{docs_page.PICTURES}/{path.name}" for path in files}
    assert {path.stem for path in files} == set(SHOWN)
    for path in files:
        assert GENERATED in path.read_text()
        ElementTree.parse(path)
