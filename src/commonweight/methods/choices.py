"""What options of several methods say, and are refused for, in one way: a choice of more than there are, and tasks."""

from __future__ import annotations


def more_than(option: str, wanted: int, things: str, there: int) -> str | None:
    """What a config's `check` says where an option asks for more things than there are; None where it does not."""
    return None if wanted <= there else f"{option} {wanted} of {there} {things}; take {option} at most {there}"


def named(tasks: str) -> tuple[str, ...]:
    """The names of tasks in an option."""
    return tuple(t.strip() for t in tasks.split(",")) if tasks else ()


def misnamed(tasks: str) -> str | None:
    """What a config's `check` says where an option does not name tasks, each once."""
    names = named(tasks)
    wrong = next((t for i, t in enumerate(names) if not t or t in names[:i]), None)
    if wrong is None:
        return None
    return f"tasks {tasks!r} {f'has {wrong!r} twice' if wrong else 'has an empty name'}; wanted names, as trec,sst2"
