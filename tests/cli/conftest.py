"""A command that runs in the test's own process."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from asgi_llm_gateway.__main__ import main
from asgi_llm_gateway.settings import forget

from .commands import Typed


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """A command in this process, where a process for each case would take a second: exit code, stdout, stderr."""

    def run(*arguments: str, env: Mapping[str, str]) -> tuple[int, str, str]:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        forget()
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
