"""Every test here also shows that nothing blocked the event loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loopguard import watch_loop


@pytest.fixture(autouse=True)
def loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which a callback kept the event loop for more than 50 ms."""
    with watch_loop() as guard:
        yield
    assert not guard.blocked, "\n".join(guard.blocked)
