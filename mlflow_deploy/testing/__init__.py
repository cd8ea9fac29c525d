"""Published contract suites: behaviour that every back end must show, written once.

A test module subclasses a contract and gives its fixtures; see `tests/contracts`. Needs pytest.
"""
