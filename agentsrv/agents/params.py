"""Parameters of an author's function: those that the server injects, and those of ``params``.

An agent's function may have a parameter for its `Step` and one for its `StepContext`, in any
order, or neither. They are found by annotation, under any name; without an annotation the names
``step`` and ``ctx`` have the same meaning. These names are reserved: with an annotation of another
type they are refused, because a caller cannot see which of the two is meant. A planner has
``task_description`` and ``ctx`` instead.

All other parameters are filled from ``params``, whatever their place. They become the fields of
one pydantic model, which validates ``params`` and is published as JSON Schema.

The model's fields have neutral names (``p0``, ``p1``, …) and the parameter's name, or the alias
that the author gives it, as alias. A parameter may therefore be called ``schema``, ``copy`` or
``model_config``, although every model has these attributes.

Annotations are evaluated one by one. Where a name is not global, the enclosing function's variables
and those of the code that registers the agent are looked at. The annotation of an injected
parameter may name what is imported under ``if TYPE_CHECKING:`` only: it is then compared as text.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, Final, get_args, get_origin

import typing_extensions
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, SchemaValidator

from agentsrv.agents.branching import HINT, is_too_much, width_of
from agentsrv.agents.fail_fast import failing_fast
from agentsrv.error_text import describe
from agentsrv.errors import ConfigurationError

MAX_ERRORS: Final = 64  # of one validation that are described
_PORTABLE_FROM: Final = (3, 12)  # before it pydantic refuses typing.TypedDict


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter that the server injects.

    Attributes:
        name: Its name where it has no annotation; no other parameter may have this name.
        types: Its possible annotations, whatever its name.
        also: Annotations with which it is found by its name only.
    """

    name: str
    types: tuple[type, ...] = ()
    also: tuple[type, ...] = ()

    def takes(self, annotation: Any) -> bool:
        """Whether ``annotation`` is one of the types.

        ``X | None`` and ``Annotated[X, ...]`` are taken for ``X``. An annotation that cannot be
        evaluated is given as text.
        """
        if isinstance(annotation, str):
            names = {part.strip(" '\"").rpartition(".")[2] for part in annotation.split("|")}
            return not names.isdisjoint(kind.__name__ for kind in self.types)
        if get_origin(annotation) is Annotated:
            return self.takes(get_args(annotation)[0])
        if get_origin(annotation) in (typing.Union, types.UnionType):
            return any(map(self.takes, get_args(annotation)))
        return any(annotation is kind for kind in self.types)

    def allows(self, annotation: Any) -> bool:
        """Whether a parameter with the slot's name may have ``annotation``."""
        return self.takes(annotation) or any(
            annotation is kind for kind in (Any, object, *self.also)
        )

    @property
    def expected(self) -> str:
        """The annotation that an error recommends."""
        return (self.types + self.also)[0].__name__


@dataclass(frozen=True, slots=True)
class Passing:
    """How a function is called whose parameters are not ``(first, second, **params)``.

    Attributes:
        by_place: What is passed by position: a slot's number, or a param's name.
        by_name: Slots that are passed by name: the parameter and the slot's number.
    """

    by_place: tuple[int | str, ...]
    by_name: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a function that a task's ``params`` fill.

    Attributes:
        model: Its fields are the parameters.
        validator: Makes a ``model`` of ``params``; of many invalid elements it reports one.
        schema: Its JSON Schema. It is made once, because that may call functions of the author.
        names: The params, by the names that clients use.
        takes_all: Whether the function has ``**params`` and so takes those of any other name.
        fields: Each parameter and its field of ``model``.
        passing: ``None`` for a function of ``(first, second, **params)``.
    """

    model: type[BaseModel]
    validator: SchemaValidator
    schema: dict[str, Any]
    names: tuple[str, ...]
    takes_all: bool
    fields: tuple[tuple[str, str], ...]
    passing: Passing | None
    runs_code: bool
    """Whether validating them calls functions of the author, which might end the process."""
    width: int
    """How many branches each level of a value is tried by; see `branching`."""

    @classmethod
    def of(cls, run: Callable[..., Any], label: str, slots: Sequence[Slot]) -> Parameters:
        """Read the parameters of ``run``.

        Args:
            run: The author's function.
            label: What an error calls it, such as ``agent 'writer'``.
            slots: The two parameters that the server injects.

        Raises:
            ConfigurationError: A parameter cannot be filled; the message names it.
        """
        try:
            parameters = list(inspect.signature(run).parameters.values())
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{label} is {run!r}; expected a function with a signature: {error}"
            ) from error
        filled = _filled(run, parameters, slots, label)
        rest: Any = None
        fields: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.name in filled:
                continue
            if parameter.kind is Parameter.VAR_POSITIONAL:
                raise ConfigurationError(
                    f"{label} takes *{parameter.name}; expected named parameters, which are "
                    "published and validated, or **params for params of any name"
                )
            place = f"{label}, parameter {parameter.name!r}"
            annotation = evaluate(run, parameter.annotation, place)
            if parameter.kind is Parameter.VAR_KEYWORD:
                rest = annotation
            else:
                fields[parameter.name] = _field(parameter, annotation, place)
        model, schema = _model(label, fields, rest)
        names = tuple(name for field in fields.values() for name in _names_of(field))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigurationError(f"{label} has two parameters that take the param {twice!r}")
        own = tuple((name, f"p{number}") for number, name in enumerate(fields))
        runs_code = _runs_code(model.__pydantic_core_schema__)
        passing = _passing(parameters, filled)
        width = width_of(schema, uses_discriminators=True)
        validator = failing_fast(model.__pydantic_core_schema__)
        takes_all = rest is not None
        return cls(model, validator, schema, names, takes_all, own, passing, runs_code, width)

    def adapted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run`` as a function of ``(first, second, **params)``; ``run`` itself if it is one."""
        return run if self.passing is None else Adapter(run, self.passing)

    def arguments(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments for the function.

        Raises:
            ValidationError: A value is wrong, or one without a default is missing.
        """
        if not self.fields and not self.takes_all:
            return {}
        self._check_work(params)
        if self.takes_all:
            valid = self.validator.validate_python(dict(params))
            return {name: getattr(valid, field) for name, field in self.fields} | (
                valid.model_extra or {}
            )
        given = {name: params[name] for name in self.names if name in params}
        valid = self.validator.validate_python(given)
        return {name: getattr(valid, field) for name, field in self.fields}

    def _check_work(self, params: Mapping[str, Any]) -> None:
        """Refuse a value whose validation takes too long, without validating it.

        Raises:
            ValidationError: It names the param.
        """
        found = [
            InitErrorDetails(
                type=PydanticCustomError("branching", HINT),
                loc=(name,),
                input=None,
            )
            for name, value in params.items()
            if (self.takes_all or name in self.names) and is_too_much(value, self.width)
        ]
        if found:
            raise ValidationError.from_exception_data(self.model.__name__, found)

    def complaints(self, params: Mapping[str, Any]) -> list[ErrorDetails]:
        """What is wrong with ``params`` for the function; empty if nothing is.

        The server calls this in its own name, where a crash would count against no task. So it
        calls no function of the author; what that refuses fails the attempt.
        """
        if self.runs_code or not (self.fields or self.takes_all):
            return []
        try:
            self.arguments(params)
        except ValidationError as error:
            return _errors(error, tuple(params) if len(params) == 1 else ())
        return []


def _errors(error: ValidationError, place: tuple[str, ...] = ()) -> list[ErrorDetails]:
    """The errors without values, or one at ``place`` that only counts them."""
    count = error.error_count()
    if count > MAX_ERRORS:  # each is described by an object, which takes longer than the validation
        message = f"{count} values are invalid; expected those of the schema"
        return [{"type": "too_many_errors", "loc": place, "msg": message, "input": None}]
    return error.errors(include_url=False, include_input=False, include_context=False)


def complaint(error: ValidationError) -> str:
    """What is wrong with the params of a task, without their values, which may be secret."""
    found = _errors(error)
    places = (("params", *one["loc"]) for one in found)
    reasons = (one["msg"] for one in found)
    return "; ".join(
        f"{'.'.join(map(str, place))}: {reason}"
        for place, reason in zip(places, reasons, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Adapter:
    """A function as one of ``(first, second, **params)``; it can be pickled if the function can."""

    run: Callable[..., Any]
    passing: Passing

    def __call__(self, *slots: Any, **params: Any) -> Any:
        """Call the function."""
        given = [
            slots[place] if isinstance(place, int) else params.pop(place)
            for place in self.passing.by_place
        ]
        named = {name: slots[number] for name, number in self.passing.by_name}
        return self.run(*given, **named, **params)


def base_function(run: Any) -> Any:
    """The function behind partials, methods, decorators and objects that can be called."""
    while True:
        if isinstance(run, functools.partial):
            run = run.func
        elif isinstance(run, (staticmethod, classmethod)) or inspect.ismethod(run):
            run = run.__func__
        elif hasattr(run, "__wrapped__"):
            run = run.__wrapped__
        elif isinstance(run, type) or inspect.isroutine(run) or not callable(run):
            return run
        else:
            run = type(run).__call__


def origin_of(run: Any) -> str:
    """Module and name of an author's function, for errors."""
    function = base_function(run)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"


def portable(annotation: Any) -> Any:
    """``annotation`` with each ``typing.TypedDict`` as one that pydantic takes before Python 3.12.

    Other annotations are returned unchanged.
    """
    if sys.version_info >= _PORTABLE_FROM:
        return annotation
    if typing.is_typeddict(annotation) and type(annotation).__module__ == "typing":
        return _portable_dict(annotation)
    arguments = get_args(annotation)
    if not arguments or get_origin(annotation) is typing.Literal:
        return annotation
    if get_origin(annotation) is Annotated:
        inner = portable(arguments[0])
        return annotation if inner is arguments[0] else Annotated[(inner, *arguments[1:])]
    changed = tuple(map(portable, arguments))
    if all(new is old for new, old in zip(changed, arguments, strict=True)):
        return annotation
    if isinstance(annotation, types.UnionType):
        return typing.Union[changed]  # noqa: UP007 - of as many as there are
    if isinstance(annotation, types.GenericAlias):
        origin: Any = get_origin(annotation)
        return origin[changed]
    return annotation.copy_with(changed)


@functools.cache
def _portable_dict(kind: Any) -> Any:
    """A ``typing_extensions.TypedDict`` of the same fields."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {
        name: typing_extensions.Required[portable(hint)]
        if name in kind.__required_keys__
        else typing_extensions.NotRequired[portable(hint)]
        for name, hint in hints.items()
    }
    make: Any = typing_extensions.TypedDict
    made = make(kind.__name__, fields)
    made.__doc__, made.__module__ = kind.__doc__, kind.__module__
    if hasattr(kind, "__pydantic_config__"):
        made.__pydantic_config__ = kind.__pydantic_config__
    return made


def _filled(
    run: Callable[..., Any], parameters: Sequence[Parameter], slots: Sequence[Slot], label: str
) -> dict[str, int]:
    """The parameters that the server injects, each with its slot's number.

    Raises:
        ConfigurationError: A reserved name has another type, or a slot has two parameters.
    """
    filled: dict[str, int] = {}
    for parameter in parameters:
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        number = _slot_of(run, parameter, slots, label)
        if number is None:
            continue
        for name, other in filled.items():
            if other == number:
                raise ConfigurationError(
                    f"{label} has two parameters, {name!r} and {parameter.name!r}, for the same "
                    "object; expected one"
                )
        filled[parameter.name] = number
    return filled


def _slot_of(
    run: Callable[..., Any], parameter: Parameter, slots: Sequence[Slot], label: str
) -> int | None:
    """The number of the slot that a parameter is for; ``None`` if it is a param."""
    annotation: Any = Any
    if parameter.annotation is not parameter.empty:
        place = f"{label}, parameter {parameter.name!r}"
        try:
            annotation = evaluate(run, parameter.annotation, place)
        except ConfigurationError:  # reported later, if it turns out to be needed
            annotation = str(parameter.annotation)
    for number, slot in enumerate(slots):
        if slot.takes(annotation):
            return number
        if parameter.name != slot.name:
            continue
        if slot.allows(annotation):
            return number
        raise ConfigurationError(
            f"{label}, parameter {slot.name!r}: found the annotation {parameter.annotation!r}; "
            f"expected {slot.expected} or none, or another name for a param: "
            f'name: Annotated[…, Field(alias="{slot.name}")] takes the param {slot.name!r}'
        )
    return None


def _passing(parameters: Sequence[Parameter], filled: Mapping[str, int]) -> Passing | None:
    only = [p.name for p in parameters if p.kind is Parameter.POSITIONAL_ONLY]
    leading = [
        filled.get(p.name)
        for p in parameters[:2]
        if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]
    if leading == [0, 1] and len(only) <= len(leading):
        return None
    return Passing(
        by_place=tuple(filled.get(name, name) for name in only),
        by_name=tuple((name, slot) for name, slot in filled.items() if name not in only),
    )


def evaluate(run: Callable[..., Any], annotation: Any, place: str) -> Any:
    """An annotation, also one that is text or has text in it.

    Raises:
        ConfigurationError: A name in it is not defined, or it is no annotation.
    """
    if annotation is Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    failure: Exception | None = None
    for variables in _scopes(run):
        try:
            hints = typing.get_type_hints(holder, *variables, include_extras=True)
            return portable(hints["it"])
        except NameError as error:
            failure = failure or error
        except Exception as error:
            raise ConfigurationError(
                f"{place}: the annotation {annotation!r} cannot be evaluated: {describe(error)}"
            ) from error
    raise ConfigurationError(
        f"{place}: the annotation {annotation!r} cannot be evaluated: {failure}; "
        "import it outside `if TYPE_CHECKING:`, or define it at the top of the module"
    ) from failure


def _scopes(run: Callable[..., Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Global and local variables to look for an annotation's names in, in this order."""
    function = base_function(run)
    module = getattr(function, "__globals__", {})
    local = {kind.__name__: kind for kind in getattr(function, "__type_params__", ())}
    if inspect.isfunction(function):
        local |= inspect.getclosurevars(function).nonlocals
    yield module, local
    frame = sys._getframe()  # noqa: SLF001 - there is no other way to the caller's variables
    caller: types.FrameType | None = frame
    while caller is not None:
        if caller.f_globals is module and caller.f_locals is not module:
            yield module, {**caller.f_locals, **local}
        caller = caller.f_back


def _field(parameter: Parameter, annotation: Any, place: str) -> tuple[Any, Any]:
    """The parameter as a field: annotation and default, published by alias or name."""
    default = ... if parameter.default is parameter.empty else parameter.default
    info = (
        FieldInfo.from_annotation(annotation)
        if default is ...
        else FieldInfo.from_annotated_attribute(annotation, default)
    )
    alias = info.validation_alias or info.alias
    if info.init is False or info.exclude:
        raise ConfigurationError(f"{place}: found Field(init=False) or exclude; params are input")
    if alias is None:
        annotation = Annotated[annotation, Field(alias=parameter.name)]
    return annotation, default


def _names_of(field: tuple[Any, Any]) -> list[str]:
    """The params that a field reads."""
    annotation, default = field
    info = (
        FieldInfo.from_annotation(annotation)
        if default is ...
        else FieldInfo.from_annotated_attribute(annotation, default)
    )
    alias = info.validation_alias or info.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [
        str(choice.path[0]) if isinstance(choice, AliasPath) else str(choice) for choice in choices
    ]


def _model(
    label: str, fields: Mapping[str, tuple[Any, Any]], rest: Any
) -> tuple[type[BaseModel], dict[str, Any]]:
    """The model of the fields, and its JSON Schema.

    ``rest`` is the annotation of ``**params``, if there is one.
    """
    try:
        made = _make_model(label, list(fields.values()), rest)
    except Exception as error:
        for name, field in fields.items():
            _check_alone(f"{label}, parameter {name!r}", field)
        raise ConfigurationError(f"{label}: {describe(error)}") from error
    for name, field in fields.items():
        if field[1] is not ...:
            _check_alone(f"{label}, parameter {name!r}", field)
    return made


def _make_model(
    label: str, fields: Sequence[tuple[Any, Any]], rest: Any
) -> tuple[type[BaseModel], dict[str, Any]]:
    class Base(BaseModel):
        model_config = ConfigDict(
            extra="forbid" if rest is None else "allow", validate_default=True
        )

    if rest is not None:
        Base.__annotations__["__pydantic_extra__"] = dict[str, rest]
    Base.__doc__ = None
    own: dict[str, Any] = {f"p{number}": field for number, field in enumerate(fields)}
    name = re.sub(r"\W+", "_", label.partition(" ")[2] or label).strip("_")
    model = create_model(f"{name}_params", __base__=Base, **own)
    return model, model.model_json_schema()


def _check_alone(place: str, field: tuple[Any, Any]) -> None:
    """Refuse a type that pydantic cannot validate, or a default that is not of the type.

    Raises:
        ConfigurationError: It names the parameter.
    """
    try:
        model, _ = _make_model("agent x", [field], None)
        model.model_validate({})
    except ValidationError as error:
        for complaint in error.errors(include_url=False):
            if complaint["type"] != "missing":
                raise ConfigurationError(
                    f"{place}: the default is {field[1]!r}: {complaint['msg']}"
                ) from error
    except Exception as error:
        raise ConfigurationError(
            f"{place}: {field[0]!r} cannot be validated: {describe(error)}"
        ) from error


def _runs_code(schema: object) -> bool:
    """Whether validating by a schema of pydantic's core calls functions of an author."""
    if isinstance(schema, list | tuple):
        return any(map(_runs_code, schema))
    if not isinstance(schema, dict):
        return False
    if schema.get("custom_init") or schema.get("post_init"):
        return True
    function = schema.get("function")
    functions = (function.get("function") if isinstance(function, dict) else function,)
    if any(map(_is_own, (*functions, schema.get("default_factory")))):
        return True
    return any(_runs_code(part) for name, part in schema.items() if name != "serialization")


def _is_own(function: object) -> bool:
    """Whether a function is neither pydantic's nor the standard library's."""
    if not callable(function):
        return False
    package = (getattr(function, "__module__", None) or "builtins").partition(".")[0]
    return package not in sys.stdlib_module_names | {"pydantic", "pydantic_core"}
