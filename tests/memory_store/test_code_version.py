"""The version that a named memory is stamped with follows the code, not what the code calls itself."""

from memory_store.code_version import code_version, digest

FILES = {"a.py": b"x = 1\n", "b/c.py": b"y = 2\n"}


def test_the_version_names_the_release_and_the_code() -> None:
    release, _, code = code_version().partition("+")
    assert release
    assert len(code) == 12
    assert code_version() == code_version()


def test_other_code_is_another_version_wherever_it_differs() -> None:
    known = {digest(FILES)}
    for other in (
        FILES | {"a.py": b"x = 2\n"},
        FILES | {"d.py": b""},
        {"a.py": b"x = 1\n"},
        {"a.py": b"x = 1\ny = 2\n", "b/c.py": b""},
        {"a.py": b"x = 1\n", "c.py": b"y = 2\n"},
    ):
        known.add(digest(other))
    assert len(known) == 6


def test_the_order_of_files_and_the_line_ends_of_a_checkout_make_no_version() -> None:
    assert digest(dict(reversed(FILES.items()))) == digest(FILES)
    assert digest({name: content.replace(b"\n", b"\r\n") for name, content in FILES.items()}) == digest(FILES)
