"""What servers do wrong, and what both engines make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from supervisor.download.engine import SegmentedDownloader
from supervisor.download.request import Downloader, DownloadRequest, TransferResult
from supervisor.download.simple import SimpleDownloader
from supervisor.errors import (
    AuthRequiredError,
    ChecksumMismatchError,
    NotFoundError,
    PermanentTransferError,
    TransientTransferError,
)
from tests.support.bad_origin import Ask, Fault, Origin, serve
from tests.support.downloads import QUICK, Direct, Log, only, random_bytes, safetensors, wanted

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
DATA = random_bytes(12 * MIB + 4321)


def _simple() -> SimpleDownloader:
    return SimpleDownloader(stall_timeout_s=0.5, attempts=8, backoff=QUICK)


def _segmented() -> SegmentedDownloader:
    return SegmentedDownloader(stall_timeout_s=0.5, attempts=8, backoff=QUICK)


def _one_connection() -> SegmentedDownloader:
    return SegmentedDownloader(connections=1, stall_timeout_s=0.5, attempts=8, backoff=QUICK)


Engine = SimpleDownloader | SegmentedDownloader
ENGINES: list[Callable[[], Engine]] = [_simple, _segmented, _one_connection]


@pytest.fixture(params=ENGINES, ids=lambda make: make.__name__.strip("_"))
def engine(request: pytest.FixtureRequest) -> Engine:
    made: Engine = request.param()
    return made


async def pull(
    engine: Engine, request: DownloadRequest, resolver: Direct | None = None
) -> TransferResult:
    async with engine:
        downloader: Downloader = engine
        return await downloader.fetch(request, resolver or Direct(), Log())


def once(fault: Fault) -> Callable[[Ask], Fault]:
    """Misbehave on the first request only."""
    return lambda ask: fault if ask.number == 0 else Fault()


def whole(path: Path, origin: Origin) -> None:
    assert path.read_bytes() == origin.data
    only(path.parent, path.name)


@pytest.mark.parametrize(
    "behave",
    [
        lambda _: Fault(),
        lambda _: Fault(ranges=False),
        lambda _: Fault(ranges=False, chunked=True),
        lambda _: Fault(ranges=False, gzipped=True),
        lambda _: Fault(ranges=False, gzipped=True, chunked=True),
        lambda _: Fault(ranges=False, no_length=True),
        lambda _: Fault(chunked=True),
        lambda _: Fault(etag=None),
        lambda _: Fault(etag='W/"weak"'),
        lambda _: Fault(close=True),
        once(Fault(cut_after=3 * MIB)),
        once(Fault(ranges=False, cut_after=3 * MIB)),
        once(Fault(chunked=True, ranges=False, cut_after=3 * MIB)),
        once(Fault(stall_after=2 * MIB)),
        once(Fault(stall_after=0)),
        once(Fault(shift=1)),
        once(Fault(status=503, headers=(("Retry-After", "0"),))),
        once(Fault(status=500)),
        once(Fault(status=408)),
        lambda ask: (
            Fault(status=429, headers=(("Retry-After", "0.01"),)) if ask.number < 4 else Fault()
        ),
        lambda ask: Fault(cut_after=MIB + 17) if ask.number < 12 else Fault(),
        lambda ask: Fault(cut_after=100) if ask.number < 3 else Fault(),
        once(Fault(flip_at=5 * MIB)),
    ],
)
async def test_ends_with_the_right_bytes(
    tmp_path: Path, engine: Engine, behave: Callable[[Ask], Fault]
) -> None:
    async with serve(DATA, behave) as origin:
        result = await pull(engine, wanted(tmp_path, origin.url, sha256=origin.sha256))
        assert result.size_bytes == len(DATA)
        assert result.sha256 == origin.sha256
        whole(tmp_path / "model.bin", origin)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AuthRequiredError),
        (403, AuthRequiredError),
        (404, NotFoundError),
        (410, NotFoundError),
        (400, PermanentTransferError),
    ],
)
async def test_permanent_answers_fail_at_once(
    tmp_path: Path, engine: Engine, status: int, error: type[Exception]
) -> None:
    async with serve(DATA, lambda _: Fault(status=status)) as origin:
        with pytest.raises(error):
            await pull(engine, wanted(tmp_path, origin.url))
        assert len(origin.asks) == 1
        assert not (tmp_path / "model.bin").exists()


async def test_a_server_that_never_recovers_is_given_back_as_transient(
    tmp_path: Path, engine: Engine
) -> None:
    async with serve(DATA, lambda _: Fault(status=503)) as origin:
        with pytest.raises(TransientTransferError, match="503"):
            await pull(engine, wanted(tmp_path, origin.url))


@pytest.mark.parametrize(
    "fault", [Fault(cut_after=1000), Fault(cut_after=1000, ranges=False)], ids=["parts", "whole"]
)
async def test_a_small_file_that_is_cut_each_time_is_given_back(
    tmp_path: Path, engine: Engine, fault: Fault
) -> None:
    async with serve(b"x" * 5000, lambda ask: fault if ask.start == 0 else Fault(cut_after=0)) as o:
        with pytest.raises(TransientTransferError, match=r"cut$"), anyio.fail_after(60):
            await pull(engine, wanted(tmp_path, o.url))
        assert len(o.asks) <= 20


async def test_a_file_that_changes_for_ever_is_given_back(tmp_path: Path, engine: Engine) -> None:
    def other(ask: Ask) -> Fault:
        return Fault(etag=f'"{ask.number}"', cut_after=len(DATA) // 2)

    async with serve(DATA, other) as origin:
        with pytest.raises(TransientTransferError), anyio.fail_after(60):
            await pull(engine, wanted(tmp_path, origin.url))
        assert len(origin.asks) <= 200


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html>login</html>", b"\n  <HTML><head>"])
async def test_a_web_page_is_never_stored(tmp_path: Path, engine: Engine, body: bytes) -> None:
    async with serve(DATA, lambda _: Fault(body=body)) as origin:
        with pytest.raises(PermanentTransferError, match="web page"):
            await pull(engine, wanted(tmp_path, origin.url))
        only(tmp_path)


async def test_a_truncated_safetensors_is_told_within_its_first_bytes(
    tmp_path: Path, engine: Engine
) -> None:
    data = safetensors(DATA)[:-100]
    async with serve(data) as origin:
        with pytest.raises(PermanentTransferError, match="header describes"):
            await pull(engine, wanted(tmp_path, origin.url, name="m.safetensors"))
        only(tmp_path)


async def test_a_wrong_hash_is_tried_twice_and_shows_both(tmp_path: Path, engine: Engine) -> None:
    async with serve(DATA) as origin:
        with pytest.raises(ChecksumMismatchError) as caught:
            await pull(engine, wanted(tmp_path, origin.url, sha256="0" * 64))
        assert origin.sha256 in caught.value.message
        assert "0" * 64 in caught.value.message
        assert [ask.start for ask in origin.asks].count(0) == 2
        only(tmp_path)


async def test_a_bad_copy_is_replaced_from_the_mirror(tmp_path: Path, engine: Engine) -> None:
    async with serve(DATA, lambda _: Fault(flip_at=7)) as bad, serve(DATA) as good:
        request = wanted(tmp_path, bad.url, sha256=good.sha256, mirrors=(good.url,))
        await pull(engine, request)
        whole(tmp_path / "model.bin", good)


async def test_a_missing_file_comes_from_the_mirror(tmp_path: Path, engine: Engine) -> None:
    async with serve(DATA, lambda _: Fault(status=404)) as bad, serve(DATA) as good:
        await pull(engine, wanted(tmp_path, bad.url, mirrors=(good.url,)))
        whole(tmp_path / "model.bin", good)


async def test_another_size_than_announced_is_refused_before_the_bytes(
    tmp_path: Path, engine: Engine
) -> None:
    async with serve(DATA) as origin:
        with pytest.raises(ChecksumMismatchError, match="announced were"):
            await pull(engine, wanted(tmp_path, origin.url, size_bytes=5))
        only(tmp_path)


async def test_a_file_that_changes_midway_is_never_mixed(tmp_path: Path, engine: Engine) -> None:
    newer = random_bytes(len(DATA), seed=2)

    def behave(ask: Ask) -> Fault:
        if ask.number == 0:
            return Fault(cut_after=6 * MIB)
        return Fault(data=newer, etag='"v2"')

    async with serve(DATA, behave) as origin:
        await pull(engine, wanted(tmp_path, origin.url))
        assert (tmp_path / "model.bin").read_bytes() == newer
        only(tmp_path, "model.bin")


async def test_a_token_never_reaches_another_host(tmp_path: Path, engine: Engine) -> None:
    async with serve(DATA) as storage:
        moved = Fault(status=302, headers=(("Location", storage.url + "?signed=1"),))
        async with serve(DATA, lambda _: moved) as hub:
            token = {"Authorization": "Bearer secret", "Cookie": "session=secret"}
            await pull(engine, wanted(tmp_path, hub.url), Direct(headers=token))
            assert all("authorization" in ask.headers for ask in hub.asks)
            assert storage.asks
            for ask in storage.asks:
                assert "secret" not in str(ask)
        whole(tmp_path / "model.bin", storage)


async def test_redirect_loops_end(tmp_path: Path, engine: Engine) -> None:
    async with serve(DATA) as origin:
        origin.behave = lambda _: Fault(status=302, headers=(("Location", origin.url),))
        with pytest.raises(PermanentTransferError, match="redirects never end"):
            await pull(engine, wanted(tmp_path, origin.url))


@pytest.mark.parametrize("target", ["", "http://[::bad/", "file:///etc/passwd"])
async def test_redirects_to_nowhere_fail_at_once(
    tmp_path: Path, engine: Engine, target: str
) -> None:
    answer = Fault(status=302, headers=(("Location", target),))
    async with serve(DATA, lambda _: answer) as origin:
        with pytest.raises(PermanentTransferError, match="nowhere usable"):
            await pull(engine, wanted(tmp_path, origin.url))
        assert len(origin.asks) == 1


@pytest.mark.parametrize("place", ["folder", "below a file"])
async def test_what_is_in_the_way_is_told_before_the_first_byte(
    tmp_path: Path, engine: Engine, place: str
) -> None:
    folder = tmp_path / "x"
    if place == "folder":
        (folder / "model.bin").mkdir(parents=True)
    else:
        folder.write_bytes(b"")
    async with serve(DATA) as origin:
        with pytest.raises(PermanentTransferError, match="Cannot write") as caught:
            await pull(engine, wanted(folder, origin.url))
        assert "in the way" in (caught.value.hint or "")
        assert not origin.asks


async def test_an_expired_address_is_resolved_again_and_goes_on(
    tmp_path: Path, engine: Engine
) -> None:
    def storage(ask: Ask) -> Fault:
        # Each signature is good for two requests, and each answer is cut.
        used = sum(1 for other in origin.asks if other.path == ask.path)
        return Fault(status=403) if used > 2 else Fault(cut_after=2 * MIB + 5)

    async with serve(DATA, storage) as origin:

        def redirect(ask: Ask) -> Fault:
            where = f"{origin.url}?signature={ask.number}"
            return Fault(status=302, headers=(("Location", where),))

        async with serve(DATA, redirect) as hub:
            result = await pull(engine, wanted(tmp_path, hub.url, sha256=origin.sha256))
            assert result.bytes_fetched < len(DATA) + 8 * MIB
        whole(tmp_path / "model.bin", origin)


async def test_a_whole_file_is_left_alone_and_a_truncated_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    async with serve(DATA) as origin:
        request = wanted(tmp_path, origin.url, sha256=origin.sha256, size_bytes=len(DATA))
        path.write_bytes(DATA[:-1])
        assert (await pull(_segmented(), request)).bytes_fetched == len(DATA)
        whole(path, origin)
        assert (await pull(_segmented(), request)).bytes_fetched == 0
        path.write_bytes(DATA[:-1] + b"x")
        assert (await pull(_segmented(), request)).bytes_fetched == len(DATA)
        whole(path, origin)
