"""Tables in Markdown."""


def table(head, *rows):
    """A Markdown table as text; head and rows: lists of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
