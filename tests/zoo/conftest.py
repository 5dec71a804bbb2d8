"""What is wrong with a model type is shown as in a test."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("zoo.as_expected")
