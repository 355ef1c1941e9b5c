"""The OpenAPI document of all doors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from lighttts import __version__
from lighttts.gateway.conversions import ConversionForm
from lighttts.gateway.encoders import MEDIA_TYPES
from lighttts.gateway.openai import SpeechRequest
from lighttts.gateway.voices import PATH, NewName

Json = dict[str, object]

_TEXT: Json = {"type": "string"}
_FILE: Json = {"type": "string", "format": "binary"}
_SPEED: Json = {"type": "number", "minimum": 0.5, "maximum": 2.0, "default": 1.0}
_SAMPLES: Json = {"audio/pcm": {"schema": _FILE}}
_PROBLEM = "application/problem+json"
_REFUSALS = {
    "400": "The request is wrong.",
    "401": "No valid API key.",
    "404": "There is no such path or model.",
    "405": "The path has other methods; see Allow.",
    "408": "The body took too long to come.",
    "413": "The body is too large.",
    "422": "A field is missing, or its value cannot be.",
    "429": "The API key's quota is used up; see Retry-After.",
    "502": "A worker failed.",
    "503": "Overloaded, or no broker or worker; see Retry-After.",
    "504": "The request took longer than it may.",
}


def document() -> Json:
    """OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "LightTTS gateway", "version": __version__, "license": {"name": "Apache-2.0"}},
        "security": [{"key": []}, {}],
        "paths": {**_openai(), **_voices(), **_upstream(), **_health()},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _openai() -> Json:
    audio: Json = {media: {"schema": _FILE} for media in MEDIA_TYPES.values()}
    audio["text/event-stream"] = {"schema": _TEXT}
    schema = SpeechRequest.model_json_schema()
    # References are looked up from the document's root, the schema's own definitions lie in it.
    schema["properties"]["voice"] = {"anyOf": [_TEXT, {"type": "object", "properties": {"id": _TEXT}}]}
    del schema["$defs"]
    body: Json = {"application/json": {"schema": schema}}
    form = ConversionForm.model_json_schema()
    form["properties"] |= {"file": _FILE, "prompt": _FILE}
    form["required"] = ["file"]
    recordings: Json = {"multipart/form-data": {"schema": form}}
    name: Json = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    return {
        "/v1/audio/speech": {"post": _operation("Speak a text, streamed", audio, "application/json", body)},
        "/v1/audio/conversions": {
            "post": _operation("Say a recording in another voice, streamed", audio, "application/json", recordings)
        },
        "/v1/models": {"get": _operation("The model that is served", _json(), "application/json")},
        "/v1/models/{model}": {
            "get": {**_operation("One model", _json(), "application/json"), "parameters": [name]},
        },
    }


def _voices() -> Json:
    kind = "application/json"
    how: Json = {"shared": {"type": "boolean"}, "replace": {"type": "boolean"}}
    sample = _form({"name": _TEXT, "audio_sample": _FILE}, {"text": _TEXT, **how})
    file = _form({"file": _FILE}, {"name": _TEXT, **how})
    new: Json = {kind: {"schema": NewName.model_json_schema()}}
    content: Json = {"application/octet-stream": {"schema": _FILE}}
    return {
        PATH: {
            "get": _operation("The voices: preset, registered by this key, shared", _json(), kind),
            "post": _made(_operation("Register a voice", _json(), kind, sample)),
        },
        f"{PATH}/import": {"post": _made(_operation("Register an exported voice", _json(), kind, file))},
        f"{PATH}/{{name}}": {
            "get": _of_voice(_operation("One registered voice", _json(), kind)),
            "patch": _of_voice(_operation("Rename a voice", _json(), kind, new)),
            "delete": _of_voice(_operation("Remove a voice with all that is kept of it", _json(), kind)),
        },
        f"{PATH}/{{name}}/export": {
            "get": _of_voice(_operation("A voice as one file", content, kind)),
        },
    }


def _made(operation: Json) -> Json:
    """201 in the place of 200, and what else an addition may come to."""
    answers = dict(cast(Json, operation["responses"]))
    answers["201"] = answers.pop("200")
    answers["403"] = {**_refusal(answers), "description": "No room for more voices, or not allowed."}
    answers["409"] = {**_refusal(answers), "description": "The name is taken."}
    return {**operation, "responses": answers}


def _of_voice(operation: Json) -> Json:
    """What else may come of an operation on one voice."""
    answers = dict(cast(Json, operation["responses"]))
    answers["403"] = {**_refusal(answers), "description": "It is another key's."}
    answers["404"] = {**_refusal(answers), "description": "No such voice."}
    answers["409"] = {**_refusal(answers), "description": "The name is taken, or a preset voice's."}
    name: Json = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    return {**operation, "parameters": [name], "responses": answers}


def _refusal(answers: Json) -> Json:
    return cast(Json, answers["400"])


def _upstream() -> Json:
    optional: Json = {"speed": _SPEED, "stream": {"type": "boolean"}, "tts_model_name": _TEXT}
    zero_shot = _form({"tts_text": _TEXT, "prompt_text": _TEXT, "prompt_wav": _FILE}, optional)
    cross_lingual = _form({"tts_text": _TEXT, "prompt_wav": _FILE}, {})
    preset = _form({"tts_text": _TEXT, "spk_id": _TEXT}, {})
    instruct = _form({"tts_text": _TEXT, "instruct_text": _TEXT, "prompt_wav": _FILE}, {})
    preset_instruct = _form({"tts_text": _TEXT, "spk_id": _TEXT, "instruct_text": _TEXT}, {})
    return {
        "/inference_zero_shot": _both("Speak in a prompt's voice; int16 samples", _SAMPLES, zero_shot),
        "/inference_cross_lingual": _both("The same without the prompt's text", _SAMPLES, cross_lingual),
        "/inference_sft": _both("Speak in a preset voice; int16 samples", _SAMPLES, preset),
        "/inference_instruct": _both("Speak in a preset voice as it is told; int16 samples", _SAMPLES, preset_instruct),
        "/inference_instruct2": _both("Speak in a prompt's voice as it is told; int16 samples", _SAMPLES, instruct),
        "/query_tts_model": _both("The model that is served", _json(), None),
    }


def _health() -> Json:
    probe = {"get": {"summary": "200 if texts can be spoken, else 503", "responses": _answers(_json(), _PROBLEM)}}
    return {
        "/health": probe,
        "/healthz": probe,
        "/readiness": probe,
        "/liveness": {"get": _operation("200 while the gateway runs", _json(), _PROBLEM)},
        "/metrics": {"get": _operation("Prometheus metrics", {"text/plain": {"schema": _TEXT}}, _PROBLEM)},
        "/": {"get": _operation("A page to try it with", {"text/html": {"schema": _TEXT}}, _PROBLEM)},
        "/docs": {"get": _operation("This document as a page", {"text/html": {"schema": _TEXT}}, _PROBLEM)},
        "/openapi.json": {"get": _operation("This document", _json(), _PROBLEM)},
    }


def _json() -> Json:
    return {"application/json": {"schema": {"type": "object"}}}


def _form(required: Json, optional: Json) -> Json:
    schema: Json = {"type": "object", "required": [*required], "properties": {**required, **optional}}
    return {"multipart/form-data": {"schema": schema}}


def _both(summary: str, answer: Json, form: Json | None) -> Json:
    operation = _operation(summary, answer, _PROBLEM, form)
    return {"get": operation, "post": operation}


def _operation(summary: str, answer: Mapping[str, object], errors: str, body: Json | None = None) -> Json:
    operation: Json = {"summary": summary, "responses": _answers(answer, errors)}
    return {**operation, "requestBody": {"required": True, "content": body}} if body else operation


def _answers(answer: Mapping[str, object], errors: str) -> Json:
    refusal = {errors: {"schema": {"type": "object"}}}
    refusals = {status: {"description": text, "content": refusal} for status, text in _REFUSALS.items()}
    return {"200": {"description": "Done.", "content": answer}, **refusals}
