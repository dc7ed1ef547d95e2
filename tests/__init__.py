"""The test suite; run it with trial. It mirrors the package."""
