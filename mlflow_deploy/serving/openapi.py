"""The OpenAPI document of a server, made from its model's signature and input example."""

from __future__ import annotations

from typing import Any

import mlflow_deploy
from mlflow_deploy.serving import tensors
from mlflow_deploy.serving.bodies import FORMS
from mlflow_deploy.serving.signature import Column, Signature, Tensor
from mlflow_deploy.serving.worker import Worker

_TYPES: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "format": "int32"},
    "long": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "float"},
    "double": {"type": "number", "format": "double"},
    "string": {"type": "string"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "datetime": {"type": "string", "format": "date-time"},
}
_NUMPY = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}


def document(worker: Worker) -> dict[str, Any]:
    """The document, as OpenAPI 3.1."""
    plane = worker.plane
    signature = plane.model.signature if plane is not None else None
    example = (worker.bundle.document("example.json") or {}).get("request")
    identity = worker.identity
    name = tensors.names(identity["deployment"], identity["model_name"])[0]
    body: dict[str, Any] = {"schema": _request(signature)}
    if example is not None:
        body["example"] = example
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": identity["model_version"] or identity["revision"],
            "description": f"Predictions of the MLflow model {identity['model_name'] or name}, "
            f"served by mlflow_deploy {mlflow_deploy.__version__} as {identity['format']}.",
        },
        "paths": {
            "/invocations": {"post": _invocations(body)},
            **({"/feedback": {"post": _feedback()}} if worker.config.data else {}),
            f"/v2/models/{name}/infer": {"post": _infer()},
            f"/v2/models/{name}": {"get": _plain("Metadata of the model", ready=True)},
            "/v2/health/ready": {"get": _plain("Whether the model is ready", ready=True)},
            "/v2/health/live": {"get": _plain("Whether the process answers")},
            "/ping": {"get": _plain("Whether the model is ready", ready=True)},
            "/health": {"get": _plain("Whether the model is ready", ready=True)},
            "/version": {"get": _plain("What is served")},
            "/metrics": {"get": _plain("Metrics in Prometheus' text form", kind="text/plain")},
        },
        "components": {"schemas": {"Error": _error()}},
    }


def _invocations(body: dict[str, Any]) -> dict[str, Any]:
    predictions = {"type": "object", "required": ["predictions"], "properties": {"predictions": {}}}
    return {
        "summary": "Predictions, in MLflow's scoring protocol",
        "operationId": "invocations",
        "requestBody": {
            "required": True,
            "content": {"application/json": body, "text/csv": {"schema": {"type": "string"}}},
        },
        "responses": {
            "200": {"description": "Predictions", "content": {"application/json": {"schema": predictions}}},
            **_errors(400, 401, 403, 413, 415, 429, 500, 503, 504),
        },
    }


def _feedback() -> dict[str, Any]:
    value: dict[str, Any] = {"type": ["string", "number", "boolean"]}
    label = {
        "type": "object",
        "required": ["label"],
        "properties": {
            "label": {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]},
            "request_id": {"type": "string"},
            "key": {"type": ["string", "number"]},
            "row": {"type": "integer", "minimum": 0},
            "time": {"type": "string", "format": "date-time"},
        },
    }
    accepted = {"type": "object", "properties": {"accepted": {"type": "integer"}}}
    schema = {"anyOf": [label, {"type": "array", "items": label, "minItems": 1}]}
    return {
        "summary": "True answers that came later, by the request id or the key of the prediction",
        "operationId": "feedback",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "Kept", "content": {"application/json": {"schema": accepted}}},
            **_errors(400, 401, 403, 413, 503),
        },
    }


def _infer() -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"enum": list(tensors.DATATYPES)},
            "data": {"type": "array"},
        },
    }
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": {"type": "array", "items": tensor}},
    }
    return {
        "summary": "Predictions, in the Open Inference Protocol v2",
        "operationId": "infer",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "Output tensors", "content": {"application/json": {"schema": {}}}},
            **{
                str(status): {"description": "Refused"}
                for status in (400, 401, 403, 413, 415, 429, 500, 503, 504)
            },
        },
    }


def _plain(summary: str, *, kind: str = "application/json", ready: bool = False) -> dict[str, Any]:
    answer = {"description": summary, "content": {kind: {"schema": {}}}}
    refused = {"503": {"description": "The model is loading, or the server is stopping"}} if ready else {}
    return {
        "summary": summary,
        "responses": {
            "200": answer,
            "401": {"description": "No token"},
            "403": {"description": "Not yours"},
            **refused,
        },
    }


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": "Refused", "content": content} for status in statuses}


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["error_code", "message"],
        "properties": {"error_code": text, "message": text},
    }


def _request(signature: Signature | None) -> dict[str, Any]:
    """The schema of the body: any of the forms that fit the signature."""
    params = {"type": "object"}
    forms = [
        {"type": "object", "required": [form], "properties": {form: schema, "params": params}}
        for form, schema in _forms(signature).items()
    ]
    return {"anyOf": forms}


def _forms(signature: Signature | None) -> dict[str, dict[str, Any]]:
    split = {
        "type": "object",
        "required": ["data"],
        "properties": {
            "columns": {"type": "array"},
            "data": {"type": "array", "items": {"type": "array"}, "minItems": 1},
            "index": {"type": "array"},
        },
        "additionalProperties": False,
    }
    if signature is None:
        return {form: split if form == "dataframe_split" else {} for form in FORMS}
    if signature.tensors:
        named = {tensor.name: _tensor(tensor) for tensor in signature.tensors}
        if "" in named:
            return {"inputs": named[""]}
        return {"inputs": {"type": "object", "required": list(named), "properties": named}}
    if not signature.named:
        return {"dataframe_split": split}
    record = {
        "type": "object",
        "required": [column.name for column in signature.columns if column.required],
        "properties": {column.name: _column(column) for column in signature.columns},
    }
    names = [column.name for column in signature.columns]
    kinds: list[dict[str, Any]] = []
    for column in signature.columns:
        if _column(column) not in kinds:
            kinds.append(_column(column))
    cell = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    row = {"type": "array", "items": cell, "minItems": len(names), "maxItems": len(names)}
    return {
        "dataframe_split": {
            **split,
            "required": ["columns", "data"],
            "properties": {
                "columns": {"enum": [names]},
                "data": {"type": "array", "minItems": 1, "items": row},
            },
        },
        "dataframe_records": {"type": "array", "minItems": 1, "items": record},
    }


def _column(column: Column) -> dict[str, Any]:
    schema = _TYPES.get(column.type, {})
    return schema if column.required or not schema else {**schema, "type": [schema["type"], "null"]}


def _tensor(tensor: Tensor) -> dict[str, Any]:
    import numpy as np

    kind = "O" if tensor.dtype in ("str", "object") else np.dtype(tensor.dtype).kind
    schema: dict[str, Any] = {"type": _NUMPY.get(kind, "string")}
    for size in reversed(tensor.shape):
        bounds = {"minItems": size, "maxItems": size} if size >= 0 else {"minItems": 1}
        schema = {"type": "array", "items": schema, **bounds}
    return schema
