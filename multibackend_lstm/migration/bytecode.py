"""Reads what a stored lambda computes from its bytes, without unmarshalling or running anything.

A Lambda layer holds the marshalled code of its function. This reads the few kinds of marshalled
values that a one-line lambda consists of, and follows the few instructions that it may have, for
CPython 3.6 to 3.13, to an expression: the argument, constants, slices, arithmetic with `+ - * /`,
and calls of functions by their dotted names. Every byte has to be accounted for. Any other value,
instruction, argument or flag makes the function unknown, which is never an error.

Sources: CPython's `Python/marshal.c`, `Lib/opcode.py` and `Python/bytecodes.c` of these versions.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

#: An expression's nesting, and a function's size in bytes.
_MOST_DEPTH = 20
_MOST_BYTES = 4096
# CO_OPTIMIZED, CO_NEWLOCALS, CO_NESTED, CO_NOFREE
_FLAGS = 0x1 | 0x2 | 0x10 | 0x40
_FAST_LOCAL = b"\x20"


class UnknownCodeError(Exception):
    """Bytes that are not of a function that is understood."""


@dataclass(frozen=True)
class Argument:
    """The lambda's one argument."""


@dataclass(frozen=True)
class Constant:
    """None, True, False, Ellipsis, an int, a float, a text, or a tuple of them."""

    value: Any


@dataclass(frozen=True)
class Slice:
    """`start:stop` of an index."""

    start: Any
    stop: Any


@dataclass(frozen=True)
class Tuple:
    """A tuple that is not constant, such as an index with slices."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Arithmetic:
    """`left operator right`."""

    operator: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Item:
    """`value[index]`."""

    value: Any
    index: Any


@dataclass(frozen=True)
class Call:
    """`function(*args, **kwargs)`, where `function` is a dotted name such as `tf.reduce_sum`."""

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Name:
    """A dotted name on the stack, or one that is looked up as a method."""

    dotted: str
    method: bool = False


class _Null:
    """The NULL that CPython puts beside a function that is no method."""


@dataclass(frozen=True)
class _Code:
    instructions: bytes
    constants: tuple[Any, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Version:
    """CPython's instructions: their numbers, and how many cache entries follow each."""

    opcodes: dict[int, str]
    caches: dict[str, int]
    operators: dict[int, str] = field(default_factory=dict)


_OPERATORS = {0: "+", 5: "*", 10: "-", 11: "/"}
_TO_3_10 = _Version(
    {
        11: "UNARY_NEGATIVE", 20: "BINARY_MULTIPLY", 23: "BINARY_ADD", 24: "BINARY_SUBTRACT",
        25: "BINARY_SUBSCR", 27: "BINARY_TRUE_DIVIDE", 83: "RETURN_VALUE", 100: "LOAD_CONST",
        102: "BUILD_TUPLE", 106: "LOAD_ATTR", 116: "LOAD_GLOBAL", 124: "LOAD_FAST",
        131: "CALL_FUNCTION", 133: "BUILD_SLICE", 141: "CALL_FUNCTION_KW", 160: "LOAD_METHOD",
        161: "CALL_METHOD",
    },
    {},
)  # fmt: skip
_3_11 = _Version(
    {
        2: "PUSH_NULL", 11: "UNARY_NEGATIVE", 25: "BINARY_SUBSCR", 83: "RETURN_VALUE",
        100: "LOAD_CONST", 102: "BUILD_TUPLE", 106: "LOAD_ATTR", 116: "LOAD_GLOBAL",
        122: "BINARY_OP", 124: "LOAD_FAST", 133: "BUILD_SLICE", 151: "RESUME", 160: "LOAD_METHOD",
        166: "PRECALL", 171: "CALL", 172: "KW_NAMES",
    },
    {
        "BINARY_SUBSCR": 4, "BINARY_OP": 1, "LOAD_GLOBAL": 5, "LOAD_ATTR": 4, "LOAD_METHOD": 10,
        "PRECALL": 1, "CALL": 4,
    },
    _OPERATORS,
)  # fmt: skip
# LOAD_ATTR's argument says whether it is a method from here on.
_3_12 = _Version(
    {
        2: "PUSH_NULL", 11: "UNARY_NEGATIVE", 25: "BINARY_SUBSCR", 83: "RETURN_VALUE",
        100: "LOAD_CONST", 102: "BUILD_TUPLE", 106: "LOAD_ATTR_OR_METHOD", 116: "LOAD_GLOBAL",
        122: "BINARY_OP", 124: "LOAD_FAST", 133: "BUILD_SLICE", 151: "RESUME", 171: "CALL",
        172: "KW_NAMES",
    },
    {
        "BINARY_SUBSCR": 1, "BINARY_OP": 1, "LOAD_GLOBAL": 4, "LOAD_ATTR_OR_METHOD": 9, "CALL": 3,
    },
    _OPERATORS,
)  # fmt: skip
_3_13 = _Version(
    {
        5: "BINARY_SUBSCR", 34: "PUSH_NULL", 36: "RETURN_VALUE", 42: "UNARY_NEGATIVE",
        45: "BINARY_OP", 50: "BUILD_SLICE", 52: "BUILD_TUPLE", 53: "CALL", 57: "CALL_KW",
        82: "LOAD_ATTR_OR_METHOD", 83: "LOAD_CONST", 85: "LOAD_FAST", 91: "LOAD_GLOBAL",
        149: "RESUME",
    },
    {
        "BINARY_SUBSCR": 1, "BINARY_OP": 1, "LOAD_GLOBAL": 4, "LOAD_ATTR_OR_METHOD": 9, "CALL": 3,
    },
    _OPERATORS,
)  # fmt: skip
_WITHOUT_ARGUMENT = ("UNARY_NEGATIVE", "BINARY_SUBSCR", "RETURN_VALUE", "PUSH_NULL", "RESUME")
_IN_NAMES = {
    "BINARY_MULTIPLY": "*", "BINARY_ADD": "+", "BINARY_SUBTRACT": "-", "BINARY_TRUE_DIVIDE": "/",
}  # fmt: skip
# A code object's fields before its instructions, by the CPython that marshalled it, and versions.
_LAYOUTS: list[tuple[tuple[str, ...], tuple[_Version, ...]]] = [
    (("args", "keyword_only", "locals", "stack", "flags"), (_TO_3_10,)),  # 3.6, 3.7
    (("args", "positional_only", "keyword_only", "locals", "stack", "flags"), (_TO_3_10,)),
    (("args", "positional_only", "keyword_only", "stack", "flags"), (_3_11, _3_12, _3_13)),
]


def read_lambda(content: bytes) -> Any | None:
    """The expression that a lambda of one argument returns.

    Args:
        content: the marshalled code of the lambda, as a Lambda layer stores it in base64.

    Returns:
        None if the bytes are of no function that is understood, or if CPython's versions would
        read them as different expressions.
    """
    if len(content) > _MOST_BYTES:
        return None
    found: list[Any] = []
    for fields, versions in _LAYOUTS:
        try:
            code = _Reader(content).code(fields)
        except UnknownCodeError:
            continue
        for version in versions:
            try:
                found.append(_Follower(code, version).expression())
            except UnknownCodeError:
                continue
    if not found or any(expression != found[0] for expression in found):
        return None
    return found[0]


class _Reader:
    """Reads marshalled values of a few kinds, from the first byte to the last."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0
        self.references: list[Any] = []

    def code(self, fields: tuple[str, ...]) -> _Code:
        """The code object that the content holds."""
        if self._take(1)[0] & 0x7F != ord("c"):
            raise UnknownCodeError
        if self.content[0] & 0x80:
            self.references.append(_Null())  # nothing inside it may refer to it
        numbers = {name: self._number() for name in fields}
        if (
            numbers["args"] != 1
            or numbers["keyword_only"] != 0
            or numbers.get("positional_only", 0) != 0
            or numbers.get("locals", 1) != 1
            or numbers["flags"] & ~_FLAGS
        ):
            raise UnknownCodeError
        instructions = self._of(bytes)
        constants = self._of(tuple)
        names = self._texts()
        if len(self._texts()) != 1:
            raise UnknownCodeError
        if "locals" in numbers:
            if self._texts() or self._texts():  # free and cell variables
                raise UnknownCodeError
            self._of(str), self._of(str)  # file, name
        else:
            if self._of(bytes) != _FAST_LOCAL:
                raise UnknownCodeError
            self._of(str), self._of(str), self._of(str)  # file, name, qualified name
        self._number()  # first line
        self._of(bytes)  # lines
        if "locals" not in numbers and self._of(bytes):  # exceptions
            raise UnknownCodeError
        if self.at != len(self.content):
            raise UnknownCodeError
        return _Code(instructions, constants, names)

    def _of(self, kind: type) -> Any:
        value = self._value(0)
        if type(value) is not kind:
            raise UnknownCodeError
        return value

    def _texts(self) -> tuple[str, ...]:
        texts: tuple[str, ...] = self._of(tuple)
        if not all(type(text) is str for text in texts):
            raise UnknownCodeError
        return texts

    def _take(self, count: int) -> bytes:
        taken = self.content[self.at : self.at + count]
        if count < 0 or len(taken) < count:
            raise UnknownCodeError
        self.at += count
        return taken

    def _number(self) -> int:
        number: int = struct.unpack("<i", self._take(4))[0]
        return number

    def _value(self, depth: int) -> Any:
        if depth > _MOST_DEPTH:
            raise UnknownCodeError
        (byte,) = self._take(1)
        kind, is_reference = chr(byte & 0x7F), byte & 0x80
        if kind == "r":
            index = self._number()
            if not 0 <= index < len(self.references):
                raise UnknownCodeError
            return self.references[index]
        place = len(self.references)
        if is_reference:
            self.references.append(_Null())
        value = self._content(kind, depth)
        if is_reference:
            self.references[place] = value
        return value

    def _content(self, kind: str, depth: int) -> Any:
        singles = {"N": None, "T": True, "F": False, ".": ...}
        if kind in singles:
            return singles[kind]
        if kind == "i":
            return self._number()
        if kind == "g":
            return struct.unpack("<d", self._take(8))[0]
        if kind == "s":
            return self._take(self._number())
        if kind in "zZaAut":
            count = self._take(1)[0] if kind in "zZ" else self._number()
            try:
                return self._take(count).decode("utf-8" if kind in "ut" else "ascii")
            except UnicodeDecodeError as error:
                raise UnknownCodeError from error
        if kind in "()":
            count = self._take(1)[0] if kind == ")" else self._number()
            if not 0 <= count <= len(self.content):
                raise UnknownCodeError
            return tuple(self._value(depth + 1) for _ in range(count))
        raise UnknownCodeError


class _Follower:
    """Follows the instructions of a lambda, with expressions on the stack in place of values."""

    def __init__(self, code: _Code, version: _Version) -> None:
        self.code = code
        self.version = version
        self.stack: list[Any] = []
        self.keywords: tuple[str, ...] = ()
        self.precalled: int | None = None

    def expression(self) -> Any:
        """What the lambda returns."""
        content, at = self.code.instructions, 0
        resumed = not self.version.caches  # from 3.11 on, RESUME comes first
        while at + 1 < len(content):
            name = self.version.opcodes.get(content[at])
            argument = content[at + 1]
            caches = self.version.caches.get(name or "", 0)
            rest = content[at + 2 : at + 2 + 2 * caches]
            at += 2 + 2 * caches
            if name is None or len(rest) != 2 * caches or any(rest):
                raise UnknownCodeError
            if argument and (name in _WITHOUT_ARGUMENT or name in _IN_NAMES):
                raise UnknownCodeError
            if name == "RESUME":
                if resumed:
                    raise UnknownCodeError
                resumed = True
            elif not resumed:
                raise UnknownCodeError
            elif name == "RETURN_VALUE":
                if at != len(content) or len(self.stack) != 1 or self.keywords:
                    raise UnknownCodeError
                return self._pop()
            else:
                self._follow(name, argument)
        raise UnknownCodeError

    def _pop(self) -> Any:
        """An expression from the top of the stack."""
        if not self.stack or isinstance(self.stack[-1], (_Name, _Null)):
            raise UnknownCodeError
        return self.stack.pop()

    def _several(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    def _follow(self, name: str, argument: int) -> None:
        if name == "LOAD_FAST":
            if argument != 0:
                raise UnknownCodeError
            self.stack.append(Argument())
        elif name == "LOAD_CONST":
            self.stack.append(Constant(_at(self.code.constants, argument)))
        elif name == "UNARY_NEGATIVE":
            self.stack.append(Arithmetic("*", Constant(-1), self._pop()))
        elif name in _IN_NAMES or name == "BINARY_OP":
            operator = _IN_NAMES.get(name) or self.version.operators.get(argument)
            if operator is None:
                raise UnknownCodeError
            left, right = self._several(2)
            self.stack.append(Arithmetic(operator, left, right))
        elif name == "BUILD_SLICE":
            if argument != 2:
                raise UnknownCodeError
            self.stack.append(Slice(*self._several(2)))
        elif name == "BUILD_TUPLE":
            self.stack.append(Tuple(self._several(argument)))
        elif name == "BINARY_SUBSCR":
            self.stack.append(Item(*self._several(2)))
        elif name == "PUSH_NULL":
            self.stack.append(_Null())
        elif name.startswith("LOAD_"):
            self._load(name, argument)
        elif name == "KW_NAMES":
            self.keywords = _keywords(_at(self.code.constants, argument))
        elif name == "PRECALL":
            self.precalled = argument
        else:
            self._call(name, argument)

    def _load(self, name: str, argument: int) -> None:
        """A global, or an attribute of one."""
        if name == "LOAD_GLOBAL":
            if self.version.caches:
                if argument & 1:  # with a NULL before it, until 3.12
                    if self.version is _3_13:
                        raise UnknownCodeError
                    self.stack.append(_Null())
                argument >>= 1
            self.stack.append(_Name(_at(self.code.names, argument)))
            return
        method = name == "LOAD_METHOD"
        if name == "LOAD_ATTR_OR_METHOD":
            method, argument = bool(argument & 1), argument >> 1
        owner = self.stack.pop() if self.stack else None
        if not isinstance(owner, _Name) or owner.method:
            raise UnknownCodeError
        self.stack.append(_Name(f"{owner.dotted}.{_at(self.code.names, argument)}", method))

    def _call(self, name: str, count: int) -> None:
        keywords: tuple[str, ...] = ()
        if name in ("CALL_FUNCTION_KW", "CALL_KW"):
            constant = self._pop()
            keywords = _keywords(constant.value if isinstance(constant, Constant) else None)
        elif name == "CALL":
            keywords, self.keywords = self.keywords, ()
            if "PRECALL" in self.version.opcodes.values() and self.precalled != count:
                raise UnknownCodeError
            self.precalled = None
        if len(keywords) > count:
            raise UnknownCodeError
        given = self._several(count)
        top = self.stack.pop() if self.stack else None
        function = top
        if name in ("CALL", "CALL_KW") and not _is_method(top):
            # A function and a NULL, which comes before it until 3.12.
            other = self.stack.pop() if self.stack else None
            function, null = (other, top) if self.version is _3_13 else (top, other)
            if not isinstance(null, _Null) or _is_method(function):
                raise UnknownCodeError
        elif _is_method(top) == name.startswith("CALL_FUNCTION"):
            raise UnknownCodeError
        if not isinstance(function, _Name):
            raise UnknownCodeError
        positional = count - len(keywords)
        kwargs = dict(zip(keywords, given[positional:], strict=True))
        self.stack.append(Call(function.dotted, given[:positional], kwargs))


def _is_method(value: Any) -> bool:
    return isinstance(value, _Name) and value.method


def _at(values: tuple[Any, ...], index: int) -> Any:
    if index >= len(values):
        raise UnknownCodeError
    return values[index]


def _keywords(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not all(type(name) is str for name in value):
        raise UnknownCodeError
    if len(set(value)) != len(value) or not value:
        raise UnknownCodeError
    return value
