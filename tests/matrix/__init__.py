"""Every client's dialect with every provider's: the official SDKs through a gateway process to faithful providers."""

import pytest

pytest.register_assert_rewrite("tests.matrix.pairs", "tests.matrix.stage")
