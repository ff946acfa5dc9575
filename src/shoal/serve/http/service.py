"""What the handlers of a server share."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Receive

from shoal.serve.http.encoding import Encoding
from shoal.serve.http.errors import ApiError, ClientLeftError
from shoal.serve.http.limits import Limits
from shoal.serve.http.metrics import Metrics
from shoal.serve.http.served import Served

Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """A model, its limits, the thread of an encoder, and what is counted."""

    served: Served
    limits: Limits
    encoding: Encoding
    metrics: Metrics

    @classmethod
    def of(cls, served: Served, limits: Limits) -> "Service":
        """All of it, of a model."""
        encoding = Encoding(limits.queue)
        return cls(served, limits, encoding, Metrics(served, encoding))

    def check_model(self, name: str) -> None:
        """`ApiError` for another model than the one that is here."""
        if name != self.served.name:
            message = f"there is no model '{name}' here; the one that is served is '{self.served.name}'"
            raise ApiError(404, message, param="model", code="model_not_found")

    def deadline(self) -> float:
        """When a request that begins now must be answered, by the loop's clock."""
        return asyncio.get_running_loop().time() + self.limits.seconds

    def close(self) -> None:
        """Give up what is still computed: nobody waits for it any more."""
        if self.served.writer is not None:
            self.served.writer.engine.close(finish=False)
        self.encoding.close()


async def unless_left(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; `ClientLeftError`, and the work is cancelled, when the client leaves before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        working.cancel()
        leaving.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
