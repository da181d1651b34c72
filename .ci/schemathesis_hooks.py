"""What Schemathesis has to know of Tomato. .ci/schemathesis loads it."""

import json
import os
import re

import schemathesis
import schemathesis.specs.openapi.adapter.responses as responses
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

# 4.32 rewrites `prefixItems` beside `items`, as in a GeoJSON position, into what is
# no schema of 2020-12, where it checks answers against it.
_to_json_schema = responses.to_json_schema
responses.to_json_schema = lambda *args, **kw: _to_json_schema(*args, **{**kw, "convert_prefix_items": False})

# Texts have a visible character, which no pattern can say.
_visible = st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x2FF)
for _format, _more in (("text", " \n\t"), ("line", " ")):
    _middle = st.text(st.one_of(_visible, st.sampled_from(_more)), max_size=40)
    schemathesis.openapi.format(_format, st.tuples(_visible, _middle, _visible).map("".join))

# What the script has made, so that not every request is of something unknown.
KNOWN = json.loads(os.environ.get("TOMATO_KNOWN", "{}"))


def positive(case):
    return case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE


@schemathesis.hook
def map_path_parameters(ctx, path_parameters):
    path = ctx.operation.path
    for noun, value in KNOWN.items():
        prefix, name = noun.split(" ")
        if path.startswith(prefix) and path_parameters and name in path_parameters and hash(str(path_parameters)) % 4:
            path_parameters[name] = value
    return path_parameters


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Takes out what only the server can make: tokens and cursors."""
    if positive(case):
        if case.headers:
            case.headers.pop("Consistency-Token", None)
        if case.query:
            case.query.pop("cursor", None)


@schemathesis.check
def valid_requests_have_no_faults(ctx, response, case):
    """Instead of positive_data_acceptance, for which every 422 is a refusal of the
    schema: unknown_restaurant and idempotency_key_reused are not."""
    if not positive(case) or response.status_code not in (400, 422):
        return
    problem = response.json()
    if problem["code"] not in ("validation_failed", "malformed_json"):
        return
    faults = [e for e in problem.get("errors", []) if e["location"] not in OPAQUE and not outside(case, e["location"])]
    assert not faults, f"a request that the document allows has faults: {faults}"


def outside(case, location):
    """Whether a path parameter is one that the document does not allow. Schemathesis puts
    ids from answers into later requests, also those of other things."""
    for parameter in case.operation.path_parameters:
        if location == "path." + parameter.name:
            pattern = parameter.definition.get("schema", {}).get("pattern")
            return pattern is not None and re.search(pattern, str(case.path_parameters[parameter.name])) is None
    return False


# A duration of at most 720h and a time that is not of the future: no schema says it.
OPAQUE = ("body.delay", "body.recordedAt")
