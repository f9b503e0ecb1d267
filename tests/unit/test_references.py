"""How people name a model: addresses of the hub with odd revisions and names."""

from __future__ import annotations

import pytest

from supervisor.models.references import HubReference, parse_hub, recognise

HUB = "https://huggingface.co/o/r"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"{HUB}/resolve/main/a.safetensors", HubReference("o/r", "a.safetensors")),
        (f"{HUB}/resolve/refs%2Fpr%2F1/d/x.gguf", HubReference("o/r", "d/x.gguf", "refs/pr/1")),
        (f"{HUB}/resolve/refs/pr/1/d/x.gguf", HubReference("o/r", "d/x.gguf", "refs/pr/1")),
        (f"{HUB}/blob/my%2Fbranch/x.gguf", HubReference("o/r", "x.gguf", "my/branch")),
        (f"{HUB}/tree/refs%2Fpr%2F12/dir", HubReference("o/r", "dir/", "refs/pr/12")),
        (f"{HUB}/tree/main", HubReference("o/r")),
        (f"{HUB}/blob/main/a%40b.safetensors", HubReference("o/r", "a@b.safetensors")),
        (f"{HUB}/resolve/main/a%20b.bin?download=true", HubReference("o/r", "a b.bin")),
    ],
)
def test_an_address_of_the_hub_is_read_and_written_the_same(
    url: str, expected: HubReference
) -> None:
    source, reference = recognise(url)
    assert source == "huggingface"
    assert parse_hub(reference) == expected
    assert str(parse_hub(reference)) == reference


@pytest.mark.parametrize("path", ["..%2F..%2Fx", "a/../../x", "%2Fetc%2Fpasswd"])
def test_an_escaped_path_does_not_leave_the_repository(path: str) -> None:
    _, reference = recognise(f"{HUB}/resolve/main/{path}")
    with pytest.raises(ValueError, match="inside"):
        parse_hub(reference)
