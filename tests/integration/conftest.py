"""What the integration tests share; executors and instances come from ``tests/conftest.py``."""
