"""What several tasks fail with at once."""

from __future__ import annotations

from aiodatastore.errors import ConflictError
from aiodatastore.waiting import own_error


class Unusual(Exception):  # noqa: N818  (not an error that is raised)
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raised(exc: Exception, cause: Exception | None) -> Exception:
    try:
        raise exc from cause
    except Exception as caught:
        return caught


def test_a_copy_has_what_the_error_has_but_its_traceback() -> None:
    cause = OSError("gone")
    error = raised(ConflictError("changed", expected=1, actual=2), cause)
    copied = own_error(error)
    assert copied is not error
    assert isinstance(copied, ConflictError)
    assert (str(copied), copied.expected, copied.actual) == ("changed", 1, 2)
    assert copied.__cause__ is cause
    assert copied.__suppress_context__
    assert copied.__traceback__ is None
    assert error.__traceback__ is not None


def test_notes_on_a_copy_are_its_own() -> None:
    error = ConflictError("changed")
    error.add_note("met by all")
    one, other = own_error(error), own_error(error)
    one.add_note("by one")
    assert one.__notes__ == ["met by all", "by one"]
    assert other.__notes__ == error.__notes__ == ["met by all"]


def test_what_cannot_be_copied_is_given_without_the_traceback_of_others() -> None:
    error = raised(Unusual(1, 2), None)
    assert own_error(error) is error
    assert error.__traceback__ is None
