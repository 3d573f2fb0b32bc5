"""Whatever the release before can say, this one says and reads alike: the wire only grows."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from tests.compat.releases import Release

FILES = ("broker", "health", "keeper", "presence")
SAY = """
import base64, importlib, json
modules = {name: importlib.import_module(f"aqua_protos.{name}_pb2") for name in %r}
print(json.dumps({name: base64.b64encode(module.DESCRIPTOR.serialized_pb).decode()
                  for name, module in modules.items()}))
"""
Said = dict[str, str]


def said(release: Release) -> Said:
    """What bytes mean in a release: a line for each field, enum value and method of its wire."""
    run = release.run("-c", SAY % (FILES,))
    assert run.returncode == 0, run.stderr
    meanings: Said = {}
    for encoded in json.loads(run.stdout).values():
        meanings.update(of_file(FileDescriptorProto.FromString(base64.b64decode(encoded))))
    return meanings


def of_file(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for message in file.message_type:
        yield from of_message(file.package, message)
    for enum in file.enum_type:
        yield from of_enum(file.package, enum)
    for service in file.service:
        yield from of_service(file.package, service)


def of_message(scope: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    name = f"{scope}.{message.name}"
    yield name, "message"
    for field in message.field:
        yield f"{name} {field.number}", of_field(message, field)
    for inner in message.nested_type:
        yield from of_message(name, inner)
    for enum in message.enum_type:
        yield from of_enum(name, enum)


def of_field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """All that the bytes and JSON of a field depend on; a member of a oneof excludes the others."""
    kind = FieldDescriptorProto.Type.Name(field.type)
    label = FieldDescriptorProto.Label.Name(field.label)
    group = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "-"
    return f"{field.name} {label} {kind} {field.type_name} {group}"


def of_enum(scope: str, enum: EnumDescriptorProto) -> Iterator[tuple[str, str]]:
    for value in enum.value:
        yield f"{scope}.{enum.name} {value.number}", value.name


def of_service(scope: str, service: ServiceDescriptorProto) -> Iterator[tuple[str, str]]:
    for method in service.method:
        streams = f"{method.client_streaming} {method.server_streaming}"
        meaning = f"{method.input_type} {method.output_type} {streams}"
        yield f"{scope}.{service.name}/{method.name}", meaning


@pytest.fixture(scope="module")
def before(old: Release) -> Said:
    return said(old)


def test_nothing_of_the_wire_was_removed_or_given_another_meaning(
    before: Said, new: Release
) -> None:
    """Numbers, names, types, labels, oneofs and methods of before are as they were."""
    now = said(new)
    changed = {
        what: (before[what], now.get(what)) for what in before if now.get(what) != before[what]
    }
    assert changed == {}


def test_the_comparison_sees_what_matters(before: Said) -> None:
    """It knows fields of messages within messages' maps, oneofs, enums and calls of the release."""
    assert before["aqua.broker.v1.Hello 1"] == "protocol LABEL_OPTIONAL TYPE_UINT32  -"
    assert before["aqua.broker.v1.ClientFrame 2"].endswith(".aqua.broker.v1.Keepalive kind")
    assert before["aqua.broker.v1.ClientFigures.FallbacksEntry 2"].startswith("value ")
    assert before["aqua.keeper.v1.DescriptorKind 2"] == "DESCRIPTOR_KIND_CUDA_VMM"
    assert before["aqua.broker.v1.Broker/SetQuota"].startswith(".aqua.broker.v1.SetQuotaRequest ")
    assert len(before) > 250
