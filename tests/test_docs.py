"""The documentation: its snippets run, and what it lists is what the code has.

Every ```python snippet of README.md and docs/*.md is executed, those of one page in order and in
one namespace. A line `print(...)  # text` must print that text. Shell and configuration carry the
comment `<!-- not run: reason -->` in the line above them.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import inspect
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import serve_grpc
from serve_grpc import config, errors, serialization
from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.carriers.grpc import plain
from tests.ray.compat import page as compatibility

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FINDINGS = ROOT / "findings" / "README.md"
EVERY_PAGE = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), FINDINGS]

FENCE = re.compile(r"^```(\w*)\s*$")
MARK = re.compile(r"^<!-- not run:(.*)-->$")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SYMBOL = re.compile(r"\[`([\w.]+)`\]\(\.\./(serve_grpc/[\w/]+\.py)")
PRINTED = re.compile(r"^\s*print\(.*\)  # (.+)$")
MAX_LINES = 250


@dataclass
class Fragment:
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    """Of its first line of code, counting from 1."""
    mark: str | None
    """Why it is not run, if the page says so."""


def fragments(page: Path) -> Iterator[Fragment]:
    lines = page.read_text().splitlines()
    start: int | None = None
    for i, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, language = i, fence[1]
            mark = MARK.match(lines[i - 1]) if i else None
        else:
            code = "\n".join(lines[start + 1 : i])
            yield Fragment(language, code, start + 2, mark and mark[1].strip())
            start = None
    assert start is None, f"{page.name}:{start}: the block has no end"


def snippets(page: Path) -> list[Fragment]:
    return [fragment for fragment in fragments(page) if fragment.language == "python"]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ------------------------------------------------------------ snippets


@pytest.fixture
def namespace(serve_instance: None) -> Iterator[dict[str, Any]]:
    """What the snippets of one page share. Their applications go away with it."""
    from ray import serve

    before = set(serve.status().applications)
    # No module of this name can be imported, so classes and functions travel by value.
    names: dict[str, Any] = {"__name__": "snippets_of_a_page"}
    yield names
    names.clear()
    gc.collect()
    for name in set(serve.status().applications) - before:
        serve.delete(name, _blocking=False)


class _Printed(io.StringIO):
    """What this thread prints; Ray tells of dead workers in one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return super().write(text) if threading.get_ident() == self._thread else len(text)


@pytest.mark.ray
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=name_of)
def test_snippets_run_and_print_what_they_say(page: Path, namespace: dict[str, Any]) -> None:
    for snippet in snippets(page):
        # Padded, so that a traceback shows the line of the page.
        code = compile(
            "\n" * (snippet.line - 1) + snippet.code, str(page), "exec", dont_inherit=True
        )
        printed = _Printed()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        matches = map(PRINTED.match, snippet.code.splitlines())
        expected = [match[1] for match in matches if match is not None]
        assert printed.getvalue().splitlines() == expected, f"{name_of(page)}:{snippet.line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_not_run_says_why(page: Path) -> None:
    marks = 0
    for fragment in fragments(page):
        where = f"{name_of(page)}:{fragment.line}"
        if fragment.language in ("sh", "yaml"):
            assert fragment.mark, f"{where}: no reason why it is not run"
            marks += 1
        else:
            assert fragment.language in ("python", "text"), where
            assert fragment.mark is None, f"{where}: only shell and configuration may be marked"
    assert page.read_text().count("<!-- not run") == marks, "a mark stands above no fragment"


# ------------------------------------------------------------ form


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    targets = LINK.findall(page.read_text())
    relative = [target for target in targets if not re.match(r"[a-z]+:|#", target)]
    missing = [t for t in relative if not (page.parent / t.split("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name_of)
def test_pages_are_short_and_listed_in_the_readme(page: Path) -> None:
    lines = page.read_text().splitlines()
    if name_of(page) == "docs/benchmarks.md":  # it is written from a run, with a row a target
        lines = [line for line in lines if not line.startswith("|")]
    assert len(lines) <= MAX_LINES
    assert f"]({name_of(page)})" in (ROOT / "README.md").read_text()


def test_functions_that_a_page_names_are_in_the_files_it_links_to() -> None:
    named = {link for page in PAGES for link in SYMBOL.findall(page.read_text())}
    assert len(named) > 50
    assert [f"{name} in {file}" for name, file in named if name not in defined_in(file)] == []


def defined_in(file: str) -> set[str]:
    """Its functions and classes, and the methods of these."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, kinds)]
    methods = {
        f"{node.name}.{method.name}"
        for node in top
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, kinds)
    }
    return methods | {node.name for node in top}


def test_readme_shows_the_two_commands() -> None:
    commands = [f.code for f in fragments(ROOT / "README.md") if f.language == "sh"]
    for command in ("make demo", "make test"):
        assert any(line.startswith(command) for line in "\n".join(commands).splitlines())


# ------------------------------------------------------------ the code and its lists


def first_cells(page: Path, heading: str) -> str:
    """The first column of the tables in one section."""
    section = re.split(r"^#+ ", page.read_text(), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading))
    return "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| "))


def test_environment_variables_are_those_of_the_config_module() -> None:
    strings = [
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(config)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    read = {text for text in strings if re.fullmatch(r"(RAY|SERVE_GRPC)_[A-Z0-9_]+[A-Z0-9]", text)}
    assert len(read) > 5
    page = DOCS / "options.md"
    listed = set(re.findall(r"`(\w+)`", first_cells(page, "Environment variables")))
    assert read <= listed
    every_page = "".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"\bSERVE_GRPC_[A-Z0-9_]+", every_page)) <= read


def test_handle_options_are_those_of_the_handle() -> None:
    parameters = set(inspect.signature(serve_grpc.DeploymentHandle.options).parameters) - {"self"}
    listed = set(re.findall(r"`(\w+)`", first_cells(DOCS / "options.md", "`handle.options")))
    assert listed == parameters


def test_serializers_are_those_registered() -> None:
    listed = set(re.findall(r'`"(\w+)"`', first_cells(DOCS / "options.md", "Serializers")))
    assert listed == serialization._BUILT_IN


def test_error_classes_are_those_of_the_tree() -> None:
    listed = set(re.findall(r"`(\w+)`", first_cells(DOCS / "errors.md", "The tree")))
    assert set(errors.__all__) <= listed
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.ServeGrpcError)


def test_statuses_of_the_plain_door_are_those_of_the_server() -> None:
    text = (DOCS / "errors.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|", text, flags=re.MULTILINE)
    actual = {(status.name, Error.Code.Name(code)) for code, status in plain._STATUS.items()}
    assert set(rows) == actual


def test_reasons_for_falling_back_are_those_of_the_code() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "serve_grpc").rglob("*.py"))
    reasons = first_reasons(DOCS / "limits.md")
    assert len(reasons) == 2
    for reason in reasons:
        assert f'"{reason}"' in sources, reason
    line = "calls by value use Ray Serve's own transport, because it "
    assert line in sources
    assert f"{line}{reasons[0]}" in (DOCS / "quickstart.md").read_text()


def first_reasons(page: Path) -> list[str]:
    section = page.read_text().split("reason in the log line")[1].split("\n\n")[0]
    return re.findall(r"\| `([^`]+)` \|$", section, flags=re.MULTILINE)


def test_the_compatibility_page_is_what_its_tests_say() -> None:
    assert compatibility.PAGE.read_text() == compatibility.rendered(), (
        "run `python -m tests.ray.compat.page`"
    )
