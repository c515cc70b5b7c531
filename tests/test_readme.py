"""What the READMEs link to is there, on that line. `python tests/test_readme.py` puts their links right."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "examples" / "README.md", ROOT / "examples" / "claims" / "README.md"]
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


def corrected(text, folder=ROOT):
    """The text with the right line in each link; KeyError for a name that is not in its file."""
    return LINE.sub(lambda m: f"[`{m[1]}`]({m[2]}#L{lines_of(folder / m[2])[m[1]]})", text)


def test_links_lead_to_the_lines_that_they_name():
    count = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        count += len(LINE.findall(text))
        assert len(re.findall(r"\.py#L", text)) == len(LINE.findall(text))
        assert corrected(text, page.parent) == text, "put right by: python tests/test_readme.py"
    assert count >= 10


def test_files_and_pictures_that_they_name_are_there():
    for page, least in zip(PAGES, (30, 10, 5), strict=True):
        names = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
        assert len(names) > least and [name for name in names if not (page.parent / name).exists()] == []


def test_the_code_of_the_paper_that_it_shows_is_the_packages():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[:2]
    for block, file in zip(blocks, ("nn.py", "train.py"), strict=True):
        lines = (ROOT / "minisagan" / file).read_text(encoding="utf-8").splitlines()
        assert [line for line in block.splitlines() if line not in lines] == []


def test_a_link_to_another_line_or_name_is_found():
    right = corrected("[`corrected`](tests/test_readme.py#L1)")
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[int(re.search(r"L(\d+)", right)[1]) - 1]
    assert line == "def corrected(text, folder=ROOT):"
    try:
        corrected("[`absent`](tests/test_readme.py#L1)")
    except KeyError as error:
        assert "absent" in str(error)
    else:
        raise AssertionError("a name that is not there was found")


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(corrected(path.read_text(encoding="utf-8"), path.parent), encoding="utf-8")
