"""No secret survives redaction, in whatever form; nothing else changes."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config.logging import Redactor, setup_logging
from supervisor.config.secrets import secret_arguments, secret_values

SECRET = "hf_Abc+/9'x\"y&z=Q"  # made up; has what encodings change


@pytest.fixture(autouse=True)
def _quiet_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_raw_and_encoded_forms_are_masked() -> None:
    redactor = Redactor([SECRET])
    forms = (SECRET, quote(SECRET, safe=""), json.dumps(SECRET)[1:-1])
    for form in forms:
        assert redactor.redact(f"got {form}!") == "got ***!"


@given(before=st.binary(max_size=7), after=st.binary(max_size=7))
def test_base64_around_a_secret_hides_it(before: bytes, after: bytes) -> None:
    redactor = Redactor([SECRET])
    encoded = base64.b64encode(before + SECRET.encode() + after).decode()
    cleaned = redactor.redact(encoded)
    # What remains must not decode to more than the few characters at the seams.
    longest = max(len(part) for part in cleaned.split("***"))
    assert "***" in cleaned
    assert longest <= 4 * 7


@given(st.text(min_size=8, max_size=40), st.text(), st.text())
def test_a_long_secret_never_survives(secret: str, before: str, after: str) -> None:
    kept = secret.strip()
    if len(kept) > 7 and "*" not in kept:
        assert kept not in Redactor([secret]).redact(before + kept + after)


def test_short_secrets_only_where_they_stand_alone() -> None:
    redactor = Redactor(["1234", "ab"])
    assert redactor.redact("port 51234, pin 1234, ab") == "port 51234, pin ***, ab"


def test_unknown_credentials_in_urls_are_masked() -> None:
    redact = Redactor().redact
    assert redact("https://me:pw@host/x") == "https://***@host/x"
    assert redact("GET /lab?token=abc&x=1") == "GET /lab?token=***&x=1"
    signed = "https://h/f?X-Amz-Signature=deadbeef&X-Amz-Date=2026"
    assert redact(signed) == "https://h/f?X-Amz-Signature=***&X-Amz-Date=2026"
    assert redact("a=1 b=2 https://host/path") == "a=1 b=2 https://host/path"
    for name in ("key", "api_key", "sig", "auth", "jwt", "verify", "X-Amz-Credential", "Policy"):
        assert redact(f"https://h/f?a=1&{name}=deadbeef") == f"https://h/f?a=1&{name}=***"
    for name in ("monkey", "design", "author", "Key-Pair-Id", "tokens_used"):
        assert redact(f"https://h/f?{name}=1") == f"https://h/f?{name}=1"


def test_values_of_a_document_are_masked_and_what_programs_look_for_stays() -> None:
    document = {"comfyui": [{"name": "comfyui", "url": "http://u:p@h", "n": 1, "x": None}]}
    assert Redactor(["comfyui"]).redact_values(document) == {
        "comfyui": [{"name": "comfyui", "url": "http://***@h", "n": 1, "x": None}]
    }


def test_secrets_on_a_command_line_are_found() -> None:
    command = ["server", "--api-key", "one", "--token=two", "--port", "80", "--password", "--x"]
    assert list(secret_arguments(command)) == ["one", "two"]
    assert list(secret_arguments(["--token"])) == []


def test_switches_and_numbers_are_no_secrets() -> None:
    environ = {"A_TOKEN": "yes", "TOKEN_LIMIT": "2048", "B_TOKEN": "hunter2", "C_TOKEN_FILE": "/x"}
    assert list(secret_values(environ)) == ["hunter2"]


def test_secrets_learnt_later_are_masked() -> None:
    redactor = Redactor()
    redactor.add("generated-token")
    assert redactor.redact("x generated-token") == "x ***"


def test_lines_of_a_private_key_are_masked() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n-----END KEY-----"
    assert "MIIEvQ" not in Redactor([key]).redact("line MIIEvQIBADANBgkqhkiG end")


def test_json_lines_are_objects_without_secrets() -> None:
    stream = io.StringIO()
    setup_logging(level="info", log_format="json", redactor=Redactor([SECRET]), stream=stream)
    log = logging.getLogger("supervisor.sync")
    try:
        raise ValueError(f"bad {SECRET}")
    except ValueError:
        log.exception("cannot store %s", SECRET, extra={"file": "a.png", "tries": 2})
    log.debug("not shown")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert (record["level"], record["area"], record["file"]) == ("error", "sync", "a.png")
    assert record["tries"] == 2
    assert record["message"] == "cannot store ***"
    assert "ValueError: bad ***" in record["traceback"]


def test_console_lines_carry_no_foreign_escapes() -> None:
    stream = io.StringIO()
    setup_logging(log_format="console", redactor=Redactor(), stream=stream)
    logging.getLogger("supervisor.x").warning("answer \x1b[2J\r evil")
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[2J" in stream.getvalue()
    assert " warning x: answer" in stream.getvalue()


def test_color_only_when_asked_and_setup_replaces_itself() -> None:
    first, second = io.StringIO(), io.StringIO()
    setup_logging(stream=first)
    setup_logging(stream=second, color=True)
    logging.getLogger("supervisor.x").error("once")
    assert first.getvalue() == ""
    assert second.getvalue().startswith("\x1b[31m")
    assert second.getvalue().count("once") == 1


def test_a_reader_that_stands_still_costs_lines_and_no_time() -> None:
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "w") as stream:  # noqa: PTH123
        setup_logging(stream=stream)
        log = logging.getLogger("supervisor.x")
        for number in range(500):
            log.info("%d %s", number, "x" * 5000)  # no pipe holds so much, and nobody reads
        os.set_blocking(read, False)
        taken = b"".join(iter(lambda: reader.read(65536), None))
        log.info("again")
        told = reader.read(65536).decode()
    lines = taken.decode().split("\n")[:-1]
    whole = [line for line in lines if line.endswith("xx") and len(line) > 5000]
    assert whole == lines
    assert 0 < len(whole) < 500
    assert f"{500 - len(whole)} lines of this log are lost" in told
    assert told.endswith("info    x: again\n")
