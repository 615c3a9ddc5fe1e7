from pathlib import Path

import pytest

NO_GPU_NEEDED = ("test_gpu_check_dry.py", "test_pretend_cuda.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The mark is set here and not in the test files: they import no pytest, so that they also run where it is missing.
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in NO_GPU_NEEDED:
            item.add_marker(pytest.mark.gpu)
