from tests.model.conftest import _one_thread, twin_of

__all__ = ["_one_thread", "twin_of"]
