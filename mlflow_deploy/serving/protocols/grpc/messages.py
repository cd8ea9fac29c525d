"""The protocol's messages, described here and built in a private pool.

Client libraries bring their own copies of these messages. Two copies in protobuf's default pool end the process
with "duplicate symbol", so ours live in a pool of their own and no generated code is needed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

SERVICE = "inference.GRPCInferenceService"

# message -> its fields as "name type"; a field's number is its place in the list.
# "[]" marks a repeated field, "{}" a map from text to InferParameter, "|" a member of the oneof.
_MESSAGES: dict[str, list[str]] = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": ["live bool"],
    "ServerReadyRequest": [],
    "ServerReadyResponse": ["ready bool"],
    "ModelReadyRequest": ["name string", "version string"],
    "ModelReadyResponse": ["ready bool"],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": ["name string", "version string", "extensions string[]"],
    "ModelMetadataRequest": ["name string", "version string"],
    "ModelMetadataResponse": [
        "name string", "versions string[]", "platform string",
        "inputs ModelMetadataResponse.TensorMetadata[]", "outputs ModelMetadataResponse.TensorMetadata[]",
    ],
    "ModelMetadataResponse.TensorMetadata": ["name string", "datatype string", "shape int64[]"],
    "InferParameter": [
        "bool_param bool|", "int64_param int64|", "string_param string|", "double_param double|",
        "uint64_param uint64|",
    ],
    "InferTensorContents": [
        "bool_contents bool[]", "int_contents int32[]", "int64_contents int64[]", "uint_contents uint32[]",
        "uint64_contents uint64[]", "fp32_contents float[]", "fp64_contents double[]", "bytes_contents bytes[]",
    ],
    "ModelInferRequest": [
        "model_name string", "model_version string", "id string", "parameters {}",
        "inputs ModelInferRequest.InferInputTensor[]", "outputs ModelInferRequest.InferRequestedOutputTensor[]",
        "raw_input_contents bytes[]",
    ],
    "ModelInferRequest.InferInputTensor": [
        "name string", "datatype string", "shape int64[]", "parameters {}", "contents InferTensorContents",
    ],
    "ModelInferRequest.InferRequestedOutputTensor": ["name string", "parameters {}"],
    "ModelInferResponse": [
        "model_name string", "model_version string", "id string", "parameters {}",
        "outputs ModelInferResponse.InferOutputTensor[]", "raw_output_contents bytes[]",
    ],
    "ModelInferResponse.InferOutputTensor": [
        "name string", "datatype string", "shape int64[]", "parameters {}", "contents InferTensorContents",
    ],
    "RepositoryIndexRequest": ["repository_name string", "ready bool"],
    "RepositoryIndexResponse": ["models RepositoryIndexResponse.ModelIndex[]"],
    "RepositoryIndexResponse.ModelIndex": ["name string", "version string", "state string", "reason string"],
}  # fmt: skip

METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
    "RepositoryIndex",
)  # fmt: skip
"""Each method NAME takes a NAMERequest and returns a NAMEResponse."""


@cache
def messages() -> dict[str, Any]:
    """The message classes by name."""
    from google.protobuf import (  # type: ignore[import-untyped]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(
        name="mlflow_deploy/open_inference.proto", package="inference", syntax="proto3"
    )
    made: dict[str, Any] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = (made[outer].nested_type if outer else file.message_type).add(name=inner)
        made[name] = message
        for number, line in enumerate(fields, 1):
            _add_field(message, f".inference.{name}", number, *line.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))
        for name in _MESSAGES
    }


def _add_field(message: Any, path: str, number: int, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=number)
    field.label = field.LABEL_REPEATED if kind.endswith(("[]", "{}")) else field.LABEL_OPTIONAL
    if kind == "{}":
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
        entry.field.add(
            name="value",
            number=2,
            label=field.LABEL_OPTIONAL,
            type=field.TYPE_MESSAGE,
            type_name=".inference.InferParameter",
        )
        field.type, field.type_name = field.TYPE_MESSAGE, f"{path}.ParametersEntry"
        return
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    plain = kind.rstrip("[]|")
    if plain[0].isupper():
        field.type, field.type_name = field.TYPE_MESSAGE, f".inference.{plain}"
    else:
        field.type = getattr(field, f"TYPE_{plain.upper()}")
