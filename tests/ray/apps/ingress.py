"""An ingress of each kind in front of the chain of `chain.py`.

The query parameter `transport` (for gRPC the field `foo`) names the transport of the calls inside.
(`serve.ingress` copies endpoints by value while it decorates the class. So what they use stands
above them, and their annotations are no texts: the copies lack the globals to look them up in.)
"""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.serve.generated.serve_pb2 import UserDefinedMessage, UserDefinedResponse
from starlette.background import BackgroundTask

import serve_grpc
from tests.ray.apps.chain import OPTIONS, Link, inner_links
from tests.ray.apps.failures import Detailed

__all__ = ["fastapi_app", "grpc_app", "one_thread_app", "plain_app"]

api = FastAPI()


async def _lines(numbers: AsyncIterator[int]) -> AsyncIterator[str]:
    async for i in numbers:
        yield f"{i}\n"


@api.exception_handler(Detailed)
async def detailed(_: Request, error: Exception) -> JSONResponse:
    """The application's own answer to an error of an inner deployment."""
    return JSONResponse({"code": error.code}, status_code=422)  # type: ignore[attr-defined]


@serve.ingress(api)
class Front(Link):
    """FastAPI."""

    @api.get("/echo")
    async def get_echo(self, transport: str, value: str) -> str:
        return await self.echo(transport, value)

    @api.get("/echo-in-thread")
    def get_echo_in_thread(self, transport: str, value: str) -> str:
        return self.following(transport).echo.remote(transport, value).result(timeout_s=30)

    @api.post("/body")
    async def post_body(self, transport: str, request: Request) -> Response:
        return Response(await self.echo(transport, await request.body()))

    @api.get("/numbers")
    async def get_numbers(
        self, transport: str, key: str, number: int, at_once: int
    ) -> StreamingResponse:
        return StreamingResponse(_lines(self.numbers(transport, key, number, at_once)))

    @api.get("/slowly")
    async def get_slowly(self, transport: str, key: str, number: int) -> StreamingResponse:
        """Sends the first number, and the others when this link is released."""

        async def slowly() -> AsyncIterator[str]:
            async for line in _lines(self.numbers(transport, key, number, number)):
                yield line
                await self.gates[key].wait()

        return StreamingResponse(slowly())

    @api.get("/hold")
    async def get_hold(self, transport: str, key: str) -> str:
        return await self.hold(transport, key)

    @api.get("/hold-in-thread")
    def get_hold_in_thread(self, transport: str, key: str) -> str:
        return self.following(transport).hold.remote(transport, key).result(timeout_s=60)

    @api.get("/scatter")
    async def get_scatter(self, transport: str, key: str, number: int) -> None:
        """Makes calls that it does not wait for."""
        calls = [
            self.following(transport).hold.remote(transport, f"{key}-{i}") for i in range(number)
        ]
        with self.noted(key):
            await self.gates[key].wait()
        del calls

    @api.get("/fail")
    async def get_fail(self, transport: str, kind: str) -> None:
        await self.fail(transport, kind)

    @api.get("/squeeze")
    async def get_squeeze(self, transport: str, key: str, is_direct: bool) -> str:
        return await self.squeeze(transport, key, is_direct)

    @api.get("/request")
    async def get_request(self, transport: str) -> list[dict[str, Any]]:
        return await self.request(transport)

    @api.get("/background")
    async def get_background(self, transport: str, key: str) -> JSONResponse:
        return JSONResponse(key, background=BackgroundTask(self.hold, transport, key))

    @api.websocket("/chat")
    async def chat(self, socket: WebSocket) -> None:
        transport, key = socket.query_params["transport"], socket.query_params["key"]
        await socket.accept()
        self.notes[key] = "running"
        try:
            while True:
                await socket.send_text(await self.echo(transport, await socket.receive_text()))
        except WebSocketDisconnect:
            self.notes[key] = "finished"


class PlainFront(Link):
    """No framework: a Starlette request in, whatever in return."""

    async def __call__(self, request: Request) -> Any:
        asked = dict(request.query_params)
        transport = asked.pop("transport")
        match request.url.path.rpartition("/")[2]:
            case "numbers":
                number, at_once = int(asked["number"]), int(asked["at_once"])
                numbers = self.numbers(transport, asked["key"], number, at_once)
                return StreamingResponse(_lines(numbers))
            case "sum":
                return {"echo": await self.echo(transport, await request.json())}
            case method:
                return await getattr(self, method)(transport, **asked)


class GrpcFront(Link):
    """Serve's gRPC ingress. In a message, `foo` is the transport, `name` and `num` arguments."""

    async def __call__(self, message: UserDefinedMessage) -> UserDefinedResponse:
        # The message itself travels to the last link and back.
        message = await self.echo(message.foo, message)
        return UserDefinedResponse(greeting=message.name, num_x2=2 * message.num)

    async def Method1(
        self, message: UserDefinedMessage, grpc_context: serve.grpc_util.RayServegRPCContext
    ) -> UserDefinedResponse:
        method, _, argument = message.name.partition(" ")
        try:
            match method:
                case "context":
                    passed_on = await self.echo(message.foo, grpc_context)
                    answer = dict(passed_on.invocation_metadata())["color"]
                case "request":
                    answer = await self.request(message.foo)
                case "squeeze":
                    answer = await self.squeeze(message.foo, argument, True)
                case _:
                    answer = await getattr(self, method)(message.foo, argument)
        except Detailed as error:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details(f"code {error.code}")
            raise
        return UserDefinedResponse(greeting=repr(answer))

    async def Streaming(self, message: UserDefinedMessage) -> AsyncIterator[UserDefinedResponse]:
        async for i in self.numbers(message.foo, message.name, message.num, 2):
            yield UserDefinedResponse(num_x2=2 * i)

    async def ClientStreaming(self, messages: Any) -> UserDefinedResponse:
        total = 0
        async for message in messages:
            total += await self.echo(message.foo, message.num)
        return UserDefinedResponse(num_x2=2 * total)

    async def BidiStreaming(self, messages: Any) -> AsyncIterator[UserDefinedResponse]:
        async for message in messages:
            yield UserDefinedResponse(num_x2=2 * await self.echo(message.foo, message.num))


def fastapi_app() -> serve.Application:
    """Front, Middle, Back; Narrow beside them."""
    return serve_grpc.deployment(**OPTIONS)(Front).bind(*inner_links())


def one_thread_app(following: Any) -> serve.Application:
    """The FastAPI ingress, in a replica whose only loop runs all that Serve can run on it."""
    flags = ("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP")
    runtime_env = {"env_vars": dict.fromkeys(flags, "0")}
    options = {**OPTIONS, "ray_actor_options": {"num_cpus": 0.01, "runtime_env": runtime_env}}
    return serve_grpc.deployment(**options)(Front).bind(following)


def plain_app() -> serve.Application:
    """The same behind a plain handler, as an application that knows nothing of the package."""
    link = serve.deployment(**OPTIONS)(Link)
    front = serve.deployment(**OPTIONS)(PlainFront)
    return serve_grpc.enable(front.bind(link.options(name="Back").bind()))


def grpc_app() -> serve.Application:
    """The chain behind a gRPC ingress."""
    return serve_grpc.deployment(**OPTIONS)(GrpcFront).bind(*inner_links())
