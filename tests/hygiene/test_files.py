"""What is true of every file: no traces of the machine it was written on, nothing unfinished, nothing too long."""

from __future__ import annotations

import ast
import re

from tests.fixtures.sources import CODE, ROOT, TESTS, calls, functions, paths, texts, tree

LINES_MOST = 400
FUNCTION_LINES_MOST = 60
SLEEP_S_MOST = 0.5

# Spelt in pieces, so that this file is not one that it finds.
UNFINISHED = re.compile("|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bX" + r"XX\b", r"\bHA" + r"CK\b")))
MACHINE = re.compile("|".join(("/wo" + "rk/", "/tmp/" + "spec", "/ro" + "ot/", r"/home/(?!me\b|you\b)\w")))


def named(found: list[tuple[object, object]]) -> list[str]:
    """`file:line` of each."""
    return [f"{path}:{line}" for path, line in found]


def matches(pattern: re.Pattern[str]) -> list[str]:
    """Places in all texts where the pattern is found."""
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append((path.relative_to(ROOT), number))
    return named(found)


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    """What is committed works anywhere."""
    assert matches(MACHINE) == []


def test_nothing_is_left_to_do() -> None:
    """What is unfinished is not committed; what could be better stands in an issue."""
    assert matches(UNFINISHED) == []


def test_every_module_says_what_it_is_for() -> None:
    """Each file that has code opens with a docstring; so does every test."""
    silent = [str(path.relative_to(ROOT)) for path in paths(*CODE, *TESTS) if tree(path).body and not _says(tree(path))]
    silent += [
        f"{path.relative_to(ROOT)}:{function.lineno}"
        for path in paths(*TESTS)
        for function in functions(path)
        if function.name.startswith("test_") and not _says(function)
    ]
    assert silent == []


def _says(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return bool((ast.get_docstring(node) or "").strip())


def test_modules_are_short() -> None:
    """A module is about one thing: under 400 lines."""
    sizes = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in paths(*CODE)}
    assert {str(path): size for path, size in sizes.items() if size >= LINES_MOST} == {}


def test_functions_fit_a_screen() -> None:
    """Under 60 lines, docstring included; a migration is a list of tables."""
    long = [
        (path.relative_to(ROOT), function.lineno)
        for path in paths(*CODE, *TESTS)
        if "migrations" not in path.parts
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 >= FUNCTION_LINES_MOST
    ]
    assert named(list(long)) == []


def test_no_test_waits_for_time_to_pass() -> None:
    """A test waits for what it wants to see; no fixed sleep is as long as half a second."""
    found = [
        (path.relative_to(ROOT), call.lineno)
        for path in paths(*TESTS)
        if path.name.startswith("test_")
        for call in calls(path, "sleep")
        if call.args and isinstance(call.args[0], ast.Constant) and float(call.args[0].value) >= SLEEP_S_MOST
    ]
    assert named(list(found)) == []
