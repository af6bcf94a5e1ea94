"""Downstream tasks, a room each: tasks/NAME.py (or a folder) is all that is known of `-d NAME`.

shapes/ has the contract and what tasks share. Importing this package loads none of them.
"""

import pkgutil
from typing import Any

from s3prl_varan.names import find_class, is_reference


def task_names() -> list[str]:
    """The built-in tasks: the files and folders beside this one, but for shapes/."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name != "shapes")


def find_task(name: str) -> Any:
    """The Task class of `-d name`, see find_class; of an expert of s3prl, see shapes/expert.py."""
    from s3prl_varan.tasks.shapes.base import Task

    if is_reference(name):
        from s3prl_varan.tasks.shapes.expert import find_expert

        expert = find_expert(name)
        if expert is not None:
            return expert
    return find_class(name, "-d", __name__, task_names(), Task)
