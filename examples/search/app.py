"""The search application: an HTTP ingress over two inner deployments, called by gRPC.

    GET /search?q=...&k=3     one JSON document: the hits
    GET /snippets?q=...&k=3   text, one marked snippet a line, sent as each is found

What opts in is `serve_grpc.deployment` in place of `serve.deployment`, and `_by_reference=False`
on the handles. Everything else is an ordinary Serve application.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

import serve_grpc

from .bm25 import Bm25, tokenise
from .corpus import Passage

Hit = tuple[int, float]
"""Number of a passage, and its score."""

MARK = "«{}»"
AROUND = 30  # characters of text kept on each side of a match


@serve_grpc.deployment(max_ongoing_requests=1000)
class Index:
    """Finds passages. Unary methods."""

    def __init__(self, passages: list[Passage]) -> None:
        self._bm25 = Bm25(f"{passage.heading}\n{passage.text}" for passage in passages)

    async def tokenise(self, text: str) -> list[str]:
        return tokenise(text)

    async def rank(self, tokens: list[str], k: int) -> list[Hit]:
        return self._bm25.rank(tokens, k)


@serve_grpc.deployment
class Snippets:
    """Shows where in its passage each hit matches. A streaming method."""

    def __init__(self, passages: list[Passage]) -> None:
        self._passages = passages

    async def marked(self, hits: list[Hit], tokens: list[str]) -> AsyncIterator[str]:
        words = re.compile(rf"\b({'|'.join(map(re.escape, tokens))})\b", re.IGNORECASE)
        for number, _ in hits:
            passage = self._passages[number]
            text = " ".join(f"{passage.heading}: {passage.text}".split())
            for match in words.finditer(text):
                start, end = max(0, match.start() - AROUND), match.end() + AROUND
                snippet = words.sub(lambda found: MARK.format(found[0]), text[start:end])
                yield f"{passage.source}: …{snippet}…"
                break


@serve_grpc.deployment
class Search:
    """The ingress: HTTP in, two gRPC calls inside."""

    def __init__(
        self, index: DeploymentHandle, snippets: DeploymentHandle, passages: list[Passage]
    ) -> None:
        self._index = index.options(_by_reference=False)
        self._snippets = snippets.options(stream=True, _by_reference=False)
        self._passages = passages

    async def __call__(self, request: Request) -> Response:
        query, k = request.query_params.get("q", ""), request.query_params.get("k", "3")
        if not query or not k.isdecimal():
            return JSONResponse({"error": "ask with ?q=words&k=number"}, status_code=400)
        tokens = await self._index.tokenise.remote(query)
        hits = await self._index.rank.remote(tokens, int(k))
        if request.url.path.endswith("/snippets"):
            return StreamingResponse(self._lines(hits, tokens), media_type="text/plain")
        if request.url.path.endswith("/search"):
            return JSONResponse({"tokens": tokens, "hits": [self._shown(*hit) for hit in hits]})
        return PlainTextResponse("no such page; there are /search and /snippets\n", 404)

    async def _lines(self, hits: list[Hit], tokens: list[str]) -> AsyncIterator[str]:
        async for snippet in self._snippets.marked.remote(hits, tokens):
            yield f"{snippet}\n"

    def _shown(self, number: int, score: float) -> dict[str, str | float]:
        passage = self._passages[number]
        return {"source": passage.source, "heading": passage.heading, "score": score}


def build(passages: list[Passage]) -> serve.Application:
    """Return the application over `passages`, ready for `serve_grpc.run`."""
    return Search.bind(Index.bind(passages), Snippets.bind(passages), passages)
