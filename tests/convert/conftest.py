"""What the tests of conversion share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def modules_cache(tmp_path_factory):
    """Where transformers copies the code of folders to."""
    import transformers.dynamic_module_utils as dynamic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
