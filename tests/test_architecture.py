"""Which part may know which: the imports are walked, those for types and those within functions included."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import asgi_llm_gateway

ROOT = Path(asgi_llm_gateway.__file__).parent
NAME = ROOT.name


def module_of(path: Path) -> str:
    """A file's module name below the package: ``middleware.budget``; ``""`` for the package itself."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text("utf-8")) for module, path in FILES.items()}


def imports_of(module: str) -> Iterator[str]:
    """What a module imports, wherever it does: own modules as ``.middleware.budget``, others by their first name."""
    package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names):
                yield "." + name.removeprefix(NAME).lstrip(".") if name.split(".")[0] == NAME else name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            first, _, rest = (node.module or "").partition(".")
            yield f".{rest}" if first == NAME else first
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                if not base and alias.name == "__version__":  # a constant of the package, which is loaded before all
                    continue
                inner = ".".join([*base, alias.name])
                yield "." + (inner if inner in FILES else ".".join(base))


KNOWS = {module: {name[1:] for name in imports_of(module) if name.startswith(".")} - {module} for module in FILES}
OUTSIDE = {module: {name for name in imports_of(module) if not name.startswith(".")} for module in FILES}

FLOORS = (
    ("records", "errors", "_asgi", "_sse", "_closing", "_perloop", "_stepping", "periods", "ids"),
    (
        "wire",
        "multipart",
        "_form_fields",
        "validation",
        "units",
        "audio",
        "prices",
        "_price_source",
        "tokens",
        "_vocabulary",
        "keys",
        "settings",
        "tracelog",
        "traces",
        "booked",
        "logs",
        "_log_writer",
        "otel_plan",
        "otel_setup",
        "meters",
        "limits",
        "rates",
        "allowed",
        "damping",
        "signals",
        "draining",
        "passport",
        "_handshake",
        "stores",
    ),
    ("usage", "media_usage", "_sample", "watching", "fronts", "adapters", "structured", "caching", "contents"),
    ("calls", "exchange", "_hangup", "_recovery", "_serving"),
    (
        "realtime",
        "realtime_client",
        "spans",
        "opa",
        "_counted",
        "accounting",
        "metering",
        "_metered_http",
        "_metered_outside",
        "_metered_stream",
    ),
    ("middleware", "proxy", "admin"),
    ("dashboard",),
    ("gateway", "cli", "__main__", ""),
)
"""From the ground up. A module imports from its own floor and from those below."""

SANS_IO = (
    "records",
    "errors",
    "_sse",
    "wire",
    "multipart",
    "_form_fields",
    "validation",
    "units",
    "audio",
    "media_usage",
    "prices",
    "_price_source",
    "tokens",
    "_vocabulary",
    "usage",
    "_sample",
    "periods",
    "limits",
    "rates.wants",
    "rates.windows",
    "rates.terms",
    "rates.told",
    "rates.tally",
    "allowed",
    "damping",
    "opa",
    "ids",
    "passport",
    "realtime.frames",
    "realtime.limits",
    "realtime.ice",
    "realtime.origins",
    "realtime.minting",
    "realtime.scopes",
    "realtime.sdp",
    "spans.names",
    "spans.urls",
    "spans.request",
    "spans.answer",
    "structured.limits",
    "structured.chars",
    "structured.patterns",
    "structured.automaton",
    "structured.meta",
    "structured.decimals",
    "structured.check",
    "structured.steps",
    "structured.linked",
    "structured.keywords",
    "structured.engines",
    "structured.plain",
    "structured.fast",
    "structured.compiled",
    "structured.repair",
    "structured.form",
    "structured.chat",
    "structured.responses",
    "structured.messages",
    "structured.judge",
    "structured.streams",
    "otel_plan",
    "contents.parts",
    "contents.openai",
    "contents.anthropic",
    "contents.streamed",
    "contents.read",
    "contents.fit",
    "contents.capture",
    "caching.control",
    "caching.keys",
    "caching.kept",
    "caching.complete",
    "caching._chat",
    "caching._messages",
    "caching._responses",
    "caching.replay",
    "caching.memory",
    "stores.book",
    "keys",
    "settings",
    "tracelog",
    "traces.steps",
    "booked",
    "meters.bounds",
    "meters.families",
    "dashboard.sessions",
)
"""Core files that wait for nothing."""


def floor_of(module: str) -> int:
    """On which floor a module stands."""
    for number, floor in enumerate(FLOORS):
        if any(module == name or (name and module.startswith(name + ".")) for name in floor):
            return number
    raise AssertionError(f"{module} stands on no floor: put it on one")


def below(*folders: str) -> list[str]:
    """The modules in these folders."""
    return [module for module in FILES if module.split(".")[0] in folders and module]


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down_only(module: str) -> None:
    """The floors of the house hold."""
    for known in KNOWS[module]:
        assert floor_of(known) <= floor_of(module), f"{module} imports {known}"


def test_there_are_no_circles() -> None:
    """Imports for types only are counted too."""
    tuple(TopologicalSorter(KNOWS).static_order())


def test_the_walk_sees_the_imports() -> None:
    """The test itself would be worth nothing if it saw none."""
    assert {"exchange", "wire", "errors", "_asgi"} <= KNOWS["middleware.base"]
    assert "settings" in KNOWS["middleware.budget"]  # within a function
    assert {"gateway", "proxy.app", "records"} <= KNOWS[""]  # for types
    assert "httptools" in OUTSIDE["proxy.http1"]


@pytest.mark.parametrize("module", below("middleware"))
def test_no_middleware_knows_another(module: str) -> None:
    """The base and private helpers aside; no adapter and not the proxy either."""
    for known in KNOWS[module]:
        first, _, name = known.partition(".")
        assert first not in ("adapters", "proxy", "admin"), known
        assert first != "middleware" or not name or name == "base" or name.startswith("_"), known


@pytest.mark.parametrize("module", [*below("adapters"), *SANS_IO])
def test_no_adapter_and_no_core_file_waits(module: str) -> None:
    """Sans-IO: no coroutine, no await, no socket."""
    waiting = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    assert not [node.lineno for node in ast.walk(TREES[module]) if isinstance(node, waiting)]
    assert not OUTSIDE[module] & {"asyncio", "socket", "ssl", "anyio", "httpx", "httptools", "sqlalchemy"}


@pytest.mark.parametrize("module", below("stores"))
def test_no_store_knows_asgi(module: str) -> None:
    """Nor what stands above it."""
    assert not KNOWS[module] & {"_asgi", "_sse", "_hangup", "exchange", "wire", "usage"}


def test_the_exchange_knows_no_concern() -> None:
    """It knows the call: no money, no tenants' store, no provider."""
    assert KNOWS["exchange"] <= {"_asgi", "_stepping", "calls", "errors", "records", "usage", "watching", "wire"}


def test_only_the_upstream_client_knows_the_http_client() -> None:
    """And its own helpers beside it."""
    knowing = {module for module in FILES if OUTSIDE[module] & {"httptools", "httpx", "httpx2", "h11", "aiohttp"}}
    # What asks OPA is a client of its own: a middleware may not know the proxy's.
    assert knowing - {"middleware._policy_http"} <= {
        "proxy.upstream",
        "proxy.clients",
        "proxy.http1",
        "proxy.httpx_flight",
    }
    for module in FILES:
        if module.split(".")[0] != "proxy":
            assert not KNOWS[module] & {"proxy.upstream", "proxy.clients", "proxy.http1", "proxy.httpx_flight"}, module


def test_only_the_gateway_knows_everybody() -> None:
    """And the command line, which makes it."""
    for module in FILES:
        if module not in ("gateway", "__main__", "") and module.split(".")[0] != "cli":
            first = module.split(".")[0]
            folders = {known.split(".")[0] for known in KNOWS[module]} & {"middleware", "proxy", "admin", "dashboard"}
            # The dashboard is the admin API's operations, by a session in the place of a key.
            assert folders <= ({"dashboard", "admin"} if first == "dashboard" else {first}), module


def test_only_settings_reads_the_environment() -> None:
    """The proxy variables, which are the HTTP client's, and the tokenizer's own folder aside."""
    for module, tree in TREES.items():
        reads = [
            node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        ]
        assert not reads or module in ("settings", "__main__", "proxy.clients", "_vocabulary"), module


@pytest.mark.parametrize("module", FILES)
def test_everything_public_has_a_docstring(module: str) -> None:
    """Modules, classes, functions and methods."""
    tree = TREES[module]
    assert ast.get_docstring(tree), f"{module} has none"
    missing = []
    bodies: list[ast.AST] = [tree]
    while bodies:
        for node in ast.iter_child_nodes(bodies.pop()):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith(
                "_"
            ):
                if not ast.get_docstring(node):
                    missing.append(node.name)
                if isinstance(node, ast.ClassDef):
                    bodies.append(node)
    assert not missing


@pytest.mark.parametrize("module", [module for module in FILES if module != "__main__"])
def test_what_a_module_names_as_public_is_there(module: str) -> None:
    """``__all__`` lists nothing private and nothing missing."""
    found = importlib.import_module(f"{NAME}.{module}" if module else NAME)
    for name in getattr(found, "__all__", ()):
        assert hasattr(found, name), name
        assert not name.startswith("_") or name == "__version__"


def test_the_packages_public_names_are_what_can_be_imported() -> None:
    """Each of ``__all__``, for types as at run time, and nothing else."""
    typed = {
        alias.asname or alias.name
        for node in ast.walk(TREES[""])
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert set(asgi_llm_gateway.__all__) == typed | {"__version__"}
    assert sorted(asgi_llm_gateway.__all__) == dir(asgi_llm_gateway)
    for name in asgi_llm_gateway.__all__:
        assert getattr(asgi_llm_gateway, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = asgi_llm_gateway.Nothing


HEAVY = ("aiortc", "sqlalchemy", "opentelemetry", "redis", "pydantic", "starlette", "limits", "httpx", "orjson")


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh process has loaded after some code."""
    told = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split()) & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    """They load with the class that needs them."""
    assert loaded_by("import asgi_llm_gateway") == set()


def test_a_middleware_loads_only_what_it_needs() -> None:
    """No database, no settings library and no framework before the first call."""
    code = "from asgi_llm_gateway import TenantMiddleware, BudgetMiddleware, TracingMiddleware\n"
    code += "TenantMiddleware(BudgetMiddleware(TracingMiddleware(print)))"
    assert loaded_by(code) == {"orjson"}
