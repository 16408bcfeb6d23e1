"""The schemas of the record and the page that describes it. `python -m assay.record.schema docs` writes them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic.json_schema import GenerateJsonSchema

from assay.files import write_json
from assay.record.model import VERSION, RecordModel
from assay.record.outcome import Outcome
from assay.record.run import RunRecord

FILES: dict[str, type[RecordModel]] = {"run": RunRecord, "gates": Outcome}
"""Name of a schema to the model that it describes: the whole of `run.json`, one line of `gates.jsonl`."""


class _Untitled(GenerateJsonSchema):
    """Without a title per field, which would only repeat the field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `run` or of `gates`."""
    made = FILES[name].model_json_schema(schema_generator=_Untitled)
    # Python fills it in when it writes; a reader refuses a record without it.
    made["required"] = ["version", *made["required"]]
    return {"$schema": _Untitled.schema_dialect, **made}


def reference() -> str:
    """The page `docs/record.md`: prose from the template, one table per model from the schemas."""
    environment = Environment(
        loader=PackageLoader("assay.record"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tables = {name: _tables(schema(name)) for name in FILES}
    return environment.get_template("record.md").render(version=VERSION, tables=tables) + "\n"


def _tables(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of a schema, the file's own first, each with its fields."""
    defs = schema.get("$defs", {})
    return [
        {
            "name": model["title"],
            "description": " ".join(model["description"].split()),
            "fields": [
                {
                    "name": name,
                    "type": _type(field, defs),
                    "optional": name not in model.get("required", ()),
                    "description": " ".join(field.get("description", "").split()),
                }
                for name, field in model["properties"].items()
            ],
        }
        for model in (schema, *defs.values())
        if "properties" in model
    ]


def _type(field: dict[str, Any], defs: dict[str, Any]) -> str:
    """A field's type in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return _type(defs[name], defs) if "enum" in defs[name] else f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(one, defs) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}: {', '.join(_type(one, defs) for one in field['prefixItems'])}"
    if "items" in field:
        return f"list of {_type(field['items'], defs)}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"object of {_type(field['additionalProperties'], defs)}"
    return str(field["type"])


def write_documents(docs: Path) -> None:
    """Write both schemas into `docs/schema` and the page `docs/record.md`."""
    (docs / "schema").mkdir(parents=True, exist_ok=True)
    for name in FILES:
        write_json(docs / "schema" / f"{name}.schema.json", schema(name))
    (docs / "record.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m assay.record.schema", description=__doc__)
    parser.add_argument("docs", type=Path, help="the folder docs of the repository")
    write_documents(parser.parse_args().docs)
