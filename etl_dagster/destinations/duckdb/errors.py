"""DuckDB's errors in our terms: one table by class name, so that nothing imports the SDK before it is needed."""

from __future__ import annotations

from collections.abc import Iterator

from etl_dagster.errors import DestinationError, ErrorKind, EtlError, TableError, ValueUnrepresentable

_RETRY = "Another writer was in the way; try again"
_FILE = "Check that the file's disk has space, and that the file is readable and no one else holds it"
_ALTERED = "The tables were altered by someone else; copy the table again"
_VALUE = "Change the column's type at the source, or leave the column out with a column list in the publication"
_OURS = "Report this together with the log"
_INSTALL = "Use the DuckDB version that this package pins"

# Each class of DuckDB's exceptions, with the kind of fault and what the operator does next.
KINDS: dict[str, tuple[ErrorKind, str]] = {
    "TransactionException": (ErrorKind.DESTINATION_UNAVAILABLE, _RETRY),
    "InterruptException": (ErrorKind.DESTINATION_UNAVAILABLE, _RETRY),
    "IOException": (ErrorKind.DESTINATION_UNAVAILABLE, _FILE),
    "HTTPException": (ErrorKind.DESTINATION_UNAVAILABLE, _FILE),
    "FatalException": (ErrorKind.DESTINATION_UNAVAILABLE, "Start the process again; check the disk"),
    "ConnectionException": (ErrorKind.DESTINATION_REFUSED, "Open the file once per process, with one configuration"),
    "OutOfMemoryException": (ErrorKind.TABLE, "Raise memory_limit, or lower threads; then re-sync the table"),
    "PermissionException": (ErrorKind.DESTINATION_REFUSED, _FILE),
    "SerializationException": (ErrorKind.DESTINATION_REFUSED, "The file is corrupt or of another DuckDB version"),
    "NotImplementedException": (ErrorKind.DESTINATION_REFUSED, _INSTALL),
    "NotSupportedError": (ErrorKind.DESTINATION_REFUSED, _INSTALL),
    "CatalogException": (ErrorKind.TABLE, _ALTERED),
    "BinderException": (ErrorKind.TABLE, _ALTERED),
    "DependencyException": (ErrorKind.TABLE, "Drop what depends on the table, such as an index or a view"),
    "ConstraintException": (ErrorKind.TABLE, _ALTERED),
    "IntegrityError": (ErrorKind.TABLE, _ALTERED),
    "ConversionException": (ErrorKind.VALUE, _VALUE),
    "OutOfRangeException": (ErrorKind.VALUE, _VALUE),
    "TypeMismatchException": (ErrorKind.VALUE, _VALUE),
    "DataError": (ErrorKind.VALUE, _VALUE),
    "InvalidInputException": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "InvalidTypeException": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "ParserException": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "SyntaxException": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "SequenceException": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "InternalException": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "InternalError": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "OperationalError": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "ProgrammingError": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "DatabaseError": (ErrorKind.DESTINATION_REFUSED, _OURS),
    "Error": (ErrorKind.DESTINATION_REFUSED, _OURS),
}

_NO_SPACE = ("No space left", "Could not write file")
_OUT_OF_MEMORY, _NO_MEMORY = "OutOfMemoryException", "failed to pin block"
_CLASSES: dict[ErrorKind, type[EtlError]] = {ErrorKind.TABLE: TableError, ErrorKind.VALUE: ValueUnrepresentable}
# Messages of these kinds quote values of rows, which must not reach a log.
_SECRETIVE = frozenset({ErrorKind.VALUE, ErrorKind.TABLE})


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out; at the end of a transaction DuckDB reports that as a failed commit."""
    names = list(_names(error))
    return _OUT_OF_MEMORY in names or ("TransactionException" in names and _NO_MEMORY in str(error))


def _names(error: BaseException | None) -> Iterator[str]:
    return (cls.__name__ for cls in type(error).__mro__)


def translate(error: Exception, doing: str, table: str | None = None) -> EtlError:
    """The error to raise for one of DuckDB's."""
    name = _OUT_OF_MEMORY if is_out_of_memory(error) else next(found for found in _names(error) if found in KINDS)
    kind, hint = KINDS[name]
    if any(words in str(error) for words in _NO_SPACE):
        hint = _FILE
    detail = name if kind in _SECRETIVE else f"{name}: {_first_line(error)}"
    if kind in _CLASSES and table is None:
        kind = ErrorKind.DESTINATION_REFUSED
    class_ = _CLASSES.get(kind, DestinationError)
    return class_(f"DuckDB failed to {doing} ({detail})", hint=hint, kind=kind, table=table)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
