"""What the README links to is there, on that line. `python tests/test_readme.py` puts the lines of its links right."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LINE = re.compile(r"\[`([\w.]+)`\]\(([\w./]+\.py)#L(\d+)\)")  # name: function or Class.method


def lines_of(path):
    """Where each function, class and method of a file begins, dotted name -> line."""
    found = {}

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found[prefix + child.name] = child.lineno
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def corrected(text):
    """The text with the right line in each link; KeyError for a name that is not in its file."""
    return LINE.sub(lambda m: f"[`{m[1]}`]({m[2]}#L{lines_of(ROOT / m[2])[m[1]]})", text)


def test_links_lead_to_the_lines_that_they_name():
    text = README.read_text(encoding="utf-8")
    assert len(LINE.findall(text)) >= 10 and len(re.findall(r"\.py#L", text)) == len(LINE.findall(text))
    assert corrected(text) == text, "put right by: python tests/test_readme.py"


def test_files_and_pictures_that_it_names_are_there():
    names = re.findall(r"\]\((?!http|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert len(names) > 30 and [name for name in names if not (ROOT / name).exists()] == []


def test_a_link_to_another_line_or_name_is_found():
    right = corrected("[`corrected`](tests/test_readme.py#L1)")
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[int(re.search(r"L(\d+)", right)[1]) - 1]
    assert line == "def corrected(text):"
    try:
        corrected("[`absent`](tests/test_readme.py#L1)")
    except KeyError as error:
        assert "absent" in str(error)
    else:
        raise AssertionError("a name that is not there was found")


if __name__ == "__main__":
    README.write_text(corrected(README.read_text(encoding="utf-8")), encoding="utf-8")
