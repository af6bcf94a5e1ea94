"""Downstream tasks, a room each: tasks/NAME.py (or a folder) is all that is known of `-d NAME`.

shapes/ has the contract and what tasks share. Importing this package loads none of them.
"""

import importlib
import pkgutil
from typing import Any

from s3prl_varan.errors import UserError, did_you_mean
from s3prl_varan.names import is_reference, load_reference


def task_names() -> list[str]:
    """The built-in tasks: the files and folders beside this one, but for shapes/."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name != "shapes")


def find_task(name: str) -> Any:
    """The Task class of `-d name`: a built-in one, FILE.py:NAME or MODULE:NAME.

    Raises UserError where there is none of that name, or it is no (complete) Task.
    """
    from s3prl_varan.tasks.shapes.base import Task

    if is_reference(name):
        found = load_reference(name, "-d", "a subclass of s3prl_varan.Task")
    elif name in task_names():
        module = importlib.import_module(f"{__name__}.{name}")
        tasks = [each for each in vars(module).values() if getattr(each, "name", None) == name]
        found = tasks[0]
    else:
        known = ", ".join(task_names())
        hint = did_you_mean(name, task_names())
        raise UserError(f"Unknown downstream '{name}': expected one of {known}.{hint}")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"-d {name}: expected a subclass of s3prl_varan.Task.")
    missing = sorted(found.__abstractmethods__)
    missing += [each for each in ("name", "metric") if not hasattr(found, each)]
    if missing:
        raise UserError(f"-d {name}: the class lacks {', '.join(missing)}.")
    return found
