"""A program that asks a server with KServe's own clients; it runs where `kserve` is installed, not here.

Usage: PYTHON kserve_client.py HTTP_PORT GRPC_PORT MODEL; it prints the predictions of each way as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

ROWS = 3


def request(name: str, columns: list[str], *, binary: bool) -> Any:
    """One tensor of zeros for each column."""
    import numpy as np
    from kserve import InferInput, InferRequest

    inputs = []
    for column in columns:
        tensor = InferInput(column, [ROWS, 1], "FP64")
        tensor.set_data_from_numpy(np.zeros((ROWS, 1)), binary_data=binary)
        inputs.append(tensor)
    return InferRequest(model_name=name, infer_inputs=inputs)


async def main(http: str, grpc: str, name: str) -> dict[str, Any]:
    """What each client says of the server and its model."""
    from kserve import InferenceGRPCClient, InferenceRESTClient, RESTConfig

    found: dict[str, Any] = {}
    url = f"http://127.0.0.1:{http}"
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    found["ready"] = [
        await rest.is_server_live(url),
        await rest.is_server_ready(url),
        await rest.is_model_ready(url, name),
    ]
    import httpx

    described = httpx.get(f"{url}/v2/models/{name}").json()
    columns = [each["name"] for each in described["inputs"]]
    for way, binary in (("json", False), ("binary", True)):
        answer = await rest.infer(url, request(name, columns, binary=binary), model_name=name)
        found[way] = answer.outputs[0].as_numpy().ravel().tolist()
    async with InferenceGRPCClient(f"127.0.0.1:{grpc}") as client:
        found["ready"] += [await client.is_server_ready(), await client.is_model_ready(name)]
        for way, binary in (("grpc typed", False), ("grpc raw", True)):
            answer = await client.infer(request(name, columns, binary=binary))
            found[way] = answer.outputs[0].as_numpy().ravel().tolist()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:4]))))
