"""What holds for every command: its help, its mistakes told in one line, and the database behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asgi_llm_gateway.__main__ import main

from ..servers import environment, free_port, gateway
from .commands import Typed


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenants", "create", "Acme"),
        ("tenants", "create", "a b"),
        ("tenants", "create", "\N{CYRILLIC SMALL LETTER A}cme"),
        ("tenants", "create", "acme", "--budget-usd", "much"),
        ("tenants", "create", "acme", "--budget-usd", "-1"),
        ("tenants", "create", "acme", "--budget-usd", "nan"),
        ("tenants", "create", "acme", "--budget-usd", "1e400"),
        ("tenants", "create", "acme", "--budget-usd", "0.0000000001"),
        ("tenants", "create", "team"),
        ("keys", "create", "nobody"),
        ("keys", "revoke", "key_nobody"),
        ("tenants", "create", "acme", "--budget-tokens", "-5"),
        ("tenants", "create", "acme", "--budget-tokens", "1.5"),
        ("tenants", "create", "acme", "--period", "yearly"),
        ("tenants", "create", "acme", "--concurrency", "0"),
        ("tenants", "create", "acme", "--metadata", "novalue"),
        ("tenants", "create", "acme", "--name", "nul\x00"),
        ("tenants", "create", "acme", "--name", "half a pair \udcff"),
        ("tenants", "show", "nobody"),
        ("tenants", "update", "team"),
        ("tenants", "update", "nobody", "--name", "x"),
        ("tenants", "update", "team", "--budget-period", "none "),
        ("tenants", "delete", "nobody"),
        ("keys", "create"),
        ("keys", "create", "team", "--admin"),
        ("keys", "create", "--admin", "--budget-usd", "5"),
        ("keys", "create", "--admin", "--rate-tokens", "5"),
        ("keys", "create", "team", "--concurrency", "0"),
        ("keys", "create", "team", "--budget-usd", "five"),
        ("keys", "create", "team", "--expires-in", "soon"),
        ("keys", "create", "team", "--expires-in", "0d"),
        ("keys", "create", "team", "--also-tenants", "nobody"),
        ("keys", "list"),
        ("keys", "list", "nobody"),
        ("keys", "rotate", "key_nobody"),
        ("keys", "rotate", "key_nobody", "--overlap", "31d"),
        ("keys", "rotate", "key_nobody", "--overlap", "1"),
        ("usage", "nobody"),
        ("usage", "Not A Tenant"),
        ("usage", "--records"),
        ("usage", "team", "--since", "yesterday"),
    ],
)
def test_a_mistake_is_told_in_one_line(typed: Typed, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What can't be done ends with exit code 1 and a sentence, never a traceback."""
    code, out, err = typed(*arguments, env=environment(tmp_path))
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: .{10,}\n", err)


def test_a_database_is_migrated_before_anything_runs(typed: Typed, tmp_path: Path) -> None:
    """``migrate`` makes the tables, says where, and may be run again."""
    env = environment(tmp_path)
    for _ in range(2):
        code, out, err = typed("migrate", env=env)
        assert (code, err) == (0, "")
        assert out.startswith(f"sqlite: {tmp_path}/data/gateway.db is at revision ")
    assert typed("tenants", "create", "acme", env=env)[0] == 0


@pytest.mark.parametrize(
    "command", [[], ["tenants"], ["tenants", "create"], ["tenants", "update"], ["keys", "create"], ["keys", "rotate"],
                ["usage"], ["migrate"], ["keys", "list"], ["keys", "revoke"], ["tenants", "delete"], ["tenants", "show"]],
)  # fmt: skip
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` works, and money is said to be US dollars wherever it is taken."""
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "usd" not in told or "US dollars" in told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # aiosqlite's thread may outlive us
def test_a_store_that_is_not_there_is_told_in_one_line(typed: Typed, tmp_path: Path) -> None:
    """A database that nobody serves, and a data folder that can't be made, are named without a traceback."""
    url = f"postgresql://gateway:hidden-word@127.0.0.1:{free_port()}/gateway"
    (tmp_path / "file").write_text("")
    missing = f"sqlite:///{tmp_path}/no/such/folder/gateway.db"
    wrong: list[dict[str, str]] = [
        {"DATABASE_URL": url},
        {"DATABASE_URL": missing},
        {"GATEWAY_DATA_DIR": str(tmp_path / "file" / "below"), "DATABASE_URL": ""},
    ]
    for settings in wrong:
        code, out, err = typed("tenants", "list", env={**environment(tmp_path), **settings})
        assert (code, out) == (1, "")
        assert re.fullmatch(r"error: .{10,}\n", err)
        assert "hidden-word" not in err


def test_an_unknown_command_shows_how_to_call_it(tmp_path: Path) -> None:
    """argparse's own refusal (exit code 2) lists the commands."""
    done = gateway("fly", env=environment(tmp_path))
    assert done.returncode == 2
    assert "serve" in done.stderr
    assert "Traceback" not in done.stderr
