"""What a failure means for the next try."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.download.attempts import Sources, Tries
from supervisor.download.meter import Meter
from supervisor.download.transport import LinkExpiredError
from supervisor.errors import AuthRequiredError, TransientTransferError
from tests.support.downloads import QUICK, Direct, Log, wanted

pytestmark = pytest.mark.anyio

EXPIRED = LinkExpiredError("Cannot download m: the address has expired (403)")
CUT = TransientTransferError("Cannot download m: it was cut")


@pytest.mark.parametrize("moves", [False, True])
async def test_fresh_addresses_are_refused_for_good_only_without_a_byte_between(
    tmp_path: Path, moves: bool
) -> None:
    meter, tries = Meter(Log()), Tries(100, QUICK)
    sources = Sources(wanted(tmp_path, "http://origin"), Direct())
    for error in (EXPIRED, EXPIRED, CUT):
        meter.kept += 100 if moves and error is CUT else 0
        await tries.again(error, sources, meter)
    if moves:
        await tries.again(EXPIRED, sources, meter)
        return
    with pytest.raises(AuthRequiredError, match="expired"):
        await tries.again(EXPIRED, sources, meter)
