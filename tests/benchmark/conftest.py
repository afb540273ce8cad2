import pytest

from dropkey_cli.benchmark import timing


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not looked at."""
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-3)
